"""What people decided about pictures: ``decisions/part-HASH.parquet``, only ever added to, and what follows from it.

Rows say who wanted what of which take, and when. They never touch the index, and no lease is needed to write them: a
render may go on beside, and so may other people. As in the index, a part is named by its content, so that one that is
cut off or changed is told and never used; a decision that lies in two parts counts once, by its id.

The last decision counts, of those that were not taken back. "Last" is by ``at``, so by the clocks of whoever decided,
and by the id where two are equal: everybody who reads the same rows comes to the same end, in whatever order.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consistory_ray.errors import StorageError
from consistory_ray.output.files import StoredFile
from consistory_ray.output.index.takes import picture_ids
from consistory_ray.output.lease.fencing import delete_all
from consistory_ray.output.storage import MissingFileError, Output, OutputStore, UnfitFileError, as_store

DECISIONS_FOLDER = "decisions"
MERGE_AT = 64
"""So many parts are worth being merged into one."""
Action = Literal["pick", "reject", "reroll", "note", "undo"]
MAX_NOTE, MAX_NAME, MAX_TAKE = 2000, 200, 10_000
_PART = f"{DECISIONS_FOLDER}/part-"
_VERSION_KEY, _VERSION = b"consistory_decisions_version", 1
_MAX_BYTES, _MAX_ROWS, _MAX_TEXT = 256 << 20, 5_000_000, 4096
_READ_TRIES = 20
_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("decision_id", "picture_id", "asset_id")),
        *(pa.field(name, pa.string(), nullable=False) for name in ("subject", "scene", "action")),
        pa.field("take", pa.int32()),
        pa.field("note", pa.string(), nullable=False),
        pa.field("undoes", pa.string()),
        pa.field("who", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing that somebody decided.

    Attributes:
        picture_id: the asset id that the plan knows the scene by, which is that of its first take.
        asset_id: the take that was looked at.
        subject, scene: what they were called then.
        action: ``pick``: this take is the scene's picture. ``reject``: this take never is. ``reroll``: one more take is
            to be made. ``note``: something to read. ``undo``: another decision about this picture does not count.
        who: a name.
        take: of a reroll, the number of the take that is asked for, from 2.
        note: of a note, its text.
        undoes: of an undo, the id of the decision that it takes back, which is none itself.
        at: when, UTC.
        decision_id: a hash of all others.

    Raises:
        ValueError: what is given is no decision.
    """

    picture_id: str
    asset_id: str
    subject: str
    scene: str
    action: Action
    who: str
    take: int | None = None
    note: str = ""
    undoes: str | None = None
    at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    decision_id: str = field(init=False)

    def __post_init__(self) -> None:
        if self.action not in get_args(Action):
            raise ValueError(f"the action must be {', '.join(get_args(Action))}, not {self.action!r}")
        if not self.picture_id or not self.asset_id:
            raise ValueError("a decision is about a picture and a take")
        names = (self.picture_id, self.asset_id, self.subject, self.scene, self.undoes or "")
        if any(len(text) > _MAX_TEXT for text in names):
            raise ValueError(f"a name is longer than {_MAX_TEXT} characters")
        if not 0 < len(self.who.strip()) <= MAX_NAME or not self.who.isprintable():
            raise ValueError(f"who must be a name of 1 to {MAX_NAME} characters, not {self.who[:MAX_NAME]!a}")
        if (self.action == "reroll") != (self.take is not None) or not 2 <= (self.take or 2) <= MAX_TAKE:
            raise ValueError(f"a reroll, and nothing else, asks for a take from 2 to {MAX_TAKE}, not {self.take}")
        if (self.action == "note") != bool(self.note.strip()) or len(self.note) > MAX_NOTE:
            raise ValueError(f"a note, and nothing else, has a text of 1 to {MAX_NOTE} characters")
        if (self.action == "undo") != bool(self.undoes):
            raise ValueError("an undo, and nothing else, names the decision that it takes back")
        if self.at.tzinfo is None:
            raise ValueError("the time needs a time zone")
        for text in (*names, self.note):
            text.encode()  # UnicodeEncodeError, which is a ValueError, of what is no Unicode
        object.__setattr__(self, "at", self.at.astimezone(timezone.utc))
        values = [getattr(self, name) for name in _SCHEMA.names[1:-1]]
        told = json.dumps([*values, self.at.isoformat(timespec="microseconds")])
        object.__setattr__(self, "decision_id", hashlib.sha256(told.encode()).hexdigest()[:32])


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a picture stands after everything that was decided about it.

    Attributes:
        picked: the take that is its picture, by asset id; None where nobody has picked one.
        rejected: the takes that are not, by asset id.
        wanted_takes: numbers of the takes that were asked for, made or not.
        notes: the notes, oldest first.
        last: the last decision that counts.
    """

    picked: str | None
    rejected: frozenset[str]
    wanted_takes: frozenset[int]
    notes: tuple[Decision, ...]
    last: Decision


def standing(decisions: Iterable[Decision]) -> dict[str, Standing]:
    """What follows from decisions, whatever their order and however often each is there.

    Returns:
        By picture id, of those pictures about which a decision counts.
    """
    every = {one.decision_id: one for one in decisions}
    undone = {(one.picture_id, one.undoes) for one in every.values() if one.action == "undo"}
    by_picture: dict[str, list[Decision]] = {}
    for one in every.values():
        if one.action != "undo" and (one.picture_id, one.decision_id) not in undone:
            by_picture.setdefault(one.picture_id, []).append(one)
    return {picture: _stands(own) for picture, own in by_picture.items()}


def _stands(decisions: list[Decision]) -> Standing:
    decisions.sort(key=lambda one: (one.at, one.decision_id))
    picked: str | None = None
    rejected: set[str] = set()
    for one in decisions:
        if one.action == "pick":
            picked = one.asset_id
            rejected.discard(one.asset_id)
        elif one.action == "reject":
            rejected.add(one.asset_id)
            picked = None if picked == one.asset_id else picked
    wanted = frozenset(one.take for one in decisions if one.take is not None)
    notes = tuple(one for one in decisions if one.action == "note")
    return Standing(picked, frozenset(rejected), wanted, notes, decisions[-1])


def next_take(takes: Iterable[int], stands: Standing | None) -> int:
    """The number of the take that a reroll asks for: one more than any that is there or was asked for.

    Two people who ask at the same time ask for the same one, which is made once.

    Args:
        takes: numbers of the takes that are there.
        stands: what was decided about the picture.
    """
    return 1 + max([1, *takes, *(stands.wanted_takes if stands else ())])


def decided_rows(table: pa.Table, stands: Mapping[str, Standing]) -> pa.Table:
    """The rows of pictures, as :func:`~consistory_ray.output.index.takes.chosen_rows`, after people have decided.

    A take that was picked is its scene's picture, if it is there; one that was rejected never is, so that a scene all
    of whose takes were rejected has none.

    Args:
        table: see :func:`~consistory_ray.output.index.takes.chosen_rows`; with anchors or without.
        stands: of :func:`standing`.
    """
    rejected = [asset_id for one in stands.values() for asset_id in one.rejected]
    if rejected:
        table = table.filter(pc.invert(pc.is_in(table["asset_id"], value_set=pa.array(rejected, pa.string()))))
    if not len(table):
        return table
    wanted = pa.array([one.picked for one in stands.values() if one.picked is not None], pa.string())
    ok = pc.equal(table["status"], "ok")
    not_picked = pc.invert(pc.and_(ok, pc.is_in(table["asset_id"], value_set=wanted))).to_numpy()
    codes = picture_ids(table).combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    score = pc.fill_null(table["score"], -np.inf).to_numpy()
    take = pc.fill_null(table["take"], 1).to_numpy()
    order = np.lexsort((take, -score, pc.invert(ok).to_numpy(), not_picked, codes))  # the last key counts most
    first = np.ones(len(order), np.bool_)
    first[1:] = codes[order[1:]] != codes[order[:-1]]
    return table.take(pa.array(np.sort(order[first])))


def write_decisions(store: OutputStore, decisions: Iterable[Decision]) -> str:
    """Add decisions, all of them or none; returns the path of their part, empty without any. Safe to do again.

    Raises:
        StorageError: the storage failed.
    """
    made = list(decisions)
    return _add(store, made) if made else ""


def read_decisions(output: Output) -> tuple[list[Decision], dict[str, str]]:
    """All decisions, each once, by time; and why parts cannot be used, by their paths.

    Raises:
        StorageError: the storage failed.
    """
    return DecisionReader(as_store(output)).read()


class DecisionReader:
    """Reads an output's decisions again and again: parts never change, so only new ones are fetched.

    Args:
        store: the output.
    """

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._parts: dict[str, list[Decision] | str] = {}

    @property
    def parts(self) -> tuple[str, ...]:
        """Paths of those that were there at the last reading and can be used."""
        return tuple(path for path, found in self._parts.items() if not isinstance(found, str))

    def read(self) -> tuple[list[Decision], dict[str, str]]:
        """See :func:`read_decisions`."""
        for _ in range(_READ_TRIES):
            listed = [
                file
                for file in self._store.list_files(DECISIONS_FOLDER)
                if file.path.startswith(_PART) and file.path.endswith(".parquet")
            ]
            found = {file.path: self._parts.get(file.path) or _part(self._store, file) for file in listed}
            self._parts = {path: part for path, part in found.items() if part is not None}
            if len(self._parts) == len(listed):
                break  # else one was merged into another since it was listed, which a new listing has
        else:
            raise StorageError(f"the decisions at {self._store.url} keep changing while they are read")
        every = {one.decision_id: one for part in self._parts.values() if not isinstance(part, str) for one in part}
        broken = {path: part for path, part in self._parts.items() if isinstance(part, str)}
        return sorted(every.values(), key=lambda one: (one.at, one.decision_id)), broken


def merge_decisions(output: Output, at_least: int = MERGE_AT) -> str | None:
    """Make one part of all that can be used, where there are many; returns its path. Parts that cannot be used stay.

    Anybody may do so at any time, several at once, and be killed in between. The new part is written first and never
    has a name that anybody has seen before, so nobody can be about to delete it: whatever is deleted lies in a part
    that was made after it was read.

    Raises:
        StorageError: the storage failed; nothing is lost.
    """
    store = as_store(output)
    reader = DecisionReader(store)
    decisions, _ = reader.read()
    if len(reader.parts) < max(2, at_least):
        return None
    merged = _add(store, decisions, nonce=uuid.uuid4().hex)
    delete_all(store, reader.parts)
    return merged


def _add(store: OutputStore, decisions: list[Decision], nonce: str = "") -> str:
    rows = [{name: getattr(one, name) for name in _SCHEMA.names} for one in decisions]
    metadata = {_VERSION_KEY: str(_VERSION).encode(), **({b"nonce": nonce.encode()} if nonce else {})}
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA.with_metadata(metadata)), buffer, compression="zstd")
    path = _name(buffer.getvalue())
    store.write_atomic(path, buffer.getvalue())
    return path


def _name(data: bytes) -> str:
    return f"{_PART}{hashlib.sha256(data).hexdigest()[:32]}.parquet"


def _part(store: OutputStore, file: StoredFile) -> list[Decision] | str | None:
    """A part's decisions, or why it cannot be used; None where it is gone."""
    if file.size > _MAX_BYTES:
        return "it is too large"
    try:
        return _decoded(file.path, store.read(file.path))
    except MissingFileError:
        return None
    except (UnfitFileError, ValueError, TypeError, pa.ArrowException, OSError, KeyError, OverflowError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__


def _decoded(path: str, data: bytes) -> list[Decision]:
    """A part's decisions.

    Raises:
        ValueError, TypeError, ArrowException, OSError: it is no such part, or holds what nobody has decided.
    """
    if _name(data) != path:
        raise ValueError("its content is not what its name says")
    file = pq.ParquetFile(pa.BufferReader(data))
    version = int((file.schema_arrow.metadata or {}).get(_VERSION_KEY, b"0"))
    if not 1 <= version <= _VERSION:
        raise ValueError(f"it has version {version}, this package reads 1 to {_VERSION}")
    groups = range(file.metadata.num_row_groups)
    grown = sum(file.metadata.row_group(number).total_byte_size for number in groups)
    if grown > _MAX_BYTES or file.metadata.num_rows > _MAX_ROWS:
        raise ValueError("it is too large")
    found = []
    for row in file.read(columns=_SCHEMA.names).cast(_SCHEMA).to_pylist():
        told = row.pop("decision_id")
        one = Decision(**_whole(row))
        if one.decision_id != told:
            raise ValueError("a decision's id is not that of what it says")
        found.append(one)
    return found


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    missing = [item.name for item in _SCHEMA if not item.nullable and row.get(item.name, "") is None]
    if missing:
        raise ValueError(f"{missing[0]} is null")
    return row
