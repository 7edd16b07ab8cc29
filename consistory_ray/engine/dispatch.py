"""The loop between the scheduler, which decides, and the workers, which do."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ray

from consistory_ray.engine.cluster.cluster_watch import ClusterWatch
from consistory_ray.engine.events import (
    AnchorsReady,
    BatchDone,
    Notice,
    Retried,
    Stopping,
    WorkerLeaving,
    WorkerLost,
    WorkerReady,
    WorkerReleased,
)
from consistory_ray.engine.faults import Failure, Fault
from consistory_ray.engine.housekeeping import Housekeeping
from consistory_ray.engine.keeping import CachePolicy
from consistory_ray.engine.ledger import Ledger, died_with
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.scheduling.scheduler import Scheduler
from consistory_ray.engine.scheduling.work import Call
from consistory_ray.engine.stopping import StopRequest
from consistory_ray.engine.units import size
from consistory_ray.engine.workers.pool import WorkerPool
from consistory_ray.engine.workers.saving import CacheSaver
from consistory_ray.engine.workers.worker import Hello, Report
from consistory_ray.errors import (
    CheckpointError,
    ClusterLostError,
    InputError,
    OutageError,
    Problem,
    RunError,
    RunInterrupted,
)

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Asset, SubjectPlan

WAIT_SECONDS = 0.25
"""How long a stop request may go unnoticed."""
STALL_SECONDS = 20.0
"""A run in which nothing is out for so long, although work is left, would wait for ever."""
FETCH_SECONDS = 60.0
"""A report of a few hundred bytes that takes longer to arrive is lost."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Unsaved:
    """A cache that is saved at a time if it is still needed then."""

    due: float
    digest: str
    nbytes: int
    worker: str


class NoWorkerLeft(RunError):
    """Workers died, or did not come up, too often in a row."""


