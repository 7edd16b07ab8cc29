"""Trying a storage operation again, a little later each time."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from consistory_ray.engine.faults import Fault, classify
from consistory_ray.errors import StorageError

T = TypeVar("T")

_LASTING = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
)

TRIES = 5
FIRST_DELAY = 0.25


def with_backoff(action: Callable[[], T], tries: int = TRIES, first_delay: float = FIRST_DELAY) -> T:
    """The result of ``action``, tried up to ``tries`` times with a delay that doubles.

    Raises:
        StorageError: of the last try, or at once when trying again is pointless: a full disk, missing permissions,
            a damaged index.
    """
    for number in range(tries):
        try:
            return action()
        except StorageError as error:
            if number + 1 == tries or is_lasting(error):
                raise
            time.sleep(first_delay * 2**number)
    raise AssertionError("unreachable")


def is_lasting(error: StorageError) -> bool:
    """Whether trying again is pointless until somebody has changed something."""
    cause = error.__cause__
    lasting = error.lasting or (isinstance(cause, OSError) and cause.errno in _LASTING)
    return lasting or classify(error) is not Fault.STORAGE
