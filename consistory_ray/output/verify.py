"""Look at everything an output claims to hold, byte by byte, and set right what is damaged.

``resume`` compares names and sizes, which is quick; this reads every file. Repairing means to drop the rows of damaged
pictures, so that the next render makes them again (or, where a whole picture of the right asset is there, indexes it),
and to delete files that can be of no use to anyone. A file that is some other whole picture is left where it is.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.errors import InputError, Problem, StorageError
from consistory_ray.output.assets import MASK_ENDING, picture_size, read_metadata
from consistory_ray.output.files import THREADS, bounded_map
from consistory_ray.output.index.index import compact, set_aside
from consistory_ray.output.index.parts import CorruptIndexError, list_parts, read_parts
from consistory_ray.output.index.rows import latest_rows
from consistory_ray.output.lease.fencing import Lost, delete_all, refuse_if_lost
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.run_record import RUN_RECORD, look_for_record
from consistory_ray.output.storage import (
    FOLDERS,
    PICTURE_FOLDERS,
    SET_ASIDE,
    MissingFileError,
    Output,
    OutputStore,
    UnfitFileError,
    as_store,
)
from consistory_ray.plan.inputs import INPUT_FOLDER

KINDS: Mapping[str, str] = {
    "missing": "no file at the row's path",
    "input": "the copy of a picture that was given has changed",
    "undecodable": "the file is cut off or damaged",
    "foreign": "the file is another asset's picture",
    "unmarked": "the file is a picture that names no asset",
    "changed": "the file is the asset's picture, but not the one that was indexed",
    "bad-path": "the row's path is not below the output",
    "cache": "an anchor cache does not match its checksum",
    "index-part": "a part of the index cannot be read",
    "index": "there is no index, although pictures were made",
    "run-record": "the run record cannot be understood",
    "misplaced": "a link, a pipe or a device has the place of a file",
    "unreadable": "the storage failed; nothing is known",
}
"""Every kind of damage."""

MAX_LISTED = 1000
_SHOWN = 20
_DELETED = ("undecodable", "cache", "input")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BATCH = 10_000
_COLUMNS = ("asset_id", "subject", "kind", "scene", "path", "size", "sha256", "status", "attempt", "created_at")


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong.

    Attributes:
        kind: a key of :data:`KINDS`.
        path: of the file, relative to the output.
        detail: what was found.
        asset_id: of the row; empty for what has none.
    """

    kind: str
    path: str
    detail: str
    asset_id: str = ""


