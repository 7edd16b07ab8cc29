"""What an export has written so far, and its manifest.

The journal is how an export goes on after a kill: parts of JSON lines in ``.export/journal/`` that are only ever added.
The last line of a file's name counts. Lines for all that is about to be made (``planned``) are written before the first
picture, so that whatever a kill leaves is known by name; a line with a checksum is written after its file. A part
appears whole or not at all, locally and on object stores.

The manifest is for people and tools: ``manifest.json`` and ``manifest.csv``, replaced whole at the end, without times,
so that the same export writes the same bytes.
"""

from __future__ import annotations

import csv
import io
import json
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from consistory_ray.errors import StorageError
from consistory_ray.output.lease.fencing import Lost, delete_all, refuse_if_lost
from consistory_ray.output.storage import OutputStore

CONTROL = ".export"
"""The folder of an export that holds its lease and its journal."""
JOURNAL = f"{CONTROL}/journal"
MANIFEST_JSON, MANIFEST_CSV = "manifest.json", "manifest.csv"
FORMAT_VERSION = 1
_PART_RECORDS = 512
_PART_SECONDS = 2.0

State = Literal["ok", "touches_frame", "empty_mask", "no_mask", "rejected", "failed", "planned", "removed"]
NOT_MADE = ("empty_mask", "no_mask", "rejected", "failed")
"""States of pictures that were asked for and are not there."""


@dataclass(frozen=True, slots=True)
class Record:
    """One file of an export: which asset it is, and what became of it.

    Attributes:
        file: its name, relative to the export's folder.
        state: ``ok``; ``touches_frame``, made, and the subject goes on beyond the picture; ``empty_mask``, ``no_mask``,
            ``rejected`` or ``failed``, not made, for the reason in ``note``. In a journal also ``planned`` and
            ``removed``.
        asset_id, subject, scene, take: what it is of; empty for sheets and other files that are of many.
        source, source_sha256: the picture in the output, and its checksum.
        sha256, size: of the file; None where it was not made.
        unsigned_sha256: of the file before it was signed; the same where it was not.
        width, height: of the file, in pixels.
        box: left, top, width, height of what it shows, in the source's pixels.
        placed: left, top, width, height of where that is in the file, in its pixels.
        options: digest of what was asked for, see :meth:`.options.PictureOptions.digest`.
        note: what people have to know.
    """

    file: str
    state: State
    asset_id: str = ""
    subject: str = ""
    scene: str = ""
    take: int | None = None
    source: str = ""
    source_sha256: str = ""
    sha256: str | None = None
    size: int | None = None
    unsigned_sha256: str | None = None
    width: int | None = None
    height: int | None = None
    box: tuple[int, int, int, int] | None = None
    placed: tuple[int, int, int, int] | None = None
    options: str = ""
    note: str = ""

    @property
    def is_there(self) -> bool:
        """Whether its file was made."""
        return self.sha256 is not None and self.state not in ("planned", "removed")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: getattr(self, name) for name in _NAMES}


_NAMES = tuple(item.name for item in fields(Record))
_RECTANGLES = ("box", "placed")


def _record(values: Mapping[str, Any]) -> Record:
    known: dict[str, Any] = {name: values[name] for name in _NAMES if name in values}
    for name in _RECTANGLES:
        if known.get(name) is not None:
            known[name] = tuple(known[name])
    return Record(**known)


class Journal:
    """The journal of one export. Records may be added from several threads.

    Args:
        store: the export's folder; the caller is its only writer.
        lost: why it may no longer be written to; empty while it may.
    """

    def __init__(self, store: OutputStore, lost: Lost = str) -> None:
        self._store, self._lost = store, lost
        self._parts = sorted(file.path for file in store.list_files(JOURNAL))
        self._waiting: list[Record] = []
        self._written = time.monotonic()
        self._lock = threading.Lock()
        self.records: dict[str, Record] = {}
        """By file name, in the order of the last line of each."""
        self.is_new = not self._parts
        """Whether no export has written here before."""
        for part in self._parts:
            for record in self._read(part):
                self._note(record)
        self._next = 1 + max((int(part.rsplit("/", 1)[1].split(".")[0]) for part in self._parts), default=0)

    def _read(self, part: str) -> Iterable[Record]:
        try:
            for text in self._store.read(part).decode().splitlines():
                yield _record(json.loads(text))
        except (ValueError, TypeError) as error:
            advice = f"delete {self._store.url}/{CONTROL}, and everything is exported anew"
            raise StorageError(f"{self._store.url}/{part} is not a journal's: {error}; {advice}") from error

    def _note(self, record: Record) -> None:
        self.records.pop(record.file, None)
        if record.state != "removed":
            self.records[record.file] = record

    def add(self, records: Iterable[Record], *, at_once: bool = False) -> None:
        """Take records down; they are on storage within two seconds, or when this returns.

        Raises:
            StorageError, RunError: they could not be written.
        """
        with self._lock:
            for record in records:
                self._note(record)
                self._waiting.append(record)
            late = time.monotonic() - self._written > _PART_SECONDS
            if self._waiting and (at_once or late or len(self._waiting) >= _PART_RECORDS):
                self._flush()

    def _flush(self) -> None:
        self._parts.append(self._write(self._waiting))
        self._waiting = []
        self._written = time.monotonic()

    def _write(self, records: Iterable[Record]) -> str:
        refuse_if_lost(self._lost, "the journal was not written")
        path = f"{JOURNAL}/{self._next:08d}.jsonl"
        self._next += 1
        self._store.write_atomic(path, "".join(f"{json.dumps(one.to_dict())}\n" for one in records).encode())
        return path

    def close(self) -> None:
        """Write what is waiting."""
        self.add((), at_once=True)

    def compact(self) -> None:
        """Make one part of all: it is written first, and says what all of them say together."""
        self.close()
        with self._lock:
            if len(self._parts) > 1:
                old, self._parts = self._parts, [self._write(self.records.values())]
                delete_all(self._store, old, self._lost)


def write_manifest(store: OutputStore, head: Mapping[str, Any], records: Iterable[Record], lost: Lost = str) -> None:
    """Write both forms of the manifest, each only if it is another one.

    Args:
        store: the export's folder.
        head: what is said of the whole export, JSON-ready.
        records: of all that was asked for, in order.
        lost: why it may no longer be written to; empty while it may.
    """
    rows = [record.to_dict() for record in records]
    told = json.dumps({"version": FORMAT_VERSION, **head, "files": rows}, indent=1, ensure_ascii=False) + "\n"
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    columns = [name for name in _NAMES if name not in _RECTANGLES]
    sides = ("left", "top", "width", "height")
    writer.writerow([*columns, *(f"{name}_{side}" for name in _RECTANGLES for side in sides)])
    for row in rows:
        rectangles = [row[name] or (None,) * 4 for name in _RECTANGLES]
        writer.writerow([*(row[name] for name in columns), *(value for one in rectangles for value in one)])
    for path, data in ((MANIFEST_CSV, text.getvalue().encode()), (MANIFEST_JSON, told.encode())):
        refuse_if_lost(lost, f"{path} was not written")
        write_if_changed(store, path, data)


def write_if_changed(store: OutputStore, path: str, data: bytes) -> bool:
    """Write a file unless it holds just that; says whether it was written."""
    if store.exists(path) and store.read(path) == data:
        return False
    store.write_atomic(path, data)
    return True