class Dispatch:
    """Drives one run until nothing is left, or until it has to stop.

    Args:
        subjects: the plan's subjects by id.
        assets: the assets still to be made, by id.
        scheduler: the decisions.
        pool: the workers.
        ledger: the books.
        stop: whether to stop.
        options: the run's options.
        url: the output, for messages.
        lost: tells why the output may no longer be written to, empty while it may.
        adapts: whether workers may take as many scenes at a time as they say fit into their memory.
        clear: deletes the cache of a subject of which every scene is there; None keeps them.
        policy: which caches are saved when, and whether they stay.
        watch: whether Ray is still there.
    """

    def __init__(
        self,
        subjects: Mapping[str, SubjectPlan],
        assets: Mapping[str, Asset],
        scheduler: Scheduler,
        pool: WorkerPool,
        ledger: Ledger,
        stop: StopRequest,
        options: RunOptions,
        url: str,
        lost: Callable[[], str] = str,
        adapts: bool = False,
        clear: Callable[[SubjectPlan], None] | None = None,
        policy: CachePolicy | None = None,
        watch: ClusterWatch | None = None,
    ) -> None:
        self._watch = watch or ClusterWatch()
        self._url = url
        self._subjects = subjects
        self._assets = assets
        self._scheduler = scheduler
        self._pool = pool
        self._ledger = ledger
        self._stop = stop
        self._options = options
        self._lost = lost
        self._adapts = adapts
        self._clear = clear
        self._policy = policy or CachePolicy("all", 0)
        self._unsaved: dict[str, _Unsaved] = {}
        self._keeper = Housekeeping(options, scheduler, pool, ledger.emit, self._watch)
        self._saver = CacheSaver(pool, scheduler, options, ledger.emit)
        self._calls: dict[Any, Call] = {}
        self._buffers: dict[Any, Any] = {}  # of anchors calls: the reference of the cache that comes with the report
        self._caches: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._read: dict[int, str] = {}  # of scenes calls: the checksum of the cache that they were given
        self._lacking: set[str] = set()  # subjects of which something was given up
        self._leaving: set[str] = set()
        self._told: set[str] = set()  # what workers have said about the model
        self._served: dict[str, set[str]] = {}
        self._ready: set[str] = set()
        self._draining = False
        self._last_failure: Failure | None = None
        self._stopped_by: Failure | None = None  # what made going on pointless
        self._cut_off: Failure | None = None  # the last worker to come up without reaching the output
        self._refused: CheckpointError | InputError | None = None  # what the first workers had against the job
        self._nice = False  # whether it was told that workers let others go first
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
            self._saver.start(self._ready - self._leaving)
            self._settle(self._wait())
            self._release()
            self._check()
            self._keep_house()
            self._ledger.tick()
        self._keeper.pulse(self._ready)
        return ""

    def _too_many_failures(self) -> str:
        limit, failed = self._options.max_failures, len(self._ledger.given_up)
        return (
            f"{failed} pictures failed, and --max-failures is {limit}" if limit is not None and failed > limit else ""
        )

    def _submit(self, call: Call) -> None:
        actor, subject = self._pool.actor(call.worker), self._bare(call.subject_id)
        if call.kind == "anchors":
            report, buffer = actor.anchors.options(num_returns=2).remote(subject, bool(call.assets))
            self._buffers[report] = buffer
        else:
            scenes = tuple(self._assets[asset_id] for asset_id in call.assets)
            digest = self._digests.get(call.subject_id, "")
            report = actor.scenes.remote(subject, scenes, self._caches[call.subject_id], digest)
            self._served.setdefault(call.subject_id, set()).add(call.worker)
            self._read[call.call_id] = digest
        self._calls[report] = call
        self._keeper.watchdog.submitted(call, time.monotonic())

    def _bare(self, subject_id: str) -> SubjectPlan:
        """A subject without its scenes, of which there may be very many."""
        return dataclasses.replace(self._subjects[subject_id], scenes=())

    def _wait(self) -> list[Any]:
        waiting = [*self._calls, *self._saver.references] + ([] if self._draining else list(self._pool.hellos))
        now = time.monotonic()
        if waiting:
            self._something_out = now
        elif now - self._something_out > STALL_SECONDS:
            raise self._refused or RunError("the run cannot go on: there is work left, and no worker that may take it")
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
                self._clear_finished(self._saver.arrived(reference, outcome))
            elif (name := self._pool.hellos.get(reference)) is not None:
                self._greeted(name, outcome)

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
        faults = {asset_id: failure.fault for asset_id, failure in outcome.failures.items()}
        given_up = self._scheduler.done(call, faults, outcome.cache_bytes or None)
        self._deliver(call, outcome, read)
        for asset_id, failure in outcome.failures.items():
            self._note(call, failure, given_up)
            if asset_id in given_up:
                self._give_up(asset_id, call, failure)
        for asset_id in set(given_up).difference(outcome.failures):  # the rest of a subject that is hopeless
            self._give_up(asset_id, call, failure)

    def _failed(self, call: Call, failure: Failure) -> None:
        if self._draining:
            return
        if failure.kind == RunInterrupted.__name__:  # the worker was told to leave and has refused the call
            self._leave(call.worker, "its machine is going")
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
        if report.time is not None:
            spent, count = report.time, len(report.delivered)
            measured = (report.phases, spent.idle, spent.cache_bytes, spent.memory, report.machine)
            self._ledger.emit(BatchDone(call.worker, call.kind, count, *measured))

    def _anchors_ready(self, call: Call, report: Report, buffer: Any) -> None:
        self._caches[call.subject_id] = buffer
        self._digests[call.subject_id] = report.cache_sha256
        self._served.setdefault(call.subject_id, set()).add(call.worker)
        if report.notice:
            self._ledger.emit(Notice(report.notice))
        self._ledger.emit(AnchorsReady(call.subject_id, report.made, report.seconds, report.cache_bytes))
        if self._policy.learn(self._scheduler.expected_cache_bytes(call.subject_id), report.cache_bytes):
            self._tell_of_caches()
        if self._policy.saves and (report.made or report.import_cache):
            due = time.monotonic() + self._policy.delay
            self._unsaved[call.subject_id] = _Unsaved(due, report.cache_sha256, report.cache_bytes, call.worker)
            self._save_what_is_due()

    def _tell_of_caches(self) -> None:
        if self._options.keep_anchors == "auto" and not self._policy.keeps:
            what = f"the anchor caches of all subjects would take {size(self._policy.nbytes)}"
            self._ledger.emit(
                Notice(f"{what}: each is kept until its scenes are there (--keep-anchors all keeps them)")
            )

    def _save_what_is_due(self) -> None:
        now = time.monotonic()
        for subject_id in [subject_id for subject_id, there in self._unsaved.items() if there.due <= now]:
            self._save(subject_id)

    def _save(self, subject_id: str) -> None:
        there, buffer = self._unsaved.pop(subject_id), self._caches[subject_id]
        self._saver.add(self._bare(subject_id), buffer, there.digest, there.nbytes, there.worker)

    def _greeted(self, name: str, outcome: Hello | Failure) -> None:
        refusal = self._refusal(outcome)
        if refusal is not None:
            self._unwelcome(name, refusal)
            return
        if isinstance(outcome, Failure):
            if outcome.fault is Fault.STORAGE and not outcome.lasting:
                self._cut_off = outcome
            self._worker_lost(name, outcome)
            return
        self._cut_off = None
        self._ledger.fingerprint = outcome.fingerprint
        self._pool.held = False
        self._pool.greeted(name, outcome.node)
        self._ready.add(name)
        self._keeper.joined(outcome.node)
        batches = outcome.batches if self._adapts else None
        self._scheduler.add_worker(name, outcome.node, batches, shaken=self._pool.deaths(name) > 0)
        self._ledger.emit(WorkerReady(name, outcome.place, outcome.seconds))
        self._tell(outcome)

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
        return None

    def _unwelcome(self, name: str, refusal: CheckpointError | InputError) -> None:
        """A worker that is of no use. If there were any that are, it is its machine's fault and another one is tried.

        Raises:
            CheckpointError, InputError: none of the first workers is of any use, so that it must be the job.
        """
        if self._ledger.fingerprint:
            self._worker_lost(name, Failure(Fault.BROKEN, type(refusal).__name__, refusal.message))
            return
        self._refused = self._refused or refusal
        self._pool.release(name)
        self._pool.held = True
        if not self._pool.hellos:
            raise self._refused

    def _worker_lost(self, name: str, failure: Failure) -> None:
        if self._draining:
            return
        self._watch.wait()  # another worker cannot be asked for meanwhile, only waited for without end
        if failure.fault is not Fault.STORAGE:
            self._cut_off = None
        calls = self._scheduler.calls_of(name)
        for reference in [reference for reference, call in self._calls.items() if call.worker == name]:
            self._read.pop(self._calls.pop(reference).call_id, None)
            self._buffers.pop(reference, None)
        self._forget_worker(name)
        given_up = self._scheduler.remove_worker(name, failure.fault)
        replaced = self._pool.lost(name, failure, own_fault=not given_up)
        self._pool.acquit(self._scheduler.take_acquitted())
        self._ledger.emit(WorkerLost(name, str(failure), replaced, failure.fault.value))
        retried = {asset_id for call in calls for asset_id in call.assets}.difference(given_up)
        if retried:
            self._ledger.emit(Retried(failure.fault.value, len(retried)))
        for asset_id in given_up:
            subject_id = self._assets[asset_id].subject_id
            held = [call for call in calls if call.subject_id == subject_id]
            self._give_up(asset_id, next((call for call in held if asset_id in call.assets), held[0]), failure)

    def _give_up(self, asset_id: str, call: Call, failure: Failure) -> None:
        asset = self._assets[asset_id]
        self._failed_in_a_row[asset.subject_id] += 1
        self._lacking.add(asset.subject_id)
        reason = died_with(failure) if failure.fault.blames_assets else str(failure)
        if asset_id not in call.assets and call.kind == "scenes":
            reason = f"not tried, other scenes of {call.subject_id} failed one after the other: {reason}"
        if call.kind == "anchors" and asset.kind == "scene":
            reason = f"the anchors of {call.subject_id} could not be made: {reason}"
        subject = self._subjects[asset.subject_id]
        self._ledger.gave_up(asset, subject, reason, failure.fault, call.worker, call.attempt)

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

    def _release(self) -> None:
        for subject_id in self._scheduler.take_released():
            if subject_id in self._unsaved and subject_id in self._lacking and self._scheduler.is_over(subject_id):
                self._save(subject_id)  # somebody will want to try the rest again
            self._unsaved.pop(subject_id, None)
            self._caches.pop(subject_id, None)
            self._digests.pop(subject_id, None)
            key = self._subjects[subject_id].subject_key
            for name in self._served.pop(subject_id, set()) & self._ready:
                self._pool.actor(name).forget.remote(key)
            self._clear_finished(subject_id)

    def _clear_finished(self, subject_id: str) -> None:
        """Delete a subject's cache if that is wanted, every scene is there, and nobody is writing it."""
        if self._clear is None or self._policy.keeps or not subject_id or subject_id in self._lacking:
            return
        if self._scheduler.is_over(subject_id) and self._saver.drop(subject_id):
            self._clear(self._subjects[subject_id])

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
            if self._cut_off is not None:
                raise OutageError(f"no worker is left, storage is out of their reach: {self._cut_off}")
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
            self._leave(name, "its machine is going")
        for name in self._pool.overdue(self._options.first_call_seconds):
            reason = f"the model was not loaded within {self._options.first_call_seconds:.0f} s"
            self._worker_lost(name, Failure(Fault.STUCK, "Stuck", reason))
        self._save_what_is_due()
        self._saver.check(now)
        saving = self._saver.workers
        for name in [name for name in self._leaving if not self._scheduler.calls_of(name) and name not in saving]:
            self._forget_worker(name)
            self._scheduler.remove_worker(name, Fault.NODE_DIED)
            self._pool.lost(name, Failure(Fault.NODE_DIED, "Leaving", "its machine is going"))
            self._ledger.emit(WorkerReleased(name, "its machine is going"))
        for name in set(self._keeper.idle(now, self._ready)) - saving - self._leaving:
            self._forget_worker(name)
            self._scheduler.remove_worker(name, Fault.NODE_DIED)
            self._pool.release(name)
            self._ledger.emit(WorkerReleased(name, "there is nothing left for it"))
        self._keeper.look(now, self._ready)

    def _leave(self, name: str, reason: str) -> None:
        """Let a worker finish what it has on its device, and give it nothing more."""
        if name in self._ready and name not in self._leaving:
            self._leaving.add(name)
            self._scheduler.retire_worker(name)
            self._pool.actor(name).drain.remote()
            self._ledger.emit(WorkerLeaving(name))
            self._ledger.emit(Notice(f"{name} finishes its batch and leaves: {reason}"))

    def _forget_worker(self, name: str) -> None:
        self._ready.discard(name)
        self._leaving.discard(name)
        self._keeper.watchdog.forget(name)

    def _drain(self, reason: str) -> None:
        """Take in what the workers still finish, for as long as the grace lasts."""
        self._draining = True
        self._ledger.emit(Stopping(reason, len(self._calls)))
        for name in self._ready:
            self._pool.actor(name).drain.remote()
        deadline = time.monotonic() + self._options.grace_seconds
        while True:
            for subject_id in list(self._unsaved):
                if not self._scheduler.is_over(subject_id):
                    self._save(subject_id)
            self._saver.hurry(self._ready)
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
        for name in sorted(self._ready):
            self._ledger.emit(WorkerLost(name, reason, False, Fault.NODE_DIED.value))


def _fetch(reference: Any) -> Any:
    """What a reference stands for; a Failure if Ray cannot deliver it."""
    try:
        return ray.get(reference, timeout=FETCH_SECONDS)
    except Exception as error:
        return Failure.of(error)
