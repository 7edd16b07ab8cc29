"""Who renders what next: the run's decisions as a state machine without Ray, clocks or files.

The coordinator tells it what happened (a worker came, a call finished, a worker died) and asks for the next calls.
What it promises, whatever the order of events:

* every asset ends exactly once, done or given up, unless the run stops;
* at most ``max_in_flight`` calls are with a worker at a time;
* a worker leaves its subject only when nothing of it is left to take, and steals from others only when it is idle:
  a subject whose cache its machine has already, or else the one with the most left;
* an anchor cache is begun only if, as far as its size is known, all that are alive then stay within ``cache_budget``
  bytes, and those on its machine within the machine's limit (one is always allowed);
* a cache is copied to a further machine only if there is room, too, unless it is there to try again what went wrong
  elsewhere, or nobody is left where it lies;
* while there are more subjects than workers, a worker makes the next one's anchors before its own one's last batch, and
  two in a row if need be, so that its device need not wait while a cache is hashed and stored;
* an asset that was with a worker when it died is tried again with nothing else on that worker, so that an asset that
  kills processes takes no other down with it;
* a subject all of whose scenes kill or fail does not get to try each of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping

from consistory_ray.engine.faults import Caps, Fault
from consistory_ray.engine.scheduling.attempts import Attempts, anchors_key
from consistory_ray.engine.scheduling.cache_account import CacheAccount
from consistory_ray.engine.scheduling.homes import Homes, largest_first
from consistory_ray.engine.scheduling.work import (
    BatchLimit,
    Call,
    CallKind,
    KnownWorker,
    OpenSubject,
    State,
    SubjectWork,
)

AHEAD_BATCHES = 1
"""How many batches before a subject's end the next one's anchors are made. What is then done beside the device takes
about eight seconds for SDXL; more batches only keep more caches alive."""


class Scheduler:
    """The state machine. Methods that report something return the ids of the assets that were given up because of it.

    Args:
        works: the subjects, in the order in which they should be taken up.
        batch_size: scenes per call at most, where the worker does not know better; reduced, per worker and picture
            size, where the device runs out of memory.
        max_in_flight: calls per worker, so that a worker never waits for the coordinator between two calls.
        cache_budget: bytes of anchor caches that may be alive at a time; None is no limit.
        cache_limits: bytes of anchor caches that may lie on each machine; one that is not named has no limit.
        caps: when to give up.

    Attributes:
        caches: the account of those that are.
        stop_reason: set when going on is pointless; the coordinator then stops the run.
    """

    def __init__(
        self,
        works: Iterable[SubjectWork],
        *,
        batch_size: int,
        max_in_flight: int = 2,
        cache_budget: int | None = None,
        cache_limits: Mapping[str, int] | None = None,
        caps: Caps | None = None,
    ) -> None:
        self._subjects = {work.subject_id: OpenSubject(work, deque(work.scenes)) for work in works}
        self._waiting = deque(self._subjects.values())
        self._homes = Homes()
        self._suspected: dict[str, OpenSubject] = {}
        self._workers: dict[str, KnownWorker] = {}
        self._staying: Counter[str] = Counter()  # workers on each machine that are not leaving
        self._freed: dict[str, None] = {}  # workers that finished a call since the last assignment
        self._news = False  # whether anything happened since then that may concern all workers
        self._released: list[str] = []
        self._caps = caps or Caps()
        self._attempts = Attempts(self._caps)
        self._batch_size = batch_size
        self._limits: dict[tuple[str, tuple[int | None, int | None]], BatchLimit] = {}
        self._max_in_flight = max_in_flight
        self.caches = CacheAccount(cache_budget, cache_limits)
        self._short: dict[str, int] = {}  # workers that wait for room for a cache, and the size of what they wait for
        self._acquitted: set[str] = set()
        self._next_id = 0
        self._unassigned = sum(len(subject.pending) for subject in self._subjects.values())
        self._open = self._unassigned + sum(len(subject.work.anchors) for subject in self._subjects.values())
        self.stop_reason: Fault | None = None

    # What the coordinator asks

    @property
    def finished(self) -> bool:
        """Whether every asset is done or given up and no call is out."""
        return self._open == 0 and not any(worker.calls for worker in self._workers.values())

    @property
    def queued(self) -> int:
        """How many scenes no worker has yet."""
        return self._unassigned

    @property
    def wanted_workers(self) -> int:
        """How many workers could have something to do."""
        return max(-(-self._unassigned // self._batch_size), len(self._waiting)) + self.busy

    @property
    def busy(self) -> int:
        """How many workers have a call."""
        return sum(bool(worker.calls) for worker in self._workers.values())

    @property
    def short_of_room(self) -> dict[str, int]:
        """The workers that have nothing to do because there is no room for a cache, and how large it would be."""
        return {
            name: size
            for name, size in self._short.items()
            if (worker := self._workers.get(name)) is not None and not worker.calls and not worker.leaving
        }

    def calls_of(self, name: str) -> tuple[Call, ...]:
        """The calls that a worker has."""
        worker = self._workers.get(name)
        return tuple(worker.calls.values()) if worker is not None else ()

    def assign(self) -> list[Call]:
        """The calls to submit now: every worker gets its first before any gets its second."""
        candidates = list(self._workers.values()) if self._news else [self._workers[name] for name in self._freed]
        self._freed.clear()
        self._news = False
        calls = []
        for depth in range(self._max_in_flight):
            for worker in candidates:
                if len(worker.calls) == depth and (call := self._next_call(worker)) is not None:
                    worker.calls[call.call_id] = call
                    calls.append(call)
        return calls

    def take_released(self) -> list[str]:
        """Subjects whose anchor cache nobody needs any more since the last time this was asked."""
        released, self._released = self._released, []
        return released

    def saved(self, subject_id: str) -> None:
        """A cache that was pinned in the account was saved, or will not be: there may be room now."""
        self.caches.unpin(subject_id)
        self._news = True

    def limit_caches(self, limits: Mapping[str, int]) -> None:
        """How many bytes of caches may lie on each machine from now on; there may be room now."""
        if limits != self.caches.limits:
            self.caches.limits = dict(limits)
            self._news = True

    def expected_cache_bytes(self, subject_id: str) -> int:
        """What was expected of a subject's cache before any was made."""
        return self._subjects[subject_id].work.cache_bytes

    def is_over(self, subject_id: str) -> bool:
        """Whether nothing of a subject is left to do, or whatever is left fails."""
        return self._subjects[subject_id].state is State.OVER

    def take_acquitted(self) -> set[str]:
        """Workers of which it has turned out, since this was last asked, that an asset took them down."""
        acquitted, self._acquitted = self._acquitted, set()
        return acquitted

    # What the coordinator reports

    def add_worker(
        self,
        name: str,
        node: str = "",
        batches: Mapping[tuple[int | None, int | None], int] | None = None,
        *,
        shaken: bool = False,
    ) -> None:
        """A worker is ready for calls.

        Args:
            name: of the worker.
            node: its machine; workers of one machine share what its object store holds.
            batches: how many scenes it can take at a time, by picture size, instead of ``batch_size``.
            shaken: whether it takes the place of one that died; it then gets a suspect only after other work.
        """
        self._workers[name] = KnownWorker(name, node, batches or {}, shaken=shaken)
        self._staying[node] += 1
        self._news = True

    def retire_worker(self, name: str) -> None:
        """A worker gets no more calls; those it has go on."""
        worker = self._workers[name]
        self._staying[worker.node] -= not worker.leaving
        worker.leaving = True

    def remove_worker(self, name: str, fault: Fault = Fault.NODE_DIED) -> tuple[str, ...]:
        """A worker is gone; its calls come back. If its process died, the assets it had are suspects."""
        worker = self._workers.pop(name, None)
        self._short.pop(name, None)
        if worker is None:
            return ()
        self._staying[worker.node] -= not worker.leaving
        self._freed.pop(name, None)
        self._news = True
        self._homes.move(worker, None)
        given_up: list[str] = []
        for call in worker.calls.values():
            self._subjects[call.subject_id].in_flight -= 1
            given_up += self._fault(call, fault)
        return tuple(given_up)

    def done(
        self, call: Call, faults: Mapping[str, Fault] | None = None, cache_bytes: int | None = None
    ) -> tuple[str, ...]:
        """A call came back: its assets are done, except for those scenes that are in ``faults``.

        Args:
            call: the call.
            faults: what went wrong with single scenes.
            cache_bytes: the true size of the subject's cache, after an ``"anchors"`` call.
        """
        worker, subject = self._take_back(call)
        worker.shaken = worker.shaken and bool(faults)
        if call.kind == "scenes" and not faults:
            subject.killers = subject.failures = subject.losses = 0
            if (limit := self._limits.get((worker.name, subject.work.size))) is not None:
                limit.fitted(len(call.assets))
        if call.kind == "anchors":
            subject.state, subject.anchors_made = State.READY, True
            if cache_bytes is not None:
                self.caches.made(call.subject_id, subject.work.cache_bytes, cache_bytes)
            self._attempts.forget(anchors_key(call.subject_id))
            self._homes.file(subject)
            self._news = True
            if worker.home is None or not worker.home.takeable:
                self._homes.move(worker, subject)
        given_up: list[str] = []
        for asset in call.assets:
            fault = (faults or {}).get(asset)
            if fault is None:
                self._close(asset)
            else:
                given_up += self._blame(subject, asset, fault, call)
        self._retire(subject)
        return tuple(given_up)

    def failed(self, call: Call, fault: Fault) -> tuple[str, ...]:
        """A call failed as a whole on a worker that is still there."""
        self._take_back(call)
        return tuple(self._fault(call, fault))

    # Choosing

    def _next_call(self, worker: KnownWorker) -> Call | None:
        if worker.leaving or any(call.alone for call in worker.calls.values()):
            return None
        choices: list[Callable[[KnownWorker], Call | None]] = [
            self._from_home,
            self._from_ownerless,
            self._open_subject,
        ]
        self._short.pop(worker.name, None)
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
        if home is None or not worker.calls or len(self._waiting) <= len(self._workers):
            return False
        return 0 < home.takeable <= AHEAD_BATCHES * self._fitting(worker, home) * len(home.homes)

    def _fitting(self, worker: KnownWorker, subject: OpenSubject) -> int:
        """How many scenes of a subject the worker has room for at a time."""
        fitting = worker.batches.get(subject.work.size, self._batch_size)
        limit = self._limits.get((worker.name, subject.work.size))
        return fitting if limit is None else min(limit.count, fitting)

    def _suspect(self, worker: KnownWorker) -> Call | None:
        for subject in self._suspected.values():
            if subject.state is not State.READY:
                continue
            for asset in subject.suspects:
                if self._may_try(asset, worker):
                    self._reaches(worker, subject, needed=True)
                    subject.suspects.remove(asset)
                    if not subject.suspects:
                        del self._suspected[subject.work.subject_id]
                    return self._scenes_call(worker, subject, (asset,), alone=True)
        return None

    def _from_home(self, worker: KnownWorker) -> Call | None:
        return self._take(worker, worker.home) if worker.home is not None else None

    def _from_ownerless(self, worker: KnownWorker) -> Call | None:
        return self._settle_at_largest(worker, self._homes.ownerless) if self._homes.ownerless else None

    def _steal(self, worker: KnownWorker) -> Call | None:
        return self._settle_at_largest(worker, self._homes.takeable) if self._homes.takeable else None

    def _settle_at_largest(self, worker: KnownWorker, subjects: Mapping[str, OpenSubject]) -> Call | None:
        for subject in largest_first(subjects.values(), worker.node, self._batch_size):
            if (call := self._take(worker, subject)) is not None:
                self._homes.move(worker, subject)
                return call
        return None

    def _take(self, worker: KnownWorker, subject: OpenSubject) -> Call | None:
        """A batch of the subject's scenes, or one of those that are tried one at a time."""
        if subject.state is not State.READY or (worker.shaken and subject.suspects):
            return None
        for asset in subject.singles:
            if self._may_try(asset, worker):
                self._reaches(worker, subject, needed=True)
                subject.singles.remove(asset)
                return self._scenes_call(worker, subject, (asset,))
        if not subject.pending or not self._reaches(worker, subject):
            return None
        count = min(self._fitting(worker, subject), len(subject.pending))
        if self._unassigned < count * len(self._workers):
            # at the end of a run everybody gets a piece: the idle share what is left, the busy do not take it all
            idle = sum(not other.calls for other in self._workers.values())
            rivals = len(self._workers) if worker.calls else idle
            count = min(count, -(-self._unassigned // rivals))
        return self._scenes_call(worker, subject, tuple(subject.pending.popleft() for _ in range(count)))

    def _reaches(self, worker: KnownWorker, subject: OpenSubject, *, needed: bool = False) -> bool:
        """Whether the worker's machine has the subject's cache, or gets a copy of it."""
        own = subject.work.subject_id
        if self.caches.copies(own, worker.node, needed=needed):
            return True
        if any(self._staying[node] for node in subject.nodes):
            self._short[worker.name] = self.caches.expected(subject.work.cache_bytes)
            return False
        return self.caches.copies(own, worker.node, needed=True)  # nobody else could ever take it

    def _scenes_call(
        self, worker: KnownWorker, subject: OpenSubject, assets: tuple[str, ...], alone: bool = False
    ) -> Call:
        self._unassigned -= len(assets)
        self._homes.file(subject)
        return self._call(worker, "scenes", subject, assets, self._attempts.number(assets[0]), alone)

    def _open_subject(self, worker: KnownWorker) -> Call | None:
        """Take up the next subject, unless this worker is still making another one's anchors.

        While there are many more subjects than workers it may make two in a row: the first ones' cache is hashed and
        stored meanwhile. With fewer, the second one is somebody else's.
        """
        making = sum(call.kind == "anchors" for call in worker.calls.values())
        if making and (making < len(worker.calls) or making > 1 or len(self._waiting) <= len(self._workers)):
            return None
        for index, subject in enumerate(self._waiting):
            if subject.anchors_made and not (subject.takeable or subject.suspects):
                continue  # its cache was lost, but calls that still had it may finish the subject
            key = anchors_key(subject.work.subject_id)
            alone = self._attempts.alone(key)
            if (alone and worker.calls) or not self._may_try(key, worker):
                continue
            if not self.caches.opens(subject.work.subject_id, subject.work.cache_bytes, worker.node):
                self._short[worker.name] = self.caches.expected(subject.work.cache_bytes)
                return None
            del self._waiting[index]
            subject.state = State.MAKING
            assets = () if subject.anchors_made else subject.work.anchors
            return self._call(worker, "anchors", subject, assets, self._attempts.number(key), alone)
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

    def _node(self, name: str) -> str:
        worker = self._workers.get(name)
        return worker.node if worker is not None else ""

    def _may_try(self, key: str, worker: KnownWorker) -> bool:
        staying = (name for name, other in self._workers.items() if not other.leaving)
        return self._attempts.may_try(key, worker.name, staying)

    # Settling

    def _take_back(self, call: Call) -> tuple[KnownWorker, OpenSubject]:
        worker, subject = self._workers[call.worker], self._subjects[call.subject_id]
        worker.calls.pop(call.call_id)
        self._freed[worker.name] = None
        subject.in_flight -= 1
        return worker, subject

    def _fault(self, call: Call, fault: Fault) -> list[str]:
        """What becomes of a call that failed as a whole."""
        subject = self._subjects[call.subject_id]
        if fault.stops_run:
            self.stop_reason = fault
        if call.kind == "anchors":
            given_up = self._anchors_failed(subject, call, fault)
        elif fault is Fault.ANCHORS_LOST:
            given_up = self._lose_cache(subject, call)
        elif fault is Fault.NODE_DIED:
            given_up = self._requeue_all(subject, call)
        elif fault.blames_assets or len(call.assets) == 1:
            given_up = [lost for asset in call.assets for lost in self._blame(subject, asset, fault, call)]
        elif fault is Fault.STORE_FULL:
            given_up = self._requeue_all(subject, call)
        elif fault is Fault.OUT_OF_MEMORY:
            key = (call.worker, subject.work.size)
            self._limits.setdefault(key, BatchLimit(len(call.assets))).exceeded(len(call.assets))
            given_up = self._requeue_all(subject, call)
        else:
            for asset in call.assets:
                self._attempts.suspect(asset)
            given_up = self._requeue_all(subject, call)
        self._retire(subject)
        return given_up

    def _anchors_failed(self, subject: OpenSubject, call: Call, fault: Fault) -> list[str]:
        self.caches.close(call.subject_id)
        subject.state = State.WAITING
        self._news = True
        key = anchors_key(call.subject_id)
        if fault is Fault.STORE_FULL:
            self.caches.full(self._node(call.worker))
            subject.losses += 1
            if subject.losses > self._caps.cache_losses:
                return self._fail_subject(subject)
        elif self._attempts.charge(key, fault, call.worker, call.alone):
            return self._fail_subject(subject)
        if self._attempts.storage_given_up(key):
            self.stop_reason = Fault.STORAGE
        self._waiting.appendleft(subject)
        return []

    def _lose_cache(self, subject: OpenSubject, call: Call) -> list[str]:
        if subject.state is not State.READY or call.generation != subject.generation:
            return self._requeue_all(subject, call)  # the first call that missed it has said so already
        subject.generation += 1
        subject.losses += 1
        subject.nodes.clear()
        subject.state = State.WAITING
        self._news = True
        self._homes.file(subject)
        self.caches.close(call.subject_id)
        self._released.append(call.subject_id)
        if subject.losses > self._caps.cache_losses:
            return self._fail_subject(subject) + self._requeue_all(subject, call)
        self._waiting.appendleft(subject)
        return self._requeue_all(subject, call)

    def _blame(self, subject: OpenSubject, asset: str, fault: Fault, call: Call) -> list[str]:
        if fault.stops_run:
            self.stop_reason = fault
        if self._attempts.charge(asset, fault, call.worker, call.alone):
            subject.killers += fault.blames_assets
            self._acquitted |= self._attempts.crashed_on(asset)
            subject.failures += fault is Fault.ERROR
            hopeless = subject.killers >= self._caps.killers or subject.failures >= self._caps.failing
            return self._give_up([asset]) + (self._fail_subject(subject) if hopeless else [])
        if self._attempts.storage_given_up(asset):
            self.stop_reason = Fault.STORAGE
        return self._requeue(subject, asset)

    def _requeue_all(self, subject: OpenSubject, call: Call) -> list[str]:
        return [lost for asset in reversed(call.assets) for lost in self._requeue(subject, asset)]

    def _requeue(self, subject: OpenSubject, asset: str) -> list[str]:
        if subject.given_up:
            return self._give_up([asset])
        self._unassigned += 1
        self._news = True
        if self._attempts.alone(asset):
            if self._attempts.crashed_on(asset):
                subject.suspects.appendleft(asset)  # first those of which it is nearly known
            else:
                subject.suspects.append(asset)
            self._suspected[subject.work.subject_id] = subject
        elif self._attempts.troubled(asset):
            subject.singles.append(asset)
        else:
            subject.pending.appendleft(asset)
        self._homes.file(subject)
        return []

    def _fail_subject(self, subject: OpenSubject) -> list[str]:
        """Without anchors there are no scenes. Calls that are still out may yet deliver some."""
        subject.given_up = True
        self._let_go(subject)
        self._suspected.pop(subject.work.subject_id, None)
        scenes = [*subject.suspects, *subject.singles, *subject.pending]
        self._unassigned -= len(scenes)
        for queue in (subject.suspects, subject.singles, subject.pending):
            queue.clear()
        self._homes.file(subject)
        return self._give_up(scenes if subject.anchors_made else [*subject.work.anchors, *scenes])

    def _give_up(self, assets: Iterable[str]) -> list[str]:
        assets = list(assets)
        for asset in assets:
            self._close(asset)
        return assets

    def _close(self, asset: str) -> None:
        self._open -= 1
        self._attempts.forget(asset)

    def _retire(self, subject: OpenSubject) -> None:
        """Let go of a subject with nothing left to do."""
        if subject.state is State.READY and not (subject.takeable or subject.suspects or subject.in_flight):
            self._let_go(subject)

    def _let_go(self, subject: OpenSubject) -> None:
        subject.state = State.OVER
        self._news = self._news or self.caches.is_limited
        if self.caches.close(subject.work.subject_id):
            self._released.append(subject.work.subject_id)
        for name in list(subject.homes):
            self._homes.move(self._workers[name], None)
