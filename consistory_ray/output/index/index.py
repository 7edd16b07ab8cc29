"""The index: one Parquet row per asset, in immutable parts named by their content.

Writers only ever add parts, and write a row after its picture, so a reader at any moment sees whole rows of existing
files. Several rows may speak of one asset (a retry, a second run); which one counts is decided by :func:`latest_rows`,
from the rows alone, whatever the number, names and order of the parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.output.index.parts import list_parts, part_problem, read_parts, sound_rows, write_part
from consistory_ray.output.index.rows import latest_rows
from consistory_ray.output.lease.fencing import Lost, delete_all, refuse_if_lost
from consistory_ray.output.storage import SET_ASIDE, Output, OutputStore, as_store


def read_index(output: Output) -> pa.Table:
    """The index: one row per asset as :func:`latest_rows` decides; empty when there is none yet.

    Raises:
        CorruptIndexError, InputError, StorageError: see :func:`.parts.read_parts`.
    """
    return latest_rows(read_parts(as_store(output))[0])


def current_index(output: Output, asset_ids: Collection[str]) -> pa.Table:
    """The index's rows of these assets. Others, of earlier versions of the job, stay in the index as its history."""
    table = read_index(output)
    return table.filter(pc.is_in(table["asset_id"], value_set=pa.array(list(asset_ids), pa.string())))


def compact(
    output: Output, *, drop: Collection[str] = (), only: Collection[str] | None = None, lost: Lost = str
) -> str | None:
    """Merge all parts into one that holds only the rows that count, and delete the merged ones.

    The new part is written first: a kill in between leaves rows twice, which readers do not notice, and a reader that
    meets a deleted part lists again. Parts are deleted side by side, and whatever subset of them a kill leaves, it says
    nothing that the new part does not say better, since that holds the newest rows of all of them. Rows to drop are the
    exception, an older one could come back to life; so everything is merged before, and they go with one deletion.

    Only one process may compact at a time, the one that holds the output.

    Args:
        output: the output.
        drop: asset ids whose rows are to go, so that they are rendered again.
        only: paths of the parts to merge, instead of all. No part outside may have rows of a time between theirs.
        lost: why the output may no longer be written to; empty while it may.

    Returns:
        The path of the one part, or None when no row is left.

    Raises:
        CorruptIndexError, InputError, StorageError: see :func:`.parts.read_parts`; nothing was deleted.
        RunError: the output was lost; at most the merged part was written and some of the merged ones deleted.
    """
    store = as_store(output)
    others = () if only is None else set(list_parts(store)).difference(only)
    table, parts = read_parts(store, skip=others)
    table = latest_rows(table)
    merged = None
    if not drop or len(parts) > 1:
        merged = _replace_parts(store, parts, table, lost)
        parts = [] if merged is None else [merged]
    if drop:
        table = table.filter(pc.invert(pc.is_in(table["asset_id"], value_set=pa.array(list(drop), pa.string()))))
        merged = _replace_parts(store, parts, table, lost)
    return merged


def _replace_parts(store: OutputStore, parts: list[str], table: pa.Table, lost: Lost) -> str | None:
    """Write the rows as one part, then delete those parts; the path of the new one, None without rows."""
    refuse_if_lost(lost, "the index was not merged")
    merged = write_part(store, table) if len(table) else None
    delete_all(store, [path for path in parts if path != merged], lost)
    return merged


def set_aside(store: OutputStore, parts: Iterable[str], lost: Lost = str) -> dict[str, str]:
    """Move index parts to the folder ``damaged``, those that still cannot be read when they are looked at again.

    So no run has to wait for a person. Nothing is lost that cannot be had again: the pictures that such a part spoke of
    carry their asset's id inside.

    Those of its rows that can be used stay in the index, as another part. A part is copied before it is deleted: a
    kill in between leaves both, and it is moved once more.

    Args:
        store: the output; the caller is its only writer.
        parts: their paths.
        lost: why the output may no longer be written to; empty while it may.

    Returns:
        Why each part that was moved cannot be read, by the path that it had.

    Raises:
        InputError: a part was written by a newer version.
        RunError: the output is lost.
        StorageError: the storage failed.
    """
    reasons = {path: part_problem(store, path) for path in parts}
    moved = {path: reason for path, reason in reasons.items() if reason}
    for path in moved:
        sound = sound_rows(store, path)
        data = store.read(path)
        refuse_if_lost(lost, f"{store.url}/{path} was not moved away")
        store.write_atomic(f"{SET_ASIDE}/{path}", data)
        if len(sound):
            write_part(store, sound)
        refuse_if_lost(lost, f"{store.url}/{path} was not deleted")
        store.delete(path)
    return moved
