"""The anchor caches of a run while it goes on: who was given them, which are saved in the output, when they go."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from consistory_ray.engine.dispatching.cache_saving import CacheSaver
from consistory_ray.engine.events import Event, Notice, size
from consistory_ray.engine.faults import Failure
from consistory_ray.engine.options import KeepAnchors, RunOptions
from consistory_ray.engine.scheduling.scheduler import Scheduler
from consistory_ray.plan.forecast import keeps_caches

if TYPE_CHECKING:
    from consistory_ray.engine.dispatching.pool import WorkerPool
    from consistory_ray.engine.workers.worker import Report
    from consistory_ray.plan.plan import SubjectPlan

SAVE_AFTER_SECONDS = 300.0
"""A cache that will not be kept is written to the output only if its subject is not finished by then: making a few
again in a resume costs less than writing all of them."""


class CachePolicy:
    """What becomes of the caches that a run makes. No clock and no files.

    Args:
        keep: what was asked for.
        expected: bytes of all caches of the plan, as expected.
    """

    def __init__(self, keep: KeepAnchors, expected: int) -> None:
        self._keep = keep
        self._expected = expected
        self._scale: float | None = None

    @property
    def saves(self) -> bool:
        """Whether a cache is ever written to the output."""
        return self._keep != "none"

    @property
    def keeps(self) -> bool:
        """Whether the caches of finished subjects stay there."""
        return keeps_caches(self._keep, self.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all caches of the plan, as they are expected since the first one was made."""
        return round(self._expected * (1.0 if self._scale is None else self._scale))

    @property
    def delay(self) -> float:
        """After how many seconds a new cache is saved, if it is needed for so long."""
        return 0.0 if self.keeps else SAVE_AFTER_SECONDS

    def learn(self, expected: int, size: int) -> bool:
        """A cache is there. Only the first one decides: all of a run's caches are treated alike.

        Returns:
            Whether it was the first.
        """
        first = self._scale is None
        if first:
            self._scale = size / expected if expected else 1.0
        return first


@dataclasses.dataclass(frozen=True, slots=True)
class _Unsaved:
    """A cache that is saved at a time if it is still needed then."""

    due: float
    digest: str
    nbytes: int
    worker: str


class CacheKeeper:
    """Holds a reference to each cache that is alive, which is what keeps it in Ray's object store.

    Args:
        subjects: the plan's subjects by id.
        scheduler: says when nobody needs a cache any more.
        pool: the workers.
        options: the run's options.
        policy: which caches are saved when, and whether they stay.
        clear: deletes the cache of a subject of which every scene is there; None keeps them.
        emit: where events go.

    Attributes:
        saver: those on their way to the output.
    """

    def __init__(
        self,
        subjects: Mapping[str, SubjectPlan],
        scheduler: Scheduler,
        pool: WorkerPool,
        options: RunOptions,
        policy: CachePolicy,
        clear: Callable[[SubjectPlan], None] | None,
        emit: Callable[[Event], None],
    ) -> None:
        self.saver = CacheSaver(pool, scheduler, options, emit)
        self._subjects = subjects
        self._scheduler = scheduler
        self._pool = pool
        self._options = options
        self._policy = policy
        self._clear = clear
        self._emit = emit
        self._references: dict[str, Any] = {}
        self._digests: dict[str, str] = {}
        self._served: dict[str, set[str]] = {}  # the workers that were given it
        self._unsaved: dict[str, _Unsaved] = {}
        self._lacking: set[str] = set()  # subjects of which something was given up

    def lend(self, subject_id: str, worker: str) -> tuple[Any, str]:
        """The reference of a subject's cache, for a worker that renders from it, and its checksum."""
        self._served.setdefault(subject_id, set()).add(worker)
        return self._references[subject_id], self._digests.get(subject_id, "")

    def take(self, subject_id: str, worker: str, report: Report, reference: Any) -> None:
        """A worker has made or loaded a subject's cache."""
        self._references[subject_id] = reference
        self._digests[subject_id] = report.cache_sha256
        self._served.setdefault(subject_id, set()).add(worker)
        if self._policy.learn(self._scheduler.expected_cache_bytes(subject_id), report.cache_bytes):
            self._tell()
        if self._policy.saves and (report.made or report.import_cache):
            due = time.monotonic() + self._policy.delay
            self._unsaved[subject_id] = _Unsaved(due, report.cache_sha256, report.cache_bytes, worker)
            self.save_what_is_due()

    def save_what_is_due(self) -> None:
        """Begin to save what has been needed for long enough."""
        now = time.monotonic()
        for subject_id in [subject_id for subject_id, there in self._unsaved.items() if there.due <= now]:
            self._save(subject_id)

    def saved(self, reference: Any, failure: Failure | None) -> None:
        """One of the saver's references has come.

        Raises:
            OutageError, RunError: as :meth:`CacheSaver.arrived` says.
        """
        self._clear_finished(self.saver.arrived(reference, failure))

    def lacks(self, subject_id: str) -> None:
        """Something of the subject was given up: somebody may want to try it again."""
        self._lacking.add(subject_id)

    def release(self, ready: Collection[str]) -> None:
        """Let go of the caches that nobody needs any more; ``ready`` workers may still hold them."""
        for subject_id in self._scheduler.take_released():
            if subject_id in self._unsaved and subject_id in self._lacking and self._scheduler.is_over(subject_id):
                self._save(subject_id)
            self._unsaved.pop(subject_id, None)
            self._references.pop(subject_id, None)
            self._digests.pop(subject_id, None)
            key = self._subjects[subject_id].subject_key
            for name in self._served.pop(subject_id, set()).intersection(ready):
                self._pool.actor(name).forget.remote(key)
            self._clear_finished(subject_id)

    def hurry(self, ready: Collection[str]) -> None:
        """The run is being stopped: what a resume would have to make again is saved now."""
        for subject_id in list(self._unsaved):
            if not self._scheduler.is_over(subject_id):
                self._save(subject_id)
        self.saver.hurry(ready)

    def _save(self, subject_id: str) -> None:
        there, reference = self._unsaved.pop(subject_id), self._references[subject_id]
        self.saver.add(bare(self._subjects[subject_id]), reference, there.digest, there.nbytes, there.worker)

    def _clear_finished(self, subject_id: str) -> None:
        """Delete a subject's cache if that is wanted, every scene is there, and nobody is writing it."""
        if self._clear is None or self._policy.keeps or not subject_id or subject_id in self._lacking:
            return
        if self._scheduler.is_over(subject_id) and self.saver.drop(subject_id):
            self._clear(self._subjects[subject_id])

    def _tell(self) -> None:
        if self._options.keep_anchors == "auto" and not self._policy.keeps:
            what = f"the anchor caches of all subjects would take {size(self._policy.nbytes)}"
            self._emit(Notice(f"{what}: each is kept until its scenes are there (--keep-anchors all keeps them)"))


def bare(subject: SubjectPlan) -> SubjectPlan:
    """A subject without its scenes, of which there may be very many."""
    return dataclasses.replace(subject, scenes=(), takes=())
