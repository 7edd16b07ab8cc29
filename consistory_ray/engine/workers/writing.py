"""The threads that encode and write pictures beside the device: as many as it takes to keep up with it."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")

LEAST_WRITERS, MOST_WRITERS = 4, 32
"""Fewer would save nothing: they wait. More pictures than that are in no batch."""


def writers_needed(encoding: float, writing: float, device: float, cores: int) -> int:
    """How many threads encode and write as fast as a device renders.

    Args:
        encoding, writing: seconds of one thread, for the pictures for which the device took so many.
        cores: for the encoding, which computes; more threads than these make it no faster. Writing waits for storage.
    """
    if device <= 0:
        return MOST_WRITERS
    needed = min(math.ceil(encoding / device), cores) + math.ceil(writing / device)
    return max(LEAST_WRITERS, min(MOST_WRITERS, needed))


class Writers:
    """Threads that are added when measurements say that they are too few.

    Attributes:
        count: how many there are.
    """

    def __init__(self) -> None:
        self.count = LEAST_WRITERS
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(self.count, "write")

    def map(self, action: Callable[[A, B], T], first: Sequence[A], second: Sequence[B]) -> list[T]:
        """What an action makes of each pair, in order; raises what it raises."""
        with self._lock:
            futures: list[Future[T]] = [self._threads.submit(action, *pair) for pair in zip(first, second, strict=True)]
        return [future.result() for future in futures]

    def measured(self, encoding: float, writing: float, device: float) -> None:
        """Take note of what a call's pictures took, in seconds, see :func:`writers_needed`."""
        needed = writers_needed(encoding, writing, device, self._cores)
        with self._lock:
            if needed > self.count:
                self._threads.shutdown(wait=False)  # what it has been given is finished
                self._threads, self.count = ThreadPoolExecutor(needed, "write"), needed
