"""What becomes of a call that came back, failed, or was lost with its worker: done, tried again, or given up."""

from __future__ import annotations

from collections.abc import Mapping

from consistory_ray.engine.faults import Fault
from consistory_ray.engine.scheduling.board import Board
from consistory_ray.engine.scheduling.failure_record import anchors_key
from consistory_ray.engine.scheduling.state import BatchLimit, Call, KnownWorker, OpenSubject, State


class Settler:
    """Ends calls. What is returned are the ids of the assets that were given up because of it.

    Args:
        board: what is known; what a call had goes back to it.
    """

    def __init__(self, board: Board) -> None:
        self._board = board

    def done(self, call: Call, faults: Mapping[str, Fault], cache_bytes: int | None) -> list[str]:
        """A call came back, as :meth:`~consistory_ray.engine.scheduling.scheduler.Scheduler.done` says."""
        worker, subject = self._take_back(call)
        worker.shaken = worker.shaken and bool(faults)
        if call.kind == "scenes" and not faults:
            subject.killers = subject.failures = subject.losses = 0
            if (limit := self._board.batch_limits.get((worker.name, subject.work.size))) is not None:
                limit.fitted(len(call.assets))
        if call.kind == "anchors":
            subject.state, subject.anchors_made = State.READY, True
            if cache_bytes is not None:
                self._board.caches.made(call.subject_id, subject.work.cache_bytes, cache_bytes)
            self._board.failures.forget(anchors_key(call.subject_id))
            self._board.file(subject)
            self._board.news = True
            if worker.home is None or not worker.home.takeable:
                self._board.move_home(worker, subject)
        given_up: list[str] = []
        for asset in call.assets:
            fault = faults.get(asset)
            if fault is None:
                self._board.close(asset)
            else:
                given_up += self._blame(subject, asset, fault, call)
        self._board.retire(subject)
        return given_up

    def failed(self, call: Call, fault: Fault) -> list[str]:
        """A call failed as a whole on a worker that is still there."""
        self._take_back(call)
        return self._fault(call, fault)

    def lost(self, worker: KnownWorker, fault: Fault) -> list[str]:
        """A worker is no longer on the board; its calls come back."""
        given_up: list[str] = []
        for call in worker.calls.values():
            self._board.subjects[call.subject_id].in_flight -= 1
            given_up += self._fault(call, fault)
        return given_up

    def _take_back(self, call: Call) -> tuple[KnownWorker, OpenSubject]:
        worker, subject = self._board.workers[call.worker], self._board.subjects[call.subject_id]
        worker.calls.pop(call.call_id)
        self._board.freed[worker.name] = None
        subject.in_flight -= 1
        return worker, subject

    def _fault(self, call: Call, fault: Fault) -> list[str]:
        """What becomes of a call that failed as a whole."""
        subject = self._board.subjects[call.subject_id]
        if fault.stops_run:
            self._board.stop_reason = fault
        if call.kind == "anchors":
            given_up = self._anchors_failed(subject, call, fault)
        elif fault is Fault.ANCHORS_LOST:
            given_up = self._lose_cache(subject, call)
        elif fault is Fault.NODE_DIED:
            given_up = self._board.requeue_all(subject, call)
        elif fault.blames_assets or len(call.assets) == 1:
            given_up = [lost for asset in call.assets for lost in self._blame(subject, asset, fault, call)]
        elif fault is Fault.STORE_FULL:
            given_up = self._board.requeue_all(subject, call)
        elif fault is Fault.OUT_OF_MEMORY:
            key = (call.worker, subject.work.size)
            self._board.batch_limits.setdefault(key, BatchLimit(len(call.assets))).exceeded(len(call.assets))
            given_up = self._board.requeue_all(subject, call)
        else:
            for asset in call.assets:
                self._board.failures.suspect(asset)
            given_up = self._board.requeue_all(subject, call)
        self._board.retire(subject)
        return given_up

    def _anchors_failed(self, subject: OpenSubject, call: Call, fault: Fault) -> list[str]:
        self._board.caches.close(call.subject_id)
        subject.state = State.WAITING
        self._board.news = True
        key = anchors_key(call.subject_id)
        if fault is Fault.STORE_FULL:
            worker = self._board.workers.get(call.worker)
            self._board.caches.full(worker.node if worker is not None else "")
            subject.losses += 1
            if subject.losses > self._board.caps.cache_losses:
                return self._board.fail_subject(subject)
        elif self._board.failures.charge(key, fault, call.worker, call.alone):
            return self._board.fail_subject(subject)
        if self._board.failures.storage_given_up(key):
            self._board.stop_reason = Fault.STORAGE
        self._board.waiting.appendleft(subject)
        return []

    def _lose_cache(self, subject: OpenSubject, call: Call) -> list[str]:
        if subject.state is not State.READY or call.generation != subject.generation:
            return self._board.requeue_all(subject, call)  # the first call that missed it has said so already
        subject.generation += 1
        subject.losses += 1
        subject.nodes.clear()
        subject.state = State.WAITING
        self._board.news = True
        self._board.file(subject)
        self._board.caches.close(call.subject_id)
        self._board.released.append(call.subject_id)
        if subject.losses > self._board.caps.cache_losses:
            return self._board.fail_subject(subject) + self._board.requeue_all(subject, call)
        self._board.waiting.appendleft(subject)
        return self._board.requeue_all(subject, call)

    def _blame(self, subject: OpenSubject, asset: str, fault: Fault, call: Call) -> list[str]:
        if fault.stops_run:
            self._board.stop_reason = fault
        if self._board.failures.charge(asset, fault, call.worker, call.alone):
            subject.killers += fault.blames_assets
            self._board.acquitted |= self._board.failures.crashed_on(asset)
            subject.failures += fault is Fault.ERROR
            hopeless = subject.killers >= self._board.caps.killers or subject.failures >= self._board.caps.failing
            return self._board.give_up([asset]) + (self._board.fail_subject(subject) if hopeless else [])
        if self._board.failures.storage_given_up(asset):
            self._board.stop_reason = Fault.STORAGE
        return self._board.requeue(subject, asset)