@dataclass
class Verified:
    """What was found, and what was done about it.

    Attributes:
        url: the output.
        rows: how many ok rows were checked.
        bytes: how much was read of them.
        caches: how many anchor caches were checked.
        unfinished_caches: caches without a checksum: of a run that was killed, or is at it now. They are never loaded.
        damage: how often each kind was found.
        listed: the first 1,000 of them.
        orphans: whole or not, pictures without a row; rendering indexes those that it recognises.
        repaired: whether everything found was set right.
        dropped_rows, deleted_files: what repairing took away.
        seconds: how long it took.
    """

    url: str
    rows: int = 0
    bytes: int = 0
    caches: int = 0
    unfinished_caches: int = 0
    damage: Counter[str] = field(default_factory=Counter)
    listed: list[Damage] = field(default_factory=list)
    orphans: int = 0
    repaired: bool = False
    dropped_rows: int = 0
    deleted_files: int = 0
    seconds: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Whether the output is in order now: nothing was found, or all of it was repaired."""
        return not self.damage or self.repaired

    def lines(self) -> list[str]:
        """What was found, for people."""
        told = [f"{self.rows} pictures ({self.bytes / 1e6:,.1f} MB) and {self.caches} anchor caches checked"]
        told += [f"{count} {kind}: {KINDS[kind]}" for kind, count in sorted(self.damage.items())]
        told += [f"  {item.path}: {item.detail} ({item.kind})" for item in self.listed[:_SHOWN]]
        if self.damage.total() > _SHOWN:
            told.append(f"  … and {self.damage.total() - _SHOWN} more (--json lists {MAX_LISTED})")
        if self.orphans:
            told.append(f"{self.orphans} pictures without a row; the next render indexes those it recognises")
        if self.unfinished_caches:
            told.append(f"{self.unfinished_caches} anchor caches without a checksum, which are never loaded")
        if self.dropped_rows or self.deleted_files:
            told.append(f"{self.dropped_rows} rows dropped, {self.deleted_files} files deleted; render again")
        return told

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"damage": dict(self.damage), "sound": self.is_sound}


def verify(
    output: Output,
    *,
    repair: bool = False,
    threads: int = THREADS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Verified:
    """Check every ok row (its file is there, has its size and SHA-256, decodes, and names the row's asset) and every
    anchor cache (its SHA-256), and count pictures without a row.

    Files are read in parallel and forgotten; what stays in memory is a few hundred bytes per row. Checking alone writes
    nothing and may be done while a run goes on: what looks damaged is looked at again with its newest row.

    Args:
        output: the output.
        repair: drop the rows of damaged pictures, delete files that do not decode and caches that do not match, and
            move unreadable index parts to the folder ``damaged``, sweep temporary files older than an hour. Holds the
            output's lease meanwhile.
        threads: how many files to read at a time.
        on_progress: is told how many of how many rows were checked.

    Raises:
        OutputBusyError: ``repair`` while a run holds the output.
        RunError: the output was lost to another run while it was repaired.
        InputError: nothing was ever rendered there, or the index was written by a newer version.
        StorageError: the index could not be read.
    """
    store = as_store(output)
    if not store.exists(RUN_RECORD) and not list_parts(store):
        fix = f"give the folder that a render wrote to (there is neither a {RUN_RECORD} nor an index in it)"
        raise InputError("there is nothing to verify", [Problem("URL", store.url, fix)])
    began = time.monotonic()
    with Lease.acquire(store, "verify --repair") if repair else nullcontext() as lease:
        check = _Check(store, threads, on_progress or _ignore, Verified(store.url))
        bad = check.everything()
        if repair and bad:
            _repair(store, bad, check.result, str if lease is None else lambda: lease.lost)
        if repair:
            store.sweep_temporaries()
    check.result.seconds = round(time.monotonic() - began, 3)
    return check.result


class _Check:
    def __init__(
        self, store: OutputStore, threads: int, on_progress: Callable[[int, int], None], result: Verified
    ) -> None:
        self._store = store
        self._threads = threads
        self._on_progress = on_progress
        self.result = result

    def everything(self) -> list[Damage]:
        table, bad = self._index()
        ok = _ok_rows(table)
        suspects = list(self._pictures(ok))
        if suspects:
            bad += self._look_again(suspects)
        bad += self._files(set(ok["path"].to_pylist()))
        bad += self._strangers({item.path for item in bad})
        self.result.damage = Counter(item.kind for item in bad)
        self.result.listed = bad[:MAX_LISTED]
        return bad

    def _strangers(self, told: Collection[str]) -> list[Damage]:
        """A run record that cannot be understood, and what is no file where only files are written."""
        looked = look_for_record(self._store)
        record, problem = looked.record, looked.problem
        found = [Damage("run-record", RUN_RECORD, problem)] if problem else []
        if record is not None and not list_parts(self._store):
            made = int(record.totals.get("found", 0) + record.totals.get("rendered", 0))
            if made:
                found.append(Damage("index", "index", f"{RUN_RECORD} speaks of {made} pictures, and there are no rows"))
        places = self._store.strangers().items()
        ours = {path: kind for path, kind in places if path.split("/")[0] in FOLDERS and path not in told}
        return found + [Damage("misplaced", path, f"it is {kind}") for path, kind in ours.items()]

    def _index(self) -> tuple[pa.Table, list[Damage]]:
        try:
            return latest_rows(read_parts(self._store, _COLUMNS)[0]), []
        except CorruptIndexError as error:
            table, _ = read_parts(self._store, _COLUMNS, skip=error.parts)
            return latest_rows(table), [Damage("index-part", path, why) for path, why in error.reasons.items()]

    def _pictures(self, ok: pa.Table) -> Iterator[Damage]:
        for size, damage in bounded_map(lambda row: check_picture(self._store, *row), _rows(ok), self._threads):
            self.result.rows += 1
            self.result.bytes += size
            if damage is not None:
                yield damage
            self._on_progress(self.result.rows, len(ok))

    def _look_again(self, suspects: list[Damage]) -> list[Damage]:
        """A run that goes on may have rendered a picture again since its row was read."""
        ids = pa.array([damage.asset_id for damage in suspects], pa.string())
        table, _ = self._index()
        ok = _ok_rows(table)
        ok = ok.filter(pc.is_in(ok["asset_id"], value_set=ids))
        found = bounded_map(lambda row: check_picture(self._store, *row), _rows(ok), self._threads)
        return [damage for _, damage in found if damage is not None]

    def _files(self, claimed: Collection[str]) -> list[Damage]:
        caches, sums = set(), set()
        for folder in PICTURE_FOLDERS:
            for file in self._store.iter_files(folder):
                if file.path.endswith(".safetensors"):
                    caches.add(file.path)
                elif file.path.endswith(".safetensors.sha256"):
                    sums.add(file.path)
                elif file.path.endswith(".png") and not file.path.endswith(MASK_ENDING) and file.path not in claimed:
                    self.result.orphans += 1
        finished = [path for path in sorted(caches) if f"{path}.sha256" in sums]
        self.result.caches, self.result.unfinished_caches = len(finished), len(caches) - len(finished)
        found = bounded_map(lambda path: check_cache(self._store, path), finished, min(self._threads, 4))
        given = (file.path for file in self._store.iter_files(INPUT_FOLDER))
        copies = bounded_map(lambda path: check_input(self._store, path), given, self._threads)
        return [damage for damage in itertools.chain(found, copies) if damage is not None]


def check_picture(store: OutputStore, asset_id: str, path: str, size: int, sha256: str) -> tuple[int, Damage | None]:
    """Read one picture; returns its size in bytes and what is wrong with it."""
    try:
        data = store.read(path)
    except MissingFileError:
        return 0, Damage("missing", path, "no such file", asset_id)
    except UnfitFileError as error:
        return 0, Damage("misplaced", path, str(error), asset_id)
    except InputError:
        return 0, Damage("bad-path", ascii(path), "leaves the output", asset_id)
    except StorageError as error:
        return 0, Damage("unreadable", path, str(error), asset_id)
    if picture_size(data) is None:
        return len(data), Damage("undecodable", path, f"{len(data)} bytes, {size} were written", asset_id)
    owner = (read_metadata(data) or {}).get("asset_id")
    if owner != asset_id:
        kind, detail = ("unmarked", "names no asset") if owner is None else ("foreign", f"of asset {owner}")
        return len(data), Damage(kind, path, detail, asset_id)
    found = hashlib.sha256(data).hexdigest()
    if len(data) != size or found != sha256:
        detail = f"{len(data)} bytes with SHA-256 {found}, indexed were {size} with {sha256}"
        return len(data), Damage("changed", path, detail, asset_id)
    return len(data), None


def check_cache(store: OutputStore, path: str) -> Damage | None:
    """Compare an anchor cache with the checksum beside it; None when it matches, or is gone by now."""
    try:
        expected = store.read(f"{path}.sha256").decode(errors="replace").split()
        found = store.sha256(path)
    except MissingFileError:
        return None
    except UnfitFileError as error:
        return Damage("misplaced", path, str(error))
    except StorageError as error:
        return Damage("unreadable", path, str(error))
    if expected[:1] == [found]:
        return None
    return Damage("cache", path, f"SHA-256 {found}, its checksum file says {' '.join(expected)[:80] or 'nothing'}")


def check_input(store: OutputStore, path: str) -> Damage | None:
    """Compare the copy of a given file with its name; None when it matches, is gone by now, or is no copy."""
    name = path.rsplit("/", 1)[-1].split(".")[0]
    if not _SHA256.fullmatch(name):
        return None
    try:
        found = store.sha256(path)
    except MissingFileError:
        return None
    except StorageError as error:
        return Damage("unreadable", path, str(error))
    return None if found == name else Damage("input", path, f"its SHA-256 is {found}")


def _repair(store: OutputStore, bad: list[Damage], result: Verified, lost: Lost) -> None:
    """Rows first, then files: a kill in between leaves files without rows, which rendering deals with."""
    refuse_if_lost(lost, "nothing was repaired")
    set_aside(store, [damage.path for damage in bad if damage.kind == "index-part"], lost)
    drop = {damage.asset_id for damage in bad if damage.asset_id and damage.kind != "unreadable"}
    if drop:
        compact(store, drop=drop, lost=lost)
    useless = [damage for damage in bad if damage.kind in _DELETED]
    sums = [f"{damage.path}.sha256" for damage in useless if damage.kind == "cache"]
    delete_all(store, sums, lost)  # before the caches: one without a checksum is never loaded
    delete_all(store, [damage.path for damage in useless], lost)
    for damage in bad:
        if damage.kind in ("run-record", "misplaced"):
            refuse_if_lost(lost, f"{store.url}/{damage.path} was not moved away")
            _move_aside(store, damage.path)
    result.deleted_files = len(useless)
    result.dropped_rows = len(drop)
    result.repaired = not any(damage.kind in ("unreadable", "index") for damage in bad)


def _move_aside(store: OutputStore, path: str) -> None:
    """Away with what cannot be used; object stores hold nothing but files, of which it is a copy."""
    if store.is_local:
        store.move_aside(path)
        return
    with suppress(MissingFileError, UnfitFileError):
        store.write_atomic(f"{SET_ASIDE}/{path}", store.read(path))
    store.delete(path)


def _ok_rows(table: pa.Table) -> pa.Table:
    return table.filter(pc.equal(table["status"], "ok"))


def _rows(table: pa.Table) -> Iterator[tuple[str, str, int, str]]:
    for start in range(0, len(table), _BATCH):
        some = table.slice(start, _BATCH)
        columns = (some[name].to_pylist() for name in ("asset_id", "path", "size", "sha256"))
        yield from zip(*columns, strict=True)


def _ignore(done: int, total: int) -> None:
    """Nobody watches."""
