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

from collections.abc import Collection, Iterable, Mapping

from consistory_ray.engine.faults import Caps, Fault
from consistory_ray.engine.scheduling.board import Board
from consistory_ray.engine.scheduling.cache_account import CacheAccount
from consistory_ray.engine.scheduling.choosing import Chooser
from consistory_ray.engine.scheduling.settling import Settler
from consistory_ray.engine.scheduling.state import Call, KnownWorker, PictureSize, State, SubjectWork


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
        self._board = Board(works, CacheAccount(cache_budget, cache_limits), caps or Caps())
        self._chooser = Chooser(self._board, batch_size)
        self._settler = Settler(self._board)
        self._batch_size = batch_size
        self._max_in_flight = max_in_flight

    # What the coordinator asks

    @property
    def caches(self) -> CacheAccount:
        """The account of anchor caches that are alive."""
        return self._board.caches

    @property
    def stop_reason(self) -> Fault | None:
        """Set when going on is pointless; the coordinator then stops the run."""
        return self._board.stop_reason

    @property
    def finished(self) -> bool:
        """Whether every asset is done or given up and no call is out."""
        return self._board.open == 0 and not self.busy

    @property
    def queued(self) -> int:
        """How many scenes no worker has yet."""
        return self._board.unassigned

    @property
    def wanted_workers(self) -> int:
        """How many workers could have something to do."""
        return max(-(-self._board.unassigned // self._batch_size), len(self._board.waiting)) + self.busy

    @property
    def busy(self) -> int:
        """How many workers have a call."""
        return sum(bool(worker.calls) for worker in self._board.workers.values())

    @property
    def short_of_room(self) -> dict[str, int]:
        """The workers that have nothing to do because there is no room for a cache, and how large it would be."""
        return {
            name: size
            for name, size in self._chooser.short.items()
            if (worker := self._board.workers.get(name)) is not None and not worker.calls and not worker.leaving
        }

    def calls_of(self, name: str) -> tuple[Call, ...]:
        """The calls that a worker has."""
        worker = self._board.workers.get(name)
        return tuple(worker.calls.values()) if worker is not None else ()

    def assign(self) -> list[Call]:
        """The calls to submit now: every worker gets its first before any gets its second."""
        board = self._board
        candidates = list(board.workers.values()) if board.news else [board.workers[name] for name in board.freed]
        board.freed.clear()
        board.news = False
        calls = []
        for depth in range(self._max_in_flight):
            for worker in candidates:
                if len(worker.calls) == depth and (call := self._chooser.next_call(worker)) is not None:
                    worker.calls[call.call_id] = call
                    calls.append(call)
        return calls

    def take_released(self) -> list[str]:
        """Subjects whose anchor cache nobody needs any more since the last time this was asked."""
        released, self._board.released = self._board.released, []
        return released

    def expected_cache_bytes(self, subject_id: str) -> int:
        """What was expected of a subject's cache before any was made."""
        return self._board.subjects[subject_id].work.cache_bytes

    def is_over(self, subject_id: str) -> bool:
        """Whether nothing of a subject is left to do, or whatever is left fails."""
        return self._board.subjects[subject_id].state is State.OVER

    def take_acquitted(self) -> set[str]:
        """Workers of which it has turned out, since this was last asked, that an asset took them down."""
        acquitted, self._board.acquitted = self._board.acquitted, set()
        return acquitted

    # What the coordinator reports

    def saved(self, subject_id: str) -> None:
        """A cache that was pinned in the account was saved, or will not be: there may be room now."""
        self._board.caches.unpin(subject_id)
        self._board.news = True

    def limit_caches(self, limits: Mapping[str, int]) -> None:
        """How many bytes of caches may lie on each machine from now on; there may be room now."""
        if limits != self._board.caches.limits:
            self._board.caches.limits = dict(limits)
            self._board.news = True

    def add_worker(
        self,
        name: str,
        node: str = "",
        batches: Mapping[PictureSize, int] | None = None,
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
        self._board.workers[name] = KnownWorker(name, node, batches or {}, shaken=shaken)
        self._board.staying[node] += 1
        self._board.news = True

    def retire_worker(self, name: str) -> None:
        """A worker gets no more calls; those it has go on."""
        worker = self._board.workers[name]
        self._board.staying[worker.node] -= not worker.leaving
        worker.leaving = True

    def add_scenes(self, subject_id: str, scenes: Collection[str]) -> bool:
        """More scenes of one of its subjects, with ids that it has not seen; they count from now on.

        Returns:
            Whether they are tried: False where nothing of the subject is any more.
        """
        return self._board.add(self._board.subjects[subject_id], scenes)

    def remove_worker(self, name: str, fault: Fault = Fault.NODE_DIED) -> tuple[str, ...]:
        """A worker is gone; its calls come back. If its process died, the assets it had are suspects."""
        board = self._board
        worker = board.workers.pop(name, None)
        self._chooser.short.pop(name, None)
        if worker is None:
            return ()
        board.staying[worker.node] -= not worker.leaving
        board.freed.pop(name, None)
        board.news = True
        board.move_home(worker, None)
        return tuple(self._settler.lost(worker, fault))

    def done(
        self, call: Call, faults: Mapping[str, Fault] | None = None, cache_bytes: int | None = None
    ) -> tuple[str, ...]:
        """A call came back: its assets are done, except for those scenes that are in ``faults``.

        Args:
            call: the call.
            faults: what went wrong with single scenes.
            cache_bytes: the true size of the subject's cache, after an ``"anchors"`` call.
        """
        return tuple(self._settler.done(call, faults or {}, cache_bytes))

    def failed(self, call: Call, fault: Fault) -> tuple[str, ...]:
        """A call failed as a whole on a worker that is still there."""
        return tuple(self._settler.failed(call, fault))
