"""What a run's workers cost while they are there, and the stop that is asked for before that is too much."""

from __future__ import annotations

import time
from collections.abc import Callable

from consistory_ray.engine.events import (
    BatchDone,
    Event,
    Paused,
    Pulse,
    RunFinished,
    WorkerLost,
    WorkerReady,
    WorkerReleased,
    WorkersRequested,
)
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.stopping import StopRequest
from consistory_ray.plan.pricing import HOUR


class Spending:
    """Takes a run's events and counts the hours that workers hold their devices; it lasts over all tries of the run.

    A worker counts from when its process has a place, so that loading the model is paid for, until it is let go. On
    GPUs it counts as the share of a GPU that it holds; without, as one machine.

    Args:
        options: of the run: its rate, its ``max_cost``, the shares and the grace.
        stop: is asked once the money would not last for one more call of each worker.
        clock: seconds, monotonic.

    Attributes:
        reached: whether it was this that asked for the stop.
    """

    def __init__(self, options: RunOptions, stop: StopRequest, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._stop = stop
        self._clock = clock
        self._until = clock()
        self._share = 1.0
        self._ready: set[str] = set()
        self._starting = 0
        self._worker_seconds = 0.0
        self._longest_call = 0.0
        self.reached = False

    def take(self, event: Event) -> None:
        """Count until now, then what the event changes; and ask for the stop if it is time."""
        self._count()
        if isinstance(event, WorkersRequested):
            self._share = self._options.gpus_per_worker if event.device == "cuda" else 1.0
        elif isinstance(event, WorkerReady):
            self._ready.add(event.worker)
            self._starting = max(0, self._starting - 1)
        elif isinstance(event, WorkerLost | WorkerReleased):
            self._ready.discard(event.worker)
        elif isinstance(event, Pulse):
            self._starting = max(0, event.requested - event.unplaced)
        elif isinstance(event, BatchDone):
            self._longest_call = max(self._longest_call, sum(event.phases.values()))
        elif isinstance(event, Paused | RunFinished):
            self.rest()
        self._stop_in_time()

    def rest(self) -> None:
        """No worker is there any more."""
        self._count()
        self._ready.clear()
        self._starting = 0

    @property
    def device_hours(self) -> float:
        """Of all workers together, so far."""
        self._count()
        return self._worker_seconds * self._share / HOUR

    @property
    def cost(self) -> float | None:
        """Money for those; None where no price is known."""
        return self._options.rate.cost(self.device_hours)

    def to_record(self) -> dict[str, float]:
        """Both, as far as they are known, rounded."""
        cost = self.cost
        told = {"device_hours": self.device_hours, **({"cost": cost} if cost is not None else {})}
        return {name: round(value, 6) for name, value in told.items()}

    def _count(self) -> None:
        now = self._clock()
        self._worker_seconds += (now - self._until) * (len(self._ready) + self._starting)
        self._until = now

    def _stop_in_time(self) -> None:
        """Calls that are out are still finished, and paid for."""
        limit, cost = self._options.max_cost, self.cost
        if limit is None or cost is None or self._stop:
            return
        last = min(self._longest_call, self._options.grace_seconds) * (len(self._ready) + self._starting)
        more = self._options.rate.cost(last * self._share / HOUR) or 0.0
        if cost + more >= limit:
            self.reached = True
            self._stop.ask(f"--max-cost {limit:g} {self._options.rate.currency}".rstrip())
