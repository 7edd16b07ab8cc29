"""What the scheduler knows, and the moves that keep it true."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable

from consistory_ray.engine.faults import Caps, Fault
from consistory_ray.engine.scheduling.cache_account import CacheAccount
from consistory_ray.engine.scheduling.failure_record import FailureRecord
from consistory_ray.engine.scheduling.state import (
    BatchLimit,
    Call,
    KnownWorker,
    OpenSubject,
    PictureSize,
    State,
    SubjectWork,
)


class Board:
    """All subjects and workers. Moves that end assets return the ids of those that were given up.

    Args:
        works: the subjects, in the order in which they should be taken up.
        caches: the account of anchor caches.
        caps: when to give up.

    Attributes:
        subjects: by id; waiting: those to be taken up; suspected: those that have suspects.
        takeable: those of which scenes can be taken; ownerless: those of them that no worker is at home with. These two
            are always true, so that nobody has to look through all subjects.
        workers: by name; staying: how many on each machine are not leaving.
        freed: workers that finished a call since the last assignment; news: whether anything happened since then that
            may concern all workers.
        released: subjects whose cache nobody needs any more; acquitted: workers that an asset took down.
        failures: what went wrong so far.
        batch_limits: how many scenes at a time a worker was found to have room for, by picture size.
        unassigned: scenes that no worker has; open: assets that are neither done nor given up.
        stop_reason: set when going on is pointless.
    """

    def __init__(self, works: Iterable[SubjectWork], caches: CacheAccount, caps: Caps) -> None:
        self.caches = caches
        self.caps = caps
        self.failures = FailureRecord(caps)
        self.subjects = {work.subject_id: OpenSubject(work, deque(work.scenes)) for work in works}
        self.waiting = deque(self.subjects.values())
        self.suspected: dict[str, OpenSubject] = {}
        self.takeable: dict[str, OpenSubject] = {}
        self.ownerless: dict[str, OpenSubject] = {}
        self.workers: dict[str, KnownWorker] = {}
        self.staying: Counter[str] = Counter()
        self.freed: dict[str, None] = {}
        self.news = False
        self.released: list[str] = []
        self.acquitted: set[str] = set()
        self.batch_limits: dict[tuple[str, PictureSize], BatchLimit] = {}
        self.unassigned = sum(len(subject.pending) for subject in self.subjects.values())
        self.open = self.unassigned + sum(len(subject.work.anchors) for subject in self.subjects.values())
        self.stop_reason: Fault | None = None

    def may_try(self, key: str, worker: KnownWorker) -> bool:
        """Whether a worker may try what failed before."""
        staying = (name for name, other in self.workers.items() if not other.leaving)
        return self.failures.may_try(key, worker.name, staying)

    def move_home(self, worker: KnownWorker, home: OpenSubject | None) -> None:
        """A worker is at home with another subject from now on, or with none."""
        before, worker.home = worker.home, home
        if before is not None:
            before.homes.discard(worker.name)
            self.file(before)
        if home is not None:
            home.homes.add(worker.name)
            self.file(home)

    def file(self, subject: OpenSubject) -> None:
        """Keep ``takeable`` and ``ownerless`` true, after anything that decides it has changed."""
        own = subject.work.subject_id
        takeable = subject.state is State.READY and subject.takeable > 0
        for shelf, belongs in ((self.takeable, takeable), (self.ownerless, takeable and not subject.homes)):
            if belongs:
                shelf[own] = subject
            else:
                shelf.pop(own, None)

    def requeue_all(self, subject: OpenSubject, call: Call) -> list[str]:
        """Put back all that a call had."""
        return [lost for asset in reversed(call.assets) for lost in self.requeue(subject, asset)]

    def requeue(self, subject: OpenSubject, asset: str) -> list[str]:
        """Put a scene back where its record says that it belongs."""
        if subject.given_up:
            return self.give_up([asset])
        self.unassigned += 1
        self.news = True
        if self.failures.alone(asset):
            if self.failures.crashed_on(asset):
                subject.suspects.appendleft(asset)  # first those of which it is nearly known
            else:
                subject.suspects.append(asset)
            self.suspected[subject.work.subject_id] = subject
        elif self.failures.troubled(asset):
            subject.singles.append(asset)
        else:
            subject.pending.appendleft(asset)
        self.file(subject)
        return []

    def fail_subject(self, subject: OpenSubject) -> list[str]:
        """Without anchors there are no scenes. Calls that are still out may yet deliver some."""
        subject.given_up = True
        self._let_go(subject)
        self.suspected.pop(subject.work.subject_id, None)
        scenes = [*subject.suspects, *subject.singles, *subject.pending]
        self.unassigned -= len(scenes)
        for queue in (subject.suspects, subject.singles, subject.pending):
            queue.clear()
        self.file(subject)
        return self.give_up(scenes if subject.anchors_made else [*subject.work.anchors, *scenes])

    def add(self, subject: OpenSubject, scenes: Collection[str]) -> bool:
        """More scenes of a subject than were known at first; False if nothing of it is tried any more.

        One that was over is taken up again: its cache was let go, and is loaded once more.
        """
        if subject.given_up:
            return False
        subject.pending.extend(scenes)
        self.unassigned += len(scenes)
        self.open += len(scenes)
        self.news = True
        if subject.state is State.OVER:
            subject.state = State.WAITING
            self.waiting.append(subject)
        self.file(subject)
        return True

    def give_up(self, assets: Iterable[str]) -> list[str]:
        """These end, and not well."""
        assets = list(assets)
        for asset in assets:
            self.close(asset)
        return assets

    def close(self, asset: str) -> None:
        """An asset ends."""
        self.open -= 1
        self.failures.forget(asset)

    def retire(self, subject: OpenSubject) -> None:
        """Let go of a subject if nothing is left to do."""
        if subject.state is State.READY and not (subject.takeable or subject.suspects or subject.in_flight):
            self._let_go(subject)

    def _let_go(self, subject: OpenSubject) -> None:
        subject.state = State.OVER
        self.news = self.news or self.caches.is_limited
        if self.caches.close(subject.work.subject_id):
            self.released.append(subject.work.subject_id)
        for name in list(subject.homes):
            self.move_home(self.workers[name], None)
