"""Anchor caches on their way to the output: one at a time on each worker, with a time limit, tried again elsewhere."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consistory_ray.engine.events import Event, Notice
from consistory_ray.engine.faults import Failure, Fault
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.scheduling.scheduler import Scheduler
from consistory_ray.errors import OutageError, RunError

if TYPE_CHECKING:
    from consistory_ray.engine.dispatching.pool import WorkerPool
    from consistory_ray.plan.plan import SubjectPlan

SLOWEST = 4e6
"""Bytes a second: a cache that is written more slowly is taken for stuck, after ``stuck_seconds`` on top of it."""


@dataclass(frozen=True, slots=True)
class _Save:
    subject: SubjectPlan
    buffer: Any
    digest: str
    nbytes: int
    worker: str
    tries: int = 0
    since: float = 0.0


class CacheSaver:
    """What is to be saved, and what is being saved. A cache stays in the scheduler's account until it is.

    Args:
        pool: the workers.
        scheduler: keeps account of the caches that are alive.
        options: the run's options.
        emit: where events go.
    """

    def __init__(
        self, pool: WorkerPool, scheduler: Scheduler, options: RunOptions, emit: Callable[[Event], None]
    ) -> None:
        self._pool = pool
        self._scheduler = scheduler
        self._options = options
        self._emit = emit
        self._waiting: deque[_Save] = deque()
        self._running: dict[Any, _Save] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def references(self) -> list[Any]:
        """What to wait for."""
        return list(self._running)

    @property
    def workers(self) -> set[str]:
        """The workers that are at it."""
        return {save.worker for save in self._running.values()}

    def add(self, subject: SubjectPlan, buffer: Any, digest: str, nbytes: int, worker: str) -> None:
        """A cache to save, best on the worker that has it in memory."""
        self._waiting.append(_Save(subject, buffer, digest, nbytes, worker))
        self._scheduler.caches.pin(subject.subject_id, nbytes)

    def start(self, ready: Collection[str]) -> None:
        """Begin what can be begun on workers that are ready."""
        free = set(ready) - self.workers
        for save in list(self._waiting):
            if not free:
                return
            worker = save.worker if save.worker in free else None
            if worker is None and save.worker not in ready:
                worker = min(free)
            if worker is None:
                continue
            free.discard(worker)
            self._waiting.remove(save)
            reference = self._pool.actor(worker).save.remote(save.subject, save.buffer, save.digest)
            self._running[reference] = dataclasses.replace(
                save, worker=worker, tries=save.tries + 1, since=time.monotonic()
            )

    def owns(self, reference: Any) -> bool:
        """Whether a reference is one of those to wait for."""
        return reference in self._running

    def arrived(self, reference: Any, failure: Failure | None) -> str:
        """A save has ended.

        Returns:
            The id of a subject of which nothing is being saved any more; empty if it is tried again.

        Raises:
            OutageError: the output was out of reach each time.
            RunError: the output refuses it.
        """
        save = self._running.pop(reference)
        if failure is None:
            return self._forget(save)
        path, caps = save.subject.cache_path, self._options.caps
        over = save.tries >= caps.saves
        if failure.fault.stops_run or (over and failure.lasting):
            raise RunError(f"{path} could not be written: {failure}")
        if over and failure.fault is Fault.STORAGE:
            raise OutageError(f"{path} could not be written: {failure}")
        if over or failure.fault is Fault.ANCHORS_LOST:
            self._emit(Notice(f"{path} could not be saved, a resume would make it again: {failure}"))
            return self._forget(save)
        others = [name for name in self._pool.names if name != save.worker]
        self._waiting.append(dataclasses.replace(save, worker=others[0] if others else save.worker))
        return ""

    def check(self, now: float) -> None:
        """Give up waiting for those that take far too long.

        Raises:
            RunError: see :meth:`arrived`.
        """
        for reference, save in list(self._running.items()):
            if now - save.since > self._options.stuck_seconds + save.nbytes / SLOWEST:
                self.arrived(reference, Failure(Fault.STUCK, "Stuck", f"not written within {now - save.since:.0f} s"))

    def drop(self, subject_id: str) -> bool:
        """Nobody needs a subject's cache any more.

        Returns:
            Whether nothing of it is being saved, so that it may be deleted.
        """
        for save in [save for save in self._waiting if save.subject.subject_id == subject_id]:
            self._waiting.remove(save)
            self._forget(save)
        return all(save.subject.subject_id != subject_id for save in self._running.values())

    def hurry(self, ready: Collection[str]) -> None:
        """The run is being stopped: what was made in vain otherwise is saved, with one try each and nobody's help."""
        self.start(ready)
        for save in [save for save in self._waiting if save.tries or save.worker not in ready]:
            self._waiting.remove(save)
            self._forget(save)

    def _forget(self, save: _Save) -> str:
        self._scheduler.saved(save.subject.subject_id)
        return save.subject.subject_id
