"""Many small storage operations side by side, with a bound on how many results wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = 16
_WAITING_PER_THREAD = 4


def bounded_map(action: Callable[[T], R], items: Iterable[T], threads: int = THREADS) -> Iterator[R]:
    """``map`` in threads: results in the order of ``items``, which are taken only a little ahead of the results.

    Raises:
        Exception: the first that ``action`` raised, in the order of ``items``; what was not started is not.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(action, item))
                if len(waiting) >= threads * _WAITING_PER_THREAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
