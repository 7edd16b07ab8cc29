"""What a worker gets next: scenes where it is at home, a subject to take up, or something of another's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from consistory_ray.engine.scheduling.board import Board
from consistory_ray.engine.scheduling.failure_record import anchors_key
from consistory_ray.engine.scheduling.state import Call, CallKind, KnownWorker, OpenSubject, State

AHEAD_BATCHES = 1
"""How many batches before a subject's end the next one's anchors are made. What is then done beside the device takes
about eight seconds for SDXL; more batches only keep more caches alive."""


class Chooser:
    """Makes the calls.

    Args:
        board: what is known; what a call takes is taken from it.
        batch_size: scenes per call at most, where the worker does not know better.

    Attributes:
        short: workers that wait for room for a cache, and the size of what they wait for.
    """

    def __init__(self, board: Board, batch_size: int) -> None:
        self._board = board
        self._batch_size = batch_size
        self._next_id = 0
        self.short: dict[str, int] = {}

    def next_call(self, worker: KnownWorker) -> Call | None:
        """The worker's next call, if there is something for it now."""
        if worker.leaving or any(call.alone for call in worker.calls.values()):
            return None
        choices: list[Callable[[KnownWorker], Call | None]] = [
            self._from_home,
            self._from_ownerless,
            self._open_subject,
        ]
        self.short.pop(worker.name, None)
        if self._nears_the_end(worker):
            choices.insert(0, choices.pop())
        if not worker.calls:
            choices.append(self._steal)
            choices.insert(len(choices) if worker.shaken else 0, self._suspect)
        for choose in choices:
            if (call := choose(worker)) is not None:
                return call
        return None

    def _nears_the_end(self, worker: KnownWorker) -> bool:
        """Whether a worker that has a call had better make the next subject's anchors before its own one's last scenes.

        Their cache is then hashed and stored while those are rendered. Only with subjects enough for everybody.
        """
        home = worker.home
        if home is None or not worker.calls or len(self._board.waiting) <= len(self._board.workers):
            return False
        return 0 < home.takeable <= AHEAD_BATCHES * self._fitting(worker, home) * len(home.homes)

    def _fitting(self, worker: KnownWorker, subject: OpenSubject) -> int:
        """How many scenes of a subject the worker has room for at a time."""
        fitting = worker.batches.get(subject.work.size, self._batch_size)
        limit = self._board.batch_limits.get((worker.name, subject.work.size))
        return fitting if limit is None else min(limit.count, fitting)

    def _suspect(self, worker: KnownWorker) -> Call | None:
        for subject in self._board.suspected.values():
            if subject.state is not State.READY:
                continue
            for asset in subject.suspects:
                if self._board.may_try(asset, worker):
                    self._reaches(worker, subject, needed=True)
                    subject.suspects.remove(asset)
                    if not subject.suspects:
                        del self._board.suspected[subject.work.subject_id]
                    return self._scenes_call(worker, subject, (asset,), alone=True)
        return None

    def _from_home(self, worker: KnownWorker) -> Call | None:
        return self._take(worker, worker.home) if worker.home is not None else None

    def _from_ownerless(self, worker: KnownWorker) -> Call | None:
        return self._settle_at_largest(worker, self._board.ownerless) if self._board.ownerless else None

    def _steal(self, worker: KnownWorker) -> Call | None:
        return self._settle_at_largest(worker, self._board.takeable) if self._board.takeable else None

    def _settle_at_largest(self, worker: KnownWorker, subjects: Mapping[str, OpenSubject]) -> Call | None:
        for subject in _largest_first(subjects.values(), worker.node, self._batch_size):
            if (call := self._take(worker, subject)) is not None:
                self._board.move_home(worker, subject)
                return call
        return None

    def _take(self, worker: KnownWorker, subject: OpenSubject) -> Call | None:
        """A batch of the subject's scenes, or one of those that are tried one at a time."""
        if subject.state is not State.READY or (worker.shaken and subject.suspects):
            return None
        for asset in subject.singles:
            if self._board.may_try(asset, worker):
                self._reaches(worker, subject, needed=True)
                subject.singles.remove(asset)
                return self._scenes_call(worker, subject, (asset,))
        if not subject.pending or not self._reaches(worker, subject):
            return None
        count = min(self._fitting(worker, subject), len(subject.pending))
        if self._board.unassigned < count * len(self._board.workers):
            # at the end of a run everybody gets a piece: the idle share what is left, the busy do not take it all
            idle = sum(not other.calls for other in self._board.workers.values())
            rivals = len(self._board.workers) if worker.calls else idle
            count = min(count, -(-self._board.unassigned // rivals))
        return self._scenes_call(worker, subject, tuple(subject.pending.popleft() for _ in range(count)))

    def _reaches(self, worker: KnownWorker, subject: OpenSubject, *, needed: bool = False) -> bool:
        """Whether the worker's machine has the subject's cache, or gets a copy of it."""
        own = subject.work.subject_id
        if self._board.caches.copies(own, worker.node, needed=needed):
            return True
        if any(self._board.staying[node] for node in subject.nodes):
            self.short[worker.name] = self._board.caches.expected(subject.work.cache_bytes)
            return False
        return self._board.caches.copies(own, worker.node, needed=True)  # nobody else could ever take it

    def _scenes_call(
        self, worker: KnownWorker, subject: OpenSubject, assets: tuple[str, ...], alone: bool = False
    ) -> Call:
        self._board.unassigned -= len(assets)
        self._board.file(subject)
        return self._call(worker, "scenes", subject, assets, self._board.failures.number(assets[0]), alone)

    def _open_subject(self, worker: KnownWorker) -> Call | None:
        """Take up the next subject, unless this worker is still making another one's anchors.

        While there are many more subjects than workers it may make two in a row: the first ones' cache is hashed and
        stored meanwhile. With fewer, the second one is somebody else's.
        """
        making = sum(call.kind == "anchors" for call in worker.calls.values())
        if making and (
            making < len(worker.calls) or making > 1 or len(self._board.waiting) <= len(self._board.workers)
        ):
            return None
        for index, subject in enumerate(self._board.waiting):
            if subject.anchors_made and not (subject.takeable or subject.suspects):
                continue  # its cache was lost, but calls that still had it may finish the subject
            key = anchors_key(subject.work.subject_id)
            alone = self._board.failures.alone(key)
            if (alone and worker.calls) or not self._board.may_try(key, worker):
                continue
            if not self._board.caches.opens(subject.work.subject_id, subject.work.cache_bytes, worker.node):
                self.short[worker.name] = self._board.caches.expected(subject.work.cache_bytes)
                return None
            del self._board.waiting[index]
            subject.state = State.MAKING
            assets = () if subject.anchors_made else subject.work.anchors
            return self._call(worker, "anchors", subject, assets, self._board.failures.number(key), alone)
        return None

    def _call(
        self,
        worker: KnownWorker,
        kind: CallKind,
        subject: OpenSubject,
        assets: tuple[str, ...],
        attempt: int,
        alone: bool,
    ) -> Call:
        self._next_id += 1
        subject.in_flight += 1
        subject.nodes.add(worker.node)
        own = subject.work.subject_id
        return Call(self._next_id, worker.name, kind, own, assets, attempt, alone, subject.generation)


def _largest_first(subjects: Iterable[OpenSubject], node: str, batch_size: int) -> list[OpenSubject]:
    """Those with the most left first, but before them those of which the machine has the cache and a batch is left."""

    def preference(subject: OpenSubject) -> tuple[bool, int]:
        return node in subject.nodes and subject.takeable >= batch_size, subject.takeable

    return sorted(subjects, key=preference, reverse=True)
