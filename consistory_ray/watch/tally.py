"""The numbers of a run while it goes on, counted from its events: what displays and metrics have in common."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from consistory_ray.engine.events import (
    AnchorsReady,
    AssetDone,
    AssetFailed,
    Event,
    Paused,
    Pulse,
    RunStarted,
    WorkerLost,
    WorkerReady,
    WorkerReleased,
    WorkersRequested,
)

RATE_WINDOW_SECONDS = 300.0
SUBJECTS_SHOWN = 8


class Tally:
    """The numbers of a run so far, from its events.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque()
        self._begun: float | None = None
        self.planned = self.done = self.failed = 0
        self.workers_wanted = self.workers_ready = 0
        self.unplaced = self.short_of_room = 0
        self.device = ""
        self.subjects: dict[str, list[int]] = {}
        self.recent: dict[str, None] = {}

    def take(self, event: Event) -> None:
        """Count an event."""
        if isinstance(event, RunStarted):
            self.planned, self.done, self.failed = event.planned, event.done, 0
            self.subjects = {item.subject_id: [item.done, item.planned] for item in event.subjects}
        elif isinstance(event, WorkersRequested):
            self.workers_wanted, self.device = event.count, event.device
        elif isinstance(event, WorkerReady):
            self.workers_ready += 1
            self._begun = self._begun if self._begun is not None else self._clock()
        elif isinstance(event, WorkerLost | WorkerReleased):
            self.workers_ready = max(0, self.workers_ready - 1)
        elif isinstance(event, Pulse):
            self.unplaced, self.short_of_room = event.unplaced, event.short_of_room
        elif isinstance(event, Paused):
            self.workers_wanted = self.workers_ready = self.unplaced = self.short_of_room = 0
            self._times.clear()
            self._begun = None
        elif isinstance(event, AnchorsReady):
            self._touch(event.subject_id)
        elif isinstance(event, AssetDone):
            self.done += 1
            self._times.append(self._clock())
            self.subjects[event.asset.subject_id][0] += 1
            self._touch(event.asset.subject_id)
        elif isinstance(event, AssetFailed):
            self.failed += 1
            self._touch(event.asset.subject_id)

    @property
    def left(self) -> int:
        """Pictures still to come."""
        return self.planned - self.done - self.failed

    @property
    def rate(self) -> float | None:
        """Pictures per second over the last minutes, None before the first."""
        now = self._clock()
        while self._times and self._times[0] < now - RATE_WINDOW_SECONDS:
            self._times.popleft()
        if not self._times or self._begun is None:
            return None
        return len(self._times) / max(1e-3, min(RATE_WINDOW_SECONDS, now - self._begun))

    @property
    def seconds_left(self) -> float | None:
        """Time to the end at that rate, None before the first picture."""
        rate = self.rate
        return self.left / rate if rate else None

    def _touch(self, subject_id: str) -> None:
        self.recent.pop(subject_id, None)
        self.recent[subject_id] = None
        if len(self.recent) > SUBJECTS_SHOWN:
            del self.recent[next(iter(self.recent))]
