"""Fencing: who has lost an output writes and deletes nothing there any more.

Every function that changes an index or a dataset takes ``lost``, which tells why the output may no longer be written to
and is empty while it may, and asks it right before each write and each deletion. What is on its way at that moment
cannot be called back; a lease leaves a quarter of its ttl for that, see :mod:`consistory_ray.output.lease.lease`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from consistory_ray.errors import RunError
from consistory_ray.output.files import bounded_map
from consistory_ray.output.storage import OutputStore

Lost = Callable[[], str]
"""Why the output may no longer be written to; empty while it may. ``str`` itself says that it always may."""


def refuse_if_lost(lost: Lost, what: str) -> None:
    """Go on only while the output may be written to.

    Raises:
        RunError: it may not; the message begins with ``what`` cannot be done and ends with the reason.
    """
    if reason := lost():
        raise RunError(f"{what}: {reason}")


def delete_all(store: OutputStore, paths: Iterable[str], lost: Lost = str) -> None:
    """Delete files side by side, in no order; those that are gone already are no error.

    Callers may not rely on any order: a kill leaves any subset of the files.

    Raises:
        RunError: the output was lost; what was not deleted by then stays.
        StorageError: the storage failed; some are deleted.
    """

    def delete(path: str) -> None:
        refuse_if_lost(lost, f"{store.url}/{path} was not deleted")
        store.delete(path)

    for _ in bounded_map(delete, paths):
        pass
