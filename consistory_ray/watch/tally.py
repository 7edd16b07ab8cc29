"""A run's numbers, counted from its events, and its failures by cause: what displays and metrics have in common."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from consistory_ray.engine.events import (
    AnchorsReady,
    AssetDone,
    AssetFailed,
    Event,
    Paused,
    Pulse,
    RunStarted,
    TakesWanted,
    WorkerLost,
    WorkerReady,
    WorkerReleased,
    WorkersRequested,
)

RATE_WINDOW_SECONDS = 300.0
SUBJECTS_SHOWN = 8
_CONSEQUENCE = re.compile(r"^(?:the anchors of \S+ could not be made|not tried, other scenes of \S+ failed [a-z ]+): ")


class Tally:
    """The numbers of a run so far, from its events.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque()
        self._begun: float | None = None
        self.planned = self.done = self.failed = self.takes = 0
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
        elif isinstance(event, TakesWanted):
            self.planned += len(event.takes)
            self.takes += len(event.takes)
            for take in event.takes:
                self.subjects[take.subject_id][1] += 1
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


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failures of one subject for one cause: the first one's text, and how many there are."""

    text: str
    count: int

    def __str__(self) -> str:
        return self.text if self.count == 1 else f"{self.text} (and {self.count - 1} more pictures of this subject)"


def cause_of(error: str) -> str:
    """What failures of one cause have in common: the first line, without what it only is a consequence of."""
    return _CONSEQUENCE.sub("", error).partition("\n")[0]


def grouped(failures: Iterable[tuple[str, str, str]]) -> list[FailureGroup]:
    """Failures by cause: told once for each subject, whatever number of its pictures they cost.

    Args:
        failures: for each its path in the output, its error, and what is to be shown.
    """
    first: dict[tuple[str, str], str] = {}
    counts: dict[tuple[str, str], int] = {}
    for path, error, text in failures:
        key = (path.split("/")[1] if path.count("/") > 1 else path, cause_of(error))
        first.setdefault(key, text)
        counts[key] = counts.get(key, 0) + 1
    return [FailureGroup(text, counts[key]) for key, text in first.items()]
