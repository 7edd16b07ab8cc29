"""Pictures whose names have changed in the job are moved to their new places instead of being made again.

An asset's id is a hash of what decides its pixels, which its name does not. For a picture of a new name

1. its file is copied to the new place, with the new names in its parameters and all else, byte for byte, as it was;
2. a row of the new place is committed, which counts from then on because it is the newest one of that asset;
3. the old file is deleted, unless something that is planned or indexed has that place.

A picture is only moved to a place that no row speaks of, so that at every moment each row's file is there and is its
own. Where places are passed on in a row (``a`` becomes ``b``, ``b`` becomes ``c``) the last one goes first. Where they
are swapped nothing can go first: those rows are dropped and the pictures made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.output.assets import mask_path, read_metadata, relabelled, write_asset
from consistory_ray.output.files import bounded_map
from consistory_ray.output.index.index import compact, read_index
from consistory_ray.output.index.rows import IndexRow, table_to_rows
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.lease.fencing import Lost, delete_all, refuse_if_lost
from consistory_ray.output.storage import MissingFileError, OutputStore, UnfitFileError
from consistory_ray.plan.takes import named_by

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Move:
    """One picture: its asset's id, where it lies, where the plan wants it."""

    asset_id: str
    old: str
    new: str

    @property
    def is_possible(self) -> bool:
        """Whether both places differ where capitals make no difference, and are as plans name them."""
        return self.old.lower() != self.new.lower() and named_by(self.new) is not None


def move_pictures(store: OutputStore, moves: Sequence[Move], kept: Iterable[str], lost: Lost = str) -> set[str]:
    """Move pictures whose rows and files are there.

    Args:
        store: the output; the caller is its only writer.
        moves: what to move. No other asset's row may have one of the new places, unless it is moved as well.
        kept: all places that the plan wants or a row that stays has, whose files are not to be deleted.
        lost: why the output may no longer be written to; empty while it may.

    Returns:
        Ids of the moved assets. The rows of all others were dropped.

    Raises:
        RunError: the output is lost.
        StorageError, InputError: see :func:`consistory_ray.output.index.parts.read_parts`.
    """
    waiting = {move.old.lower(): move for move in moves}
    following = {move.new.lower(): move for move in waiting.values()}
    needed = {place.lower() for place in kept if place.lower() in waiting}
    rows, newest = _rows(store, [move.asset_id for move in moves])
    writer = IndexWriter(store, rows_per_part=_BATCH, lost=lost)
    moved: set[str] = set()
    ready = [move for move in waiting.values() if move.is_possible and move.new.lower() not in waiting]
    while ready:
        newest += timedelta(microseconds=1)  # later than all there are, whatever the clocks say
        copies = bounded_map(lambda move: _copy(store, move, rows.get(move.asset_id), lost), ready)
        copied = [replace(row, created_at=newest) for row in copies if row is not None]
        writer.extend(copied)
        writer.flush()
        done = {row.asset_id for row in copied}
        if len(done) < len(ready):
            compact(store, drop={move.asset_id for move in ready} - done, lost=lost)
        _move_masks(store, [move for move in ready if move.asset_id in done], lost)
        useless = [move.old for move in ready if move.asset_id in done and move.old.lower() not in needed]
        delete_all(store, useless, lost)
        moved |= done
        for move in ready:
            del waiting[move.old.lower()]
        ready = [following[place] for move in ready if (place := move.old.lower()) in following]
        ready = [move for move in ready if move.is_possible]
    rest = {move.asset_id for move in moves} - moved
    if rest:
        compact(store, drop=rest, lost=lost)
    return moved


def _move_masks(store: OutputStore, moves: Sequence[Move], lost: Lost) -> None:
    """What shows the subject in given pictures goes with them."""
    folders = {move.old.rpartition("/")[0] for move in moves if move.old.startswith("anchors/")}
    there = {file.path for folder in folders for file in store.list_files(folder)}
    for old, new in ((mask_path(move.old), mask_path(move.new)) for move in moves):
        if old in there:
            refuse_if_lost(lost, f"{store.url}/{old} was not moved")
            store.copy(old, new)
            store.delete(old)


def _rows(store: OutputStore, asset_ids: list[str]) -> tuple[dict[str, IndexRow], datetime]:
    """The rows of these assets by id, and a time that no row of any asset is later than."""
    table = read_index(store)
    chosen = table.filter(pc.is_in(table["asset_id"], value_set=pa.array(asset_ids, pa.string())))
    now = datetime.now(timezone.utc)
    return {row.asset_id: row for row in table_to_rows(chosen)}, max(now, pc.max(table["created_at"]).as_py() or now)


def _copy(store: OutputStore, move: Move, row: IndexRow | None, lost: Lost) -> IndexRow | None:
    """The row of the copy; None where the file is not the one that was indexed."""
    if row is None or row.path != move.old:
        return None
    try:
        data = store.read(move.old)
    except (MissingFileError, UnfitFileError):
        return None
    known = read_metadata(data)
    if hashlib.sha256(data).hexdigest() != row.sha256 or known is None or known.get("asset_id") != row.asset_id:
        return None
    subject, scene = named_by(move.new) or ("", "")
    copied = relabelled(data, {"subject": subject, "scene": scene, "path": move.new})
    if copied is None:
        return None
    refuse_if_lost(lost, f"{store.url}/{move.old} was not moved")
    written = write_asset(store, move.new, copied)
    return replace(row, subject=subject, scene=scene, path=written.path, size=written.size, sha256=written.sha256)
