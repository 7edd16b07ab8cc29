"""The loop between the scheduler, which decides, and the workers, which do."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any

import ray

from consistory_ray.engine.cluster.cluster_watch import ClusterWatch
from consistory_ray.engine.dispatching.cache_keeping import CacheKeeper, bare
from consistory_ray.engine.dispatching.pool import WorkerPool
from consistory_ray.engine.dispatching.workforce import GOING, Workforce
from consistory_ray.engine.events import AnchorsReady, BatchDone, Notice, Retried, Stopping, TakesWanted, WorkerLost
from consistory_ray.engine.faults import Failure, Fault
from consistory_ray.engine.ledger import Ledger, died_with
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.scheduling.scheduler import Scheduler
from consistory_ray.engine.scheduling.state import Call
from consistory_ray.engine.stopping import StopRequest
from consistory_ray.engine.takes import TakeKeeper
from consistory_ray.engine.workers.worker import Report
from consistory_ray.errors import ClusterLostError, OutageError, RunError, RunInterrupted

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Asset, SubjectPlan

WAIT_SECONDS = 0.25
"""How long a stop request may go unnoticed."""
STALL_SECONDS = 20.0
"""A run in which nothing is out for so long, although work is left, would wait for ever."""
FETCH_SECONDS = 60.0
"""A report of a few hundred bytes that takes longer to arrive is lost."""

_log = logging.getLogger(__name__)


class NoWorkerLeft(RunError):
    """Workers died, or did not come up, too often in a row."""


class Dispatch:
    """Drives one run until nothing is left, or until it has to stop.

    Args:
        subjects: the plan's subjects by id.
        assets: the assets still to be made, by id.
        scheduler: the decisions.
        pool: the workers' processes.
        workforce: the workers that are there.
        caches: the anchor caches that are alive.
        ledger: the books.
        stop: whether to stop.
        options: the run's options.
        lost: tells why the output may no longer be written to, empty while it may.
        watch: whether Ray is still there.
        takes: of the plan's gate.
    """

    def __init__(
        self,
        subjects: Mapping[str, SubjectPlan],
        assets: dict[str, Asset],
        scheduler: Scheduler,
        pool: WorkerPool,
        workforce: Workforce,
        caches: CacheKeeper,
        ledger: Ledger,
        stop: StopRequest,
        options: RunOptions,
        lost: Callable[[], str],
        watch: ClusterWatch,
        takes: TakeKeeper,
    ) -> None:
        self._subjects = subjects
        self._assets = assets
        self._scheduler = scheduler
        self._pool = pool
        self._workforce = workforce
        self._keeper = workforce.keeper
        self._caches = caches
        self._saver = caches.saver
        self._ledger = ledger
        self._stop = stop
        self._options = options
        self._lost = lost
        self._watch = watch
        self._takes = takes
        self._calls: dict[Any, Call] = {}
        self._buffers: dict[Any, Any] = {}  # of anchors calls: the reference of the cache that comes with the report
        self._read: dict[int, str] = {}  # of scenes calls: the checksum of the cache that they were given
        self._draining = False
        self._last_failure: Failure | None = None
        self._stopped_by: Failure | None = None  # what made going on pointless
        self._failed_in_a_row: Counter[str] = Counter()  # by subject, since the last success
        self._something_out = time.monotonic()

    def run(self) -> str:
        """Until everything is done, or the stop request is heard and the running batches are in.

        Returns:
            Why it ended before that, empty if it did not or was asked to.

        Raises:
            InputError: the model cannot be loaded, or the workers do not see the output.
            OutageError: the output is out of the workers' reach.
            NoWorkerLeft: they died too often.
            ClusterLostError: Ray is gone.
            RunError: nothing can go on: no worker is left, the output is lost, the disk is full.
        """
        self._keep_house()
        while not (self._scheduler.finished and not self._saver):
            reason = self._too_many_failures()
            if self._stop or reason:
                self._drain(reason or self._stop.reason)
                return reason
            for call in self._scheduler.assign():
                self._submit(call)
            self._saver.start(self._workforce.staying)
            self._settle(self._wait())
            self._caches.release(self._workforce.ready)
            self._check()
            self._keep_house()
            self._ledger.tick()
        self._keeper.pulse(self._workforce.ready)
        return ""

    def _too_many_failures(self) -> str:
        limit, failed = self._options.max_failures, len(self._ledger.given_up)
        return (
            f"{failed} pictures failed, and --max-failures is {limit}" if limit is not None and failed > limit else ""
        )

    def _submit(self, call: Call) -> None:
        actor, subject = self._pool.actor(call.worker), bare(self._subjects[call.subject_id])
        if call.kind == "anchors":
            report, buffer = actor.anchors.options(num_returns=2).remote(subject, bool(call.assets))
            self._buffers[report] = buffer
        else:
            scenes = tuple(self._assets[asset_id] for asset_id in call.assets)
            cache, digest = self._caches.lend(call.subject_id, call.worker)
            report = actor.scenes.remote(subject, scenes, cache, digest, self._takes.there(call.assets))
            self._read[call.call_id] = digest
        self._calls[report] = call
        self._keeper.watchdog.submitted(call, time.monotonic())

    def _wait(self) -> list[Any]:
        waiting = [*self._calls, *self._saver.references] + ([] if self._draining else list(self._pool.hellos))
        now = time.monotonic()
        if waiting:
            self._something_out = now
        elif now - self._something_out > STALL_SECONDS:
            stalled = RunError("the run cannot go on: there is work left, and no worker that may take it")
            raise self._workforce.refused or stalled
        else:  # a worker is leaving, or about to be asked for
            time.sleep(WAIT_SECONDS)
            return []
        first, rest = ray.wait(waiting, num_returns=1, timeout=WAIT_SECONDS, fetch_local=False)
        if not first:
            return []
        return first + (ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0] if rest else [])

    def _settle(self, arrived: Iterable[Any]) -> None:
        outcomes = [(reference, _fetch(reference)) for reference in arrived]
        # what a worker still delivered counts, even if it is found dead in the same moment
        for reference, outcome in sorted(outcomes, key=lambda pair: isinstance(pair[1], Failure)):
            if reference in self._calls:
                self._came_back(self._calls.pop(reference), outcome, self._buffers.pop(reference, None))
            elif self._saver.owns(reference):
                self._caches.saved(reference, outcome)
            elif (name := self._pool.hellos.get(reference)) is not None:
                failure = self._workforce.greeted(name, outcome)
                if failure is not None:
                    self._worker_lost(name, failure)

    def _came_back(self, call: Call, outcome: Report | Failure, buffer: Any) -> None:
        self._keeper.watchdog.returned(call, time.monotonic(), counts=isinstance(outcome, Report))
        read = self._read.pop(call.call_id, "")
        if isinstance(outcome, Failure):
            self._failed(call, outcome)
            return
        if outcome.delivered or not outcome.failures:
            self._pool.succeeded(call.worker)
        if call.kind == "anchors":
            self._anchors_ready(call, outcome, buffer)
        if call.kind == "scenes":
            self._ask_for(self._takes.came(outcome, self._assets))  # before the subject could be over
        faults = {asset_id: failure.fault for asset_id, failure in outcome.failures.items()}
        given_up = self._scheduler.done(call, faults, outcome.cache_bytes or None)
        self._deliver(call, outcome, read)
        for asset_id, failure in outcome.failures.items():
            self._note(call, failure, given_up)
            if asset_id in given_up:
                self._give_up(asset_id, call, failure)
        for asset_id in set(given_up).difference(outcome.failures):  # the rest of a subject that is hopeless
            self._give_up(asset_id, call, failure)

    def _ask_for(self, takes: Iterable[Asset]) -> None:
        """Further takes are to be made, as the gate wants; not of a subject of which everything fails."""
        for subject_id, group in groupby(takes, lambda take: take.subject_id):
            wanted = tuple(group)
            if self._scheduler.add_scenes(subject_id, [take.asset_id for take in wanted]):
                self._assets.update({take.asset_id: take for take in wanted})
                self._takes.expect(wanted)
                self._ledger.emit(TakesWanted(wanted))

    def _failed(self, call: Call, failure: Failure) -> None:
        if self._draining:
            return
        if failure.kind == RunInterrupted.__name__:  # the worker was told to leave and has refused the call
            self._workforce.leave(call.worker, GOING)
        elif failure.fault.kills_worker:
            self._worker_lost(call.worker, failure)
            return
        given_up = self._scheduler.failed(call, failure.fault)
        self._note(call, failure, given_up)
        for asset_id in given_up:
            self._give_up(asset_id, call, failure)
        if failure.fault is Fault.ERROR and self._pool.erred(call.worker, call.subject_id):
            self._worker_lost(call.worker, Failure(Fault.BROKEN, "Broken", f"call after call fails there: {failure}"))

    def _deliver(self, call: Call, report: Report, read: str) -> None:
        subject = self._subjects[call.subject_id]
        if report.delivered and call.kind == "scenes":
            self._failed_in_a_row.clear()
        anchors = {anchor.asset_id: anchor for anchor in subject.anchors} if call.kind == "anchors" else {}
        for item in report.delivered:
            again = item.asset_id not in call.assets
            asset = anchors.get(item.asset_id) or self._assets[item.asset_id]
            self._ledger.delivered(
                asset, subject, item, call.worker, call.attempt, again=again, cache_sha256=read or None
            )
        for asset_id, score in report.looked.items():
            asset, row = self._assets[asset_id], self._takes.row(asset_id)
            self._ledger.looked_at(asset, row, score, call.worker, call.attempt)
        if report.time is not None:
            spent, count = report.time, len(report.delivered)
            measured = (report.phases, spent.idle, spent.cache_bytes, spent.memory, report.machine)
            self._ledger.batch_done(BatchDone(call.worker, call.kind, count, *measured), report.seconds)

    def _anchors_ready(self, call: Call, report: Report, buffer: Any) -> None:
        if report.notice:
            self._ledger.emit(Notice(report.notice))
        self._ledger.emit(AnchorsReady(call.subject_id, report.made, report.seconds, report.cache_bytes))
        self._caches.take(call.subject_id, call.worker, report, buffer)

    def _worker_lost(self, name: str, failure: Failure) -> None:
        if self._draining:
            return
        self._watch.wait()  # another worker cannot be asked for meanwhile, only waited for without end
        calls = self._scheduler.calls_of(name)
        for reference in [reference for reference, call in self._calls.items() if call.worker == name]:
            self._read.pop(self._calls.pop(reference).call_id, None)
            self._buffers.pop(reference, None)
        given_up = self._workforce.lost(name, failure)
        retried = {asset_id for call in calls for asset_id in call.assets}.difference(given_up)
        if retried:
            self._ledger.emit(Retried(failure.fault.value, len(retried)))
        for asset_id in given_up:
            subject_id = self._assets[asset_id].subject_id
            held = [call for call in calls if call.subject_id == subject_id]
            self._give_up(asset_id, next((call for call in held if asset_id in call.assets), held[0]), failure)

    def _give_up(self, asset_id: str, call: Call, failure: Failure) -> None:
        asset = self._assets[asset_id]
        self._failed_in_a_row[asset.subject_id] += failure.fault is not Fault.REJECTED
        self._caches.lacks(asset.subject_id)
        reason = died_with(failure) if failure.fault.blames_assets else str(failure)
        if asset_id not in call.assets and call.kind == "scenes":
            reason = f"not tried, other scenes of {call.subject_id} failed one after the other: {reason}"
        if call.kind == "anchors" and asset.kind == "scene":
            reason = f"the anchors of {call.subject_id} could not be made: {reason}"
        subject = self._subjects[asset.subject_id]
        self._ledger.gave_up(asset, subject, reason, failure.fault, call.worker, call.attempt)
        self._ask_for(self._takes.failed(asset))

    def _note(self, call: Call, failure: Failure, given_up: tuple[str, ...]) -> None:
        self._last_failure = failure
        if self._scheduler.stop_reason is failure.fault and self._stopped_by is None:
            self._stopped_by = failure
        if failure.traceback:
            _log.debug("%s of %s on %s:\n%s", call.kind, call.subject_id, call.worker, failure.traceback)
        if not given_up:
            self._ledger.emit(Retried(failure.fault.value, len(call.assets)))
            what = "the anchors" if call.kind == "anchors" else f"{len(call.assets)} of the scenes"
            self._ledger.emit(Notice(f"{what} of {call.subject_id} tried again after {failure} ({call.worker})"))

    def _check(self) -> None:
        if reason := self._lost():
            raise RunError(f"the run cannot go on: {reason}")
        if self._scheduler.stop_reason is not None:
            why = self._stopped_by or self._last_failure
            if why is not None and why.fault is Fault.STORAGE and not why.lasting:
                raise OutageError(f"storage is out of the workers' reach: {why}")
            raise RunError(f"the run cannot go on: {why}")
        failed, caps = self._failed_in_a_row, self._options.caps
        if failed.total() >= caps.failures_in_a_row and len(failed) >= caps.failing_subjects:
            raise RunError(
                f"the run cannot go on: {failed.total()} pictures of {len(failed)} subjects have failed without one "
                f"success in between, so it is probably not they; the last failure: {self._last_failure}"
            )
        if not len(self._pool) and self._pool.exhausted:
            if (cut_off := self._workforce.cut_off) is not None:
                raise OutageError(f"no worker is left, storage is out of their reach: {cut_off}")
            last = self._pool.last_failure
            raise NoWorkerLeft(f"no worker is left, they died too often in a row; the last one: {last}")

    def _keep_house(self) -> None:
        """What has to be looked after now and then: stuck and idle workers, machines that go, how many to ask for."""
        now = time.monotonic()
        if not self._keeper.is_due(now) or not self._watch.answers():
            return
        for name, failure in self._keeper.stuck(now):
            self._worker_lost(name, failure)
        for name in self._keeper.on_draining_nodes():
            self._workforce.leave(name, GOING)
        for name, failure in self._workforce.overdue():
            self._worker_lost(name, failure)
        self._caches.save_what_is_due()
        self._saver.check(now)
        self._workforce.let_go(now, self._saver.workers)
        self._keeper.look(now, self._workforce.ready)

    def _drain(self, reason: str) -> None:
        """Take in what the workers still finish, for as long as the grace lasts."""
        self._draining = True
        self._ledger.emit(Stopping(reason, len(self._calls)))
        self._workforce.drain()
        deadline = time.monotonic() + self._options.grace_seconds
        while True:
            self._caches.hurry(self._workforce.ready)
            if not (self._calls or self._saver) or self._stop.at_once or time.monotonic() >= deadline:
                return
            self._settle(self._wait())
            self._ledger.tick()
            if not self._is_there():
                return

    def _is_there(self) -> bool:
        with suppress(ClusterLostError):
            return self._watch.answers() or True
        return False

    def abandon(self, reason: str) -> None:
        """Ray is gone, and all workers with it."""
        for name in sorted(self._workforce.ready):
            self._ledger.emit(WorkerLost(name, reason, False, Fault.NODE_DIED.value))


def _fetch(reference: Any) -> Any:
    """What a reference stands for; a Failure if Ray cannot deliver it."""
    try:
        return ray.get(reference, timeout=FETCH_SECONDS)
    except Exception as error:
        return Failure.of(error)
