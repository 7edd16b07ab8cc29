"""The loop between the scheduler, which decides, and the workers, which do."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray

from consistory_ray.engine.events import AnchorsReady, Notice, Stopping, WorkerLost, WorkerReady
from consistory_ray.engine.faults import Failure, Fault
from consistory_ray.engine.ledger import Ledger, died_with
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.pool import WorkerPool
from consistory_ray.engine.scheduler import Scheduler
from consistory_ray.engine.stopping import StopRequest
from consistory_ray.engine.work import Call
from consistory_ray.engine.worker import Hello, Report
from consistory_ray.errors import CheckpointError, InputError, Problem, RunError

if TYPE_CHECKING:
    from consistory_ray.plan import Asset, SubjectPlan

WAIT_SECONDS = 0.25
"""How long a stop request may go unnoticed."""
FETCH_SECONDS = 60.0
"""A report of a few hundred bytes that takes longer to arrive is lost."""
PATIENCE_SECONDS = 30.0
"""How often a run without workers says so."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Save:
    """An anchor cache on its way to the output."""

    subject_id: str
    buffer: Any
    worker: str
    tried: frozenset[str] = frozenset()


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
    ) -> None:
        self._url = url
        self._subjects = subjects
        self._assets = assets
        self._scheduler = scheduler
        self._pool = pool
        self._ledger = ledger
        self._stop = stop
        self._options = options
        self._calls: dict[Any, Call] = {}
        self._buffers: dict[Any, Any] = {}  # of anchors calls: the reference of the cache that comes with the report
        self._saves: dict[Any, _Save] = {}
        self._caches: dict[str, Any] = {}
        self._served: dict[str, set[str]] = {}
        self._ready: set[str] = set()
        self._draining = False
        self._last_failure: Failure | None = None
        self._last_sign = time.monotonic()

    def run(self) -> None:
        """Until everything is done, or the stop request is heard and the running batches are in.

        Raises:
            InputError: the model cannot be loaded, or the workers do not see the output.
            RunError: nothing can go on: no worker is left, the storage fails, the disk is full.
        """
        while not (self._scheduler.finished and not self._saves):
            if self._stop:
                self._drain()
                return
            for call in self._scheduler.assign():
                self._submit(call)
            self._settle(self._wait())
            self._release()
            self._check()
            self._ledger.tick()

    def _submit(self, call: Call) -> None:
        actor, subject = self._pool.actor(call.worker), self._bare(call.subject_id)
        if call.kind == "anchors":
            report, buffer = actor.anchors.options(num_returns=2).remote(subject, bool(call.assets))
            self._buffers[report] = buffer
        else:
            scenes = tuple(self._assets[asset_id] for asset_id in call.assets)
            report = actor.scenes.remote(subject, scenes, self._caches[call.subject_id])
            self._served.setdefault(call.subject_id, set()).add(call.worker)
        self._calls[report] = call

    def _bare(self, subject_id: str) -> SubjectPlan:
        """A subject without its scenes, of which there may be very many."""
        return dataclasses.replace(self._subjects[subject_id], scenes=())

    def _wait(self) -> list[Any]:
        waiting = [*self._calls, *self._saves] + ([] if self._draining else list(self._pool.hellos))
        if not waiting:
            raise RunError("the run cannot go on: there is work left, and no worker that may take it")
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
            elif reference in self._saves:
                self._saved(self._saves.pop(reference), outcome)
            elif (name := self._pool.hellos.get(reference)) is not None:
                self._greeted(name, outcome)

    def _came_back(self, call: Call, outcome: Report | Failure, buffer: Any) -> None:
        if isinstance(outcome, Failure):
            if self._draining:
                return
            if outcome.fault.kills_worker:
                self._worker_lost(call.worker, outcome)
                return
            given_up = self._scheduler.failed(call, outcome.fault)
            self._note(call, outcome, given_up)
            for asset_id in given_up:
                self._give_up(asset_id, call, outcome)
            return
        self._pool.succeeded(call.worker)
        if call.kind == "anchors":
            self._anchors_ready(call, outcome, buffer)
        faults = {asset_id: failure.fault for asset_id, failure in outcome.failures.items()}
        given_up = self._scheduler.done(call, faults, outcome.cache_bytes or None)
        self._deliver(call, outcome)
        for asset_id, failure in outcome.failures.items():
            self._note(call, failure, given_up)
            if asset_id in given_up:
                self._give_up(asset_id, call, failure)

    def _deliver(self, call: Call, report: Report) -> None:
        subject = self._subjects[call.subject_id]
        anchors = {anchor.asset_id: anchor for anchor in subject.anchors} if call.kind == "anchors" else {}
        for item in report.delivered:
            again = item.asset_id not in call.assets
            asset = anchors.get(item.asset_id) or self._assets[item.asset_id]
            self._ledger.delivered(asset, subject, item, call.worker, call.attempt, again=again)

    def _anchors_ready(self, call: Call, report: Report, buffer: Any) -> None:
        self._caches[call.subject_id] = buffer
        self._served.setdefault(call.subject_id, set()).add(call.worker)
        if report.notice:
            self._ledger.emit(Notice(report.notice))
        self._ledger.emit(AnchorsReady(call.subject_id, report.made, report.seconds, report.cache_bytes))
        if report.made:
            self._save(_Save(call.subject_id, buffer, call.worker))

    def _save(self, save: _Save) -> None:
        reference = self._pool.actor(save.worker).save.remote(self._bare(save.subject_id), save.buffer)
        self._saves[reference] = dataclasses.replace(save, tried=save.tried | {save.worker})

    def _saved(self, save: _Save, failure: Failure | None) -> None:
        if failure is None:
            return
        path = self._subjects[save.subject_id].cache_path
        if failure.fault.stops_run:
            raise RunError(f"{path} could not be written: {failure}")
        others = self._ready - save.tried
        if failure.fault.kills_worker and others and not self._draining:
            self._save(dataclasses.replace(save, worker=min(others)))
        else:
            self._ledger.emit(Notice(f"{path} could not be saved, a resume would make it again: {failure}"))

    def _greeted(self, name: str, outcome: Hello | Failure) -> None:
        if isinstance(outcome, Failure):
            if outcome.fault in (Fault.BAD_MODEL, Fault.BAD_ASSET):
                raise CheckpointError(outcome.message)
            self._worker_lost(name, outcome)
            return
        if not outcome.sees_output:
            fix = f"use a URL or a shared folder, {outcome.place} does not see the run record that was just written"
            raise InputError("the workers cannot reach the output", [Problem("output", self._url, fix)])
        if self._ledger.fingerprint not in ("", outcome.fingerprint):
            raise CheckpointError(f"{outcome.place} has loaded other weights than the workers before it")
        self._ledger.fingerprint = outcome.fingerprint
        self._pool.greeted(name)
        self._ready.add(name)
        self._scheduler.add_worker(name)
        self._last_sign = time.monotonic()
        self._ledger.emit(WorkerReady(name, outcome.place, outcome.seconds))

    def _worker_lost(self, name: str, failure: Failure) -> None:
        if self._draining:
            return
        calls = {call.subject_id: call for call in self._scheduler.calls_of(name)}
        for reference in [reference for reference, call in self._calls.items() if call.worker == name]:
            del self._calls[reference]
            self._buffers.pop(reference, None)
        self._ready.discard(name)
        given_up = self._scheduler.remove_worker(name, failure.fault)
        replaced = self._pool.lost(name, failure)
        self._ledger.emit(WorkerLost(name, str(failure), replaced))
        for asset_id in given_up:
            self._give_up(asset_id, calls[self._assets[asset_id].subject_id], failure)

    def _give_up(self, asset_id: str, call: Call, failure: Failure) -> None:
        asset = self._assets[asset_id]
        reason = died_with(failure) if failure.fault is Fault.WORKER_DIED else str(failure)
        if call.kind == "anchors" and asset.kind == "scene":
            reason = f"the anchors of {call.subject_id} could not be made: {reason}"
        self._ledger.gave_up(asset, self._subjects[asset.subject_id], reason, call.worker, call.attempt)

    def _note(self, call: Call, failure: Failure, given_up: tuple[str, ...]) -> None:
        self._last_failure = failure
        if failure.traceback:
            _log.debug("%s of %s on %s:\n%s", call.kind, call.subject_id, call.worker, failure.traceback)
        if not given_up:
            what = "the anchors" if call.kind == "anchors" else f"{len(call.assets)} of the scenes"
            self._ledger.emit(Notice(f"{what} of {call.subject_id} tried again after {failure} ({call.worker})"))

    def _release(self) -> None:
        for subject_id in self._scheduler.take_released():
            self._caches.pop(subject_id, None)
            key = self._subjects[subject_id].subject_key
            for name in self._served.pop(subject_id, set()) & self._ready:
                self._pool.actor(name).forget.remote(key)

    def _check(self) -> None:
        if self._scheduler.stop_reason is not None:
            raise RunError(f"the run cannot go on: {self._last_failure}")
        if not len(self._pool):
            raise RunError(f"no worker is left, they died too often in a row; the last one: {self._pool.last_failure}")
        if not self._ready and time.monotonic() - self._last_sign > PATIENCE_SECONDS:
            self._last_sign = time.monotonic()
            self._ledger.emit(Notice("still waiting for a first worker: the cluster may lack free GPUs or CPUs"))

    def _drain(self) -> None:
        """Take in what the workers still finish, for as long as the grace lasts."""
        self._draining = True
        self._ledger.emit(Stopping(self._stop.reason, len(self._calls)))
        for name in self._ready:
            self._pool.actor(name).drain.remote()
        deadline = time.monotonic() + self._options.grace_seconds
        while (self._calls or self._saves) and not self._stop.at_once and time.monotonic() < deadline:
            self._settle(self._wait())
            self._ledger.tick()


def _fetch(reference: Any) -> Any:
    """What a reference stands for; a Failure if Ray cannot deliver it."""
    try:
        return ray.get(reference, timeout=FETCH_SECONDS)
    except Exception as error:
        return Failure.of(error)
