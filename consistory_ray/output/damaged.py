"""Index parts that cannot be read are moved to a folder of their own, so that no run has to wait for a person.

Nothing is lost by it that cannot be had again: the pictures such a part spoke of carry their asset's id inside.
"""

from __future__ import annotations

from collections.abc import Iterable

from consistory_ray.output.index.index import part_problem, sound_rows, write_part
from consistory_ray.output.lease.fencing import Lost, refuse_if_lost
from consistory_ray.output.storage import SET_ASIDE, OutputStore

__all__ = ["SET_ASIDE", "set_aside"]


def set_aside(store: OutputStore, parts: Iterable[str], lost: Lost = str) -> dict[str, str]:
    """Move index parts to the folder ``damaged``, those that still cannot be read when they are looked at again.

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
