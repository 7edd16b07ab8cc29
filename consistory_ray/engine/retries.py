"""Trying a storage operation again, a little later each time, and not all who were refused at the same moment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from consistory_ray.engine.faults import is_lasting
from consistory_ray.errors import StorageError

T = TypeVar("T")

TRIES = 5
FIRST_DELAY = 0.25


def with_backoff(
    action: Callable[[], T],
    tries: int = TRIES,
    first_delay: float = FIRST_DELAY,
    enough: Callable[[], object] = lambda: False,
) -> T:
    """The result of ``action``, tried up to ``tries`` times with a delay that doubles, or until it is ``enough``.

    Delays are drawn from half to one and a half times that: workers that a bucket throttled do not come back in step.

    Raises:
        StorageError: of the last try, or at once when trying again is pointless: a full disk, missing permissions,
            a damaged index.
    """
    for number in range(tries):
        try:
            return action()
        except StorageError as error:
            if number + 1 == tries or enough() or is_lasting(error):
                raise
            time.sleep(first_delay * 2**number * random.uniform(0.5, 1.5))
    raise AssertionError("unreachable")
