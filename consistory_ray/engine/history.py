"""What a run remembers of its earlier tries, and what its record at the output says of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from consistory_ray.engine.cluster.placement import WorkerShape
from consistory_ray.engine.ledger import Ledger
from consistory_ray.engine.outages import with_backoff
from consistory_ray.engine.spending import Spending
from consistory_ray.engine.stopping import EXIT_MAX_COST, StopRequest
from consistory_ray.errors import ConsistoryError, InputError, MaxCostReached, OutageError, Problem, RunError, RunFailed
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.run_record import (
    RUN_RECORD,
    RunRecord,
    ended_the_same,
    look_for_record,
    read_run_record,
    write_run_record,
)
from consistory_ray.output.storage import OutputStore


@dataclass
class History:
    """What a run takes along when it is begun again after an outage.

    Attributes:
        record: as it was at first.
        spending: what its workers cost.
        began: by the monotonic clock.
        recorded: whether the record was written, which is when it has begun.
        found: how many pictures were there at first.
        fingerprint: of the model, once a worker has loaded it.
        given_up: ids of the assets that were given up, and not made since.
        spent: seconds of all workers together, see :class:`~consistory_ray.engine.events.RunSummary`.
        shape: what it asked the cluster for: fewer machines may be left after an outage, and come back.
        stopped: why there is nothing more to try, only to finish.
        books: of the try that was stopped.
        lost_ray: how the Ray that the run had started ended, if it did.
        forecast: what was expected at first.
    """

    record: RunRecord
    spending: Spending
    began: float = field(default_factory=time.monotonic)
    recorded: bool = False
    found: int = 0
    fingerprint: str = ""
    given_up: set[str] = field(default_factory=set)
    spent: dict[str, float] = field(default_factory=dict)
    shape: WorkerShape | None = None
    stopped: str = ""
    books: Ledger | None = None
    lost_ray: str = ""
    forecast: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began


class RecordKeeper:
    """The run record as one try of the run finds and writes it.

    Args:
        store: the output.
        history: of the run; its record is what this try begins with.
        stop: whether to give up over a storage that fails.
    """

    def __init__(self, store: OutputStore, history: History, stop: StopRequest) -> None:
        self._store = store
        self._again = history.recorded
        self._record = history.record
        self._stop = stop

    def refuse_repetition(self) -> None:
        """A scheduler that repeats whatever has failed is told at once what would come out again.

        Raises:
            RunFailed, InputError, MaxCostReached: as the run did that it repeats.
        """
        submission = self._record.submission
        if submission is None:
            return
        there = self._read()
        code = ended_the_same(self._record, there)
        if code is None or there is None:
            return
        failed = int(there.totals.get("failed", 0))
        short = int(there.totals.get("short", 0))
        lack = f"{failed} pictures failed" + (f" and {short} fall short of the gate" if short else "")
        why = there.error or f"{lack}, see consistory-ray status {self._store.url}"
        if code == EXIT_MAX_COST:
            raise MaxCostReached("this submission was stopped by its --max-cost; submit it anew to spend as much again")
        told = f"this submission has run already and would end the same way: {why}"
        if code == 1:
            raise RunFailed(told)
        fix = "change the job, or submit it anew (consistory-ray retry tries again what failed)"
        raise InputError(told, [Problem("--submission", submission, fix)])

    def look_for(self, *, needed: bool) -> None:
        """The record of an earlier run, if it is ``needed``, or of an earlier try of this one, if there was one.

        Once before the lease is taken, since a mount may have gone, and once after it, since another run may have come
        and gone.

        Raises:
            OutageError: this is not the storage that the run was begun in.
            InputError: there was no earlier run.
            RunError: another run was there meanwhile.
        """
        if not self._again and not needed:
            return
        there = self._read()
        if there is None and look_for_record(self._store).problem:
            return  # something ran there, which is all that has to be known
        if there is None and self._again:
            raise OutageError(f"{self._store.url} is empty: it is not the storage that the run was begun in")
        if there is None:
            fix = "give the output of an earlier run, or render: a retry makes only what failed before"
            raise InputError("there is nothing to retry", [Problem("output", self._store.url, fix)])
        if self._again and there.started_at < self._record.started_at:
            raise OutageError(
                f"{self._store.url} is as it was before this run: it is not the storage that the run was begun in, "
                f"its last run began at {there.started_at}"
            )
        if self._again and there.started_at != self._record.started_at:
            raise RunError(f"another run, of {there.started_at}, has been at {self._store.url} meanwhile")

    def write(self, lost: str, totals: Mapping[str, Any], fingerprint: str, **changes: Any) -> None:
        """Write it.

        Args:
            lost: why the output may no longer be written to; empty while it may.
            totals: numbers of pictures, and seconds.
            fingerprint: of the model; empty while none was loaded.
            changes: of the record's other fields.

        Raises:
            RunError: the output is lost.
            StorageError: the storage failed several times over.
        """
        if lost:
            raise RunError(f"the run record cannot be written: {lost}")
        self._record = self._record.update(totals=dict(totals), model_fingerprint=fingerprint or None, **changes)
        with_backoff(lambda: write_run_record(self._store, self._record))

    def end(self, owner: str, state: Literal["failed", "interrupted"], error: ConsistoryError) -> None:
        """Say how it ended after an outage, if the output can be written to after all and nobody else was there."""

        def refuse(message: str) -> None:
            raise RunError(message)

        def own() -> RunRecord | None:
            there = read_run_record(self._store)
            same = there is not None and (there.started_at, there.state) == (self._record.started_at, "running")
            return there if same else None

        with suppress(ConsistoryError):
            if own() is None:  # another place, or another run's: not even a lease is left there
                return
            with Lease.acquire(self._store.begun(RUN_RECORD), owner, on_wait=refuse):
                if (there := own()) is not None:
                    write_run_record(self._store, there.update(state=state, error=told(error)))

    def _read(self) -> RunRecord | None:
        return with_backoff(lambda: read_run_record(self._store), enough=lambda: self._stop)


def told(error: BaseException) -> str:
    """An error as the record holds it."""
    return f"{type(error).__name__}: {error}"
