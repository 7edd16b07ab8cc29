"""The workers of a run: welcomed or refused, told to leave, let go. What they had is the dispatch's to settle."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from consistory_ray.engine.cluster.cluster_watch import ClusterWatch
from consistory_ray.engine.dispatching.housekeeping import Housekeeping
from consistory_ray.engine.events import Notice, WorkerLeaving, WorkerLost, WorkerReady, WorkerReleased
from consistory_ray.engine.faults import Failure, Fault
from consistory_ray.engine.ledger import Ledger
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.scheduling.scheduler import Scheduler
from consistory_ray.errors import CheckpointError, InputError, Problem

if TYPE_CHECKING:
    from consistory_ray.engine.dispatching.pool import WorkerPool
    from consistory_ray.engine.workers.worker import Hello

GOING = "its machine is going"


class Workforce:
    """Who is there.

    Args:
        scheduler: gives work to those that are.
        pool: starts and ends them.
        ledger: the books.
        options: the run's options.
        url: the output, for messages.
        adapts: whether they may take as many scenes at a time as they say fit into their memory.
        watch: whether Ray is still there.

    Attributes:
        ready: the names of those that may be given work, or are leaving.
        leaving: those that only finish what they have.
        keeper: what is looked after now and then.
        cut_off: the last worker to come up without reaching the output.
        refused: what the first workers had against the job.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        pool: WorkerPool,
        ledger: Ledger,
        options: RunOptions,
        url: str,
        adapts: bool = False,
        watch: ClusterWatch | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._pool = pool
        self._ledger = ledger
        self._options = options
        self._url = url
        self._adapts = adapts
        self.keeper = Housekeeping(options, scheduler, pool, ledger.emit, watch)
        self.ready: set[str] = set()
        self.leaving: set[str] = set()
        self.cut_off: Failure | None = None
        self.refused: CheckpointError | InputError | None = None
        self._told: set[str] = set()  # what they have said about the model
        self._nice = False  # whether it was told that they let others go first

    @property
    def staying(self) -> set[str]:
        """Those that are ready and not leaving."""
        return self.ready - self.leaving

    def greeted(self, name: str, outcome: Hello | Failure) -> Failure | None:
        """A worker has come up, or has not.

        Returns:
            What it is lost for; None if it is not.

        Raises:
            CheckpointError, InputError: none of the first workers is of any use, so that it must be the job.
        """
        refusal = self._refusal(outcome)
        if refusal is not None:
            return self._unwelcome(name, refusal)
        if isinstance(outcome, Failure):
            if outcome.fault is Fault.STORAGE and not outcome.lasting:
                self.cut_off = outcome
            return outcome
        self.cut_off = None
        self._ledger.fingerprint = outcome.fingerprint
        self._ledger.controlnets = outcome.controlnets
        self._pool.held = False
        self._pool.greeted(name, outcome.node)
        self.ready.add(name)
        self.keeper.joined(outcome.node)
        batches = outcome.batches if self._adapts else None
        self._scheduler.add_worker(name, outcome.node, batches, shaken=self._pool.deaths(name) > 0)
        self._ledger.emit(WorkerReady(name, outcome.place, outcome.seconds))
        self._tell(outcome)
        return None

    def lost(self, name: str, failure: Failure) -> tuple[str, ...]:
        """A worker is gone, or of no use.

        Returns:
            The ids of the assets that are given up because of it.
        """
        if failure.fault is not Fault.STORAGE:
            self.cut_off = None
        self._forget(name)
        given_up = self._scheduler.remove_worker(name, failure.fault)
        replaced = self._pool.lost(name, failure, own_fault=not given_up)
        self._pool.acquit(self._scheduler.take_acquitted())
        self._ledger.emit(WorkerLost(name, str(failure), replaced, failure.fault.value))
        return given_up

    def overdue(self) -> list[tuple[str, Failure]]:
        """Those that do not come up."""
        seconds = self._options.first_call_seconds
        failure = Failure(Fault.STUCK, "Stuck", f"the model was not loaded within {seconds:.0f} s")
        return [(name, failure) for name in self._pool.overdue(seconds)]

    def leave(self, name: str, reason: str) -> None:
        """Let a worker finish what it has on its device, and give it nothing more."""
        if name in self.staying:
            self.leaving.add(name)
            self._scheduler.retire_worker(name)
            self._pool.actor(name).drain.remote()
            self._ledger.emit(WorkerLeaving(name))
            self._ledger.emit(Notice(f"{name} finishes its batch and leaves: {reason}"))

    def let_go(self, now: float, saving: Collection[str]) -> None:
        """Of those that leave the ones that have finished, and those that there is nothing left for.

        Args:
            now: by the monotonic clock.
            saving: those that are writing a cache.
        """
        for name in [name for name in self.leaving if not self._scheduler.calls_of(name) and name not in saving]:
            self._remove(name)
            self._pool.lost(name, Failure(Fault.NODE_DIED, "Leaving", GOING))
            self._ledger.emit(WorkerReleased(name, GOING))
        for name in set(self.keeper.idle(now, self.ready)).difference(saving, self.leaving):
            self._remove(name)
            self._pool.release(name)
            self._ledger.emit(WorkerReleased(name, "there is nothing left for it"))

    def drain(self) -> None:
        """All of them are to finish what they have on their devices, and to refuse the rest."""
        for name in self.ready:
            self._pool.actor(name).drain.remote()

    def _remove(self, name: str) -> None:
        self._forget(name)
        self._scheduler.remove_worker(name, Fault.NODE_DIED)

    def _forget(self, name: str) -> None:
        self.ready.discard(name)
        self.leaving.discard(name)
        self.keeper.watchdog.forget(name)

    def _tell(self, outcome: Hello) -> None:
        """What a worker that has come up makes somebody need to know, once a run."""
        for notice in set(outcome.notices) - self._told:
            self._told.add(notice)
            self._ledger.emit(Notice(notice))
        if outcome.niceness > os.nice(0) and not self._nice:
            self._nice = True
            what = f"{outcome.place} runs at nice {outcome.niceness}: beside any other busy process it gets little done"
            self._ledger.emit(Notice(f"{what}; start that Ray with RAY_worker_niceness=0 in its nodes' environment"))

    def _refusal(self, outcome: Hello | Failure) -> CheckpointError | InputError | None:
        """What a worker that has come up has against the job, or the job against it."""
        if isinstance(outcome, Failure):
            if outcome.fault is Fault.STORAGE and not self._ledger.fingerprint:  # as if it did not see the output
                fix = f"give the workers access to it, and credentials where it needs them: {outcome}"
                return InputError("the workers cannot reach the output", [Problem("output", self._url, fix)])
            bad = outcome.fault in (Fault.BAD_MODEL, Fault.BAD_ASSET)
            return CheckpointError(outcome.message) if bad else None
        if not outcome.sees_output:
            fix = f"use a URL or a shared folder, {outcome.place} does not see the run record that was just written"
            return InputError("the workers cannot reach the output", [Problem("output", self._url, fix)])
        if self._ledger.fingerprint not in ("", outcome.fingerprint):
            return CheckpointError(f"{outcome.place} has loaded other weights than the workers before it")
        if self._ledger.fingerprint and self._ledger.controlnets not in ((), outcome.controlnets):
            return CheckpointError(f"{outcome.place} has loaded other ControlNets than the workers before it")
        return None

    def _unwelcome(self, name: str, refusal: CheckpointError | InputError) -> Failure | None:
        """A worker of no use. If there were any that are, it is its machine's fault and another one is tried."""
        if self._ledger.fingerprint:
            return Failure(Fault.BROKEN, type(refusal).__name__, refusal.message)
        self.refused = self.refused or refusal
        self._pool.release(name)
        self._pool.held = True
        if not self._pool.hellos:
            raise self.refused
        return None
