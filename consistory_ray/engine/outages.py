"""Storage that is out of reach: for moments, which an operation is tried again over, or for so long that the run ends.

A run that meets an outage ends like any other that cannot go on: its workers are let go, its lease runs out, nothing is
half-written. Then it is begun again from what the output holds, as a person would do it; there is no second way of
resuming. So an outage costs what was on the devices and the loading of the model, and machines that a cluster may give
back can go meanwhile.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

from consistory_ray.engine.events import Event, Paused, RunSummary, Stopping
from consistory_ray.engine.faults import is_lasting
from consistory_ray.engine.stopping import StopRequest
from consistory_ray.errors import ConsistoryError, RunInterrupted, StorageError

T = TypeVar("T")

TRIES = 5
SHORTEST_DELAY = 0.25
"""An operation on the storage is tried so often, at first so many seconds apart."""
FIRST_DELAY = 5.0
LONGEST_DELAY = 60.0
JITTER = 0.25
"""By up to this share a delay is shortened: runs that lost one storage together do not come back in step."""
_MOST_DOUBLINGS = 10
_POLL_SECONDS = 0.25
"""How long a stop request may go unnoticed."""


def with_backoff(
    action: Callable[[], T],
    tries: int = TRIES,
    first_delay: float = SHORTEST_DELAY,
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


class Try(Protocol):
    """One try of a run, from comparing the output with the plan to the end."""

    @property
    def seconds(self) -> float:
        """For how long it had been delivering pictures."""

    def execute(self) -> RunSummary:
        """Do it."""

    def starts_ray_again(self, error: ConsistoryError) -> bool:
        """Whether what ended it only needs another Ray, now."""

    def met_outage(self, error: ConsistoryError) -> bool:
        """Whether what ended it, after it had begun, is that the output was out of reach, and nothing else."""

    def record_end(self, state: Literal["failed", "interrupted"], error: ConsistoryError) -> None:
        """Say at the output how it ended, if that can be written to after all."""


class Outages:
    """Begins a run again after each outage: how long to wait for the output, and when to stop waiting.

    Args:
        patience: for so many seconds from when the output was found out of reach. They are counted anew once a run has
            gone well for as long, so that a storage that comes and goes ends the run all the same.
        stop: ends the waiting.
        emit: where events go.
        clock: seconds, monotonic.
        sleep: waits so many seconds.
        draw: a random number from 0 to 1.
    """

    def __init__(
        self,
        patience: float,
        stop: StopRequest,
        emit: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._patience = patience
        self._stop = stop
        self._emit = emit
        self._clock = clock
        self._sleep = sleep
        self._draw = draw
        self._since = 0.0
        self._tries = 0
        self._met = False

    def keep_trying(self, begin: Callable[[], Try]) -> RunSummary:
        """Try a run until it ends by itself, or the output was out of reach for too long.

        Args:
            begin: makes the next try.

        Raises:
            ConsistoryError: what ended the last try.
            RunInterrupted: the run was asked to stop.
        """
        while True:
            run = begin()
            try:
                return run.execute()
            except ConsistoryError as error:
                if run.starts_ray_again(error):
                    continue
                outage = run.met_outage(error)
                try:
                    if outage and self.outlast(error, run.seconds):
                        continue
                except RunInterrupted:
                    run.record_end("interrupted", error)
                    raise
                if self._met or outage:
                    run.record_end("failed", error)
                raise

    def outlast(self, error: ConsistoryError, well: float) -> bool:
        """Wait until it is time to try again.

        Args:
            error: what ended the run.
            well: for how many seconds that run had been delivering pictures.

        Returns:
            False, at once, if it was tried for long enough.

        Raises:
            RunInterrupted: the run was asked to stop.
        """
        if self._stop:
            raise self._interrupted(error)
        now = self._clock()
        if not self._met or well > self._patience:
            self._met, self._since, self._tries = True, now, 0
        left = self._since + self._patience - now
        if left <= 0:
            return False
        longest = min(FIRST_DELAY * 2 ** min(self._tries, _MOST_DOUBLINGS), LONGEST_DELAY)
        delay = min(longest * (1 - JITTER * self._draw()), left)
        self._tries += 1
        self._emit(Paused(str(error), delay, left))
        while (rest := now + delay - self._clock()) > 0:
            if self._stop:
                self._emit(Stopping(self._stop.reason, 0))
                raise self._interrupted(error)
            self._sleep(min(rest, _POLL_SECONDS))
        return True

    def _interrupted(self, error: ConsistoryError) -> RunInterrupted:
        return RunInterrupted(f"stopped while the output was out of reach; the same command resumes it: {error}")
