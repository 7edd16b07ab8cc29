"""Which workers have stopped making progress: pure bookkeeping, told the time by its caller."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass

from consistory_ray.engine.scheduling.state import Call

SAMPLES = 101
"""Calls of a kind whose times make up the median: enough to be steady, few enough to follow a change."""


@dataclass(slots=True)
class _Watched:
    since: float
    calls: dict[int, Call]


class Watchdog:
    """Compares how long each worker has been silent with what its call should take.

    A worker takes its calls one after the other, so its clock starts when it gets a call while it has none, and again
    whenever one comes back.

    Args:
        factor: so many times the median of its kind may a call take.
        floor: and at least so many seconds.
        unknown: the limit in seconds while there is no median.
    """

    def __init__(self, factor: float, floor: float, unknown: float) -> None:
        self._factor = factor
        self._floor = floor
        self._unknown = unknown
        self._workers: dict[str, _Watched] = {}
        self._seconds: dict[str, deque[float]] = {}

    def submitted(self, call: Call, now: float) -> None:
        """A worker was given a call."""
        watched = self._workers.setdefault(call.worker, _Watched(now, {}))
        if not watched.calls:
            watched.since = now
        watched.calls[call.call_id] = call

    def returned(self, call: Call, now: float, *, counts: bool = True) -> None:
        """A call came back; ``counts`` unless it failed, which says nothing about how long it should take."""
        watched = self._workers.get(call.worker)
        if watched is None or watched.calls.pop(call.call_id, None) is None:
            return
        if counts:
            times = self._seconds.setdefault(_kind(call), deque(maxlen=SAMPLES))
            times.append((now - watched.since) / max(1, len(call.assets)))
        watched.since = now

    def forget(self, worker: str) -> None:
        """The worker is gone."""
        self._workers.pop(worker, None)

    def stuck(self, now: float) -> list[tuple[str, float]]:
        """Workers that have been silent for too long, and for how many seconds."""
        found = []
        for name, watched in self._workers.items():
            if watched.calls and now - watched.since > self._limit(next(iter(watched.calls.values()))):
                found.append((name, now - watched.since))
        return found

    def _limit(self, call: Call) -> float:
        times = self._seconds.get(_kind(call))
        if not times:
            return max(self._floor, self._unknown)
        return max(self._floor, self._factor * statistics.median(times) * max(1, len(call.assets)))


def _kind(call: Call) -> str:
    return "load" if call.kind == "anchors" and not call.assets else call.kind
