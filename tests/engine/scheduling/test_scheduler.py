"""The scheduler's promises, under whatever order of events hypothesis thinks of."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consistory_ray.engine.faults import Caps, Fault
from consistory_ray.engine.scheduling.cache_account import CacheAccount
from consistory_ray.engine.scheduling.scheduler import Scheduler
from consistory_ray.engine.scheduling.state import Call, SubjectWork

MAX_IN_FLIGHT = 2
BATCH = 4
CAPS = Caps(killers=2, failing=3)
SIZE, SMALLEST = 10, 6
"""Bytes of a cache, and what was expected of the smallest; of each of the four others one more."""
LARGEST = round((SMALLEST + 4) * SIZE / SMALLEST)
"""What may be expected of a cache after the smallest has turned out larger; one is always allowed."""


def work(name: str, scenes: int, anchors: int = 2, cache_bytes: int = 10) -> SubjectWork:
    return SubjectWork(
        name,
        tuple(f"{name}/anchor-{number}" for number in range(anchors)),
        tuple(f"{name}/{number}" for number in range(scenes)),
        cache_bytes,
    )


def run_to_the_end(scheduler: Scheduler) -> list[Call]:
    """Every call succeeds, in order of submission."""
    calls = []
    while not scheduler.finished:
        batch = scheduler.assign()
        assert batch, "work is left and nothing is assigned"
        for call in batch:
            scheduler.done(call)
        calls += batch
    return calls


class Audited(CacheAccount):
    """An account that looks again, whenever a cache is begun or copied, at what the machine then holds."""

    def opens(self, subject_id: str, expected: int, node: str = "") -> bool:
        return self.audit(super().opens(subject_id, expected, node), node)

    def copies(self, subject_id: str, node: str, *, needed: bool = False) -> bool:
        new = subject_id not in self._held.get(node, ())
        return self.audit(super().copies(subject_id, node, needed=needed), node, exempt=needed or not new)

    def audit(self, given: bool, node: str, exempt: bool = False) -> bool:
        limit = self.limit(node)
        if given and not exempt and limit is not None:
            assert self.held(node) <= limit or len(self._held[node]) == 1, "a machine got more than it has room for"
        return given


class World(RuleBasedStateMachine):
    """A run in which calls succeed, fail, and take their workers down; a subject may have a poison scene."""

    @initialize(
        sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=5),
        workers=st.integers(1, 4),
        budget=st.sampled_from([None, 10, LARGEST + 1]),
        limits=st.sampled_from([{}, {"node-0": 10, "node-1": 10}, {"node-0": 2 * SIZE}, {"node-1": LARGEST + SIZE}]),
    )
    def start(self, sizes: list[tuple[int, int]], workers: int, budget: int | None, limits: dict[str, int]) -> None:
        works = [work(f"s{index}", scenes, anchors, SMALLEST + index) for index, (scenes, anchors) in enumerate(sizes)]
        works = [item for item in works if item.scenes or item.anchors]
        self.scheduler = Scheduler(works, batch_size=BATCH, max_in_flight=MAX_IN_FLIGHT, cache_budget=budget, caps=CAPS)
        self.scheduler._board.caches = Audited(budget, limits)
        self.budget = budget
        self.planned = [asset for item in works for asset in (*item.anchors, *item.scenes)]
        self.out: dict[int, Call] = {}
        self.ended: Counter[str] = Counter()
        self.live: set[str] = set()
        self.retired: set[str] = set()
        self.next_worker = 0
        self.homes: dict[str, str] = {}
        for _ in range(workers):
            self.add_worker()

    def add_worker(self) -> None:
        name = f"w{self.next_worker}"
        self.next_worker += 1
        self.live.add(name)
        batches = {(None, None): 3} if self.next_worker % 3 == 0 else None
        self.scheduler.add_worker(name, f"node-{self.next_worker % 2}", batches, shaken=self.next_worker % 4 == 0)

    def end(self, assets: tuple[str, ...]) -> None:
        self.ended.update(assets)

    @rule()
    def assign(self) -> None:
        calls = self.scheduler.assign()
        if self.budget is not None and any(call.kind == "anchors" for call in calls):
            assert self.scheduler.caches.total <= max(self.budget, LARGEST), "a cache was begun without room for it"
        for call in calls:
            assert call.call_id not in self.out
            assert call.worker in self.live
            assert 1 <= len(call.assets) <= BATCH or call.kind == "anchors"
            self.out[call.call_id] = call

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        call = self.pick(data)
        bad = tuple(
            asset for asset in call.assets if call.kind == "scenes" and data.draw(st.integers(0, 9), "outcome") == 0
        )
        wrong = Fault.STORAGE if data.draw(st.integers(0, 9), "storage") == 0 else Fault.ERROR
        given_up = self.scheduler.done(call, dict.fromkeys(bad, wrong), SIZE)
        assert all(asset in bad or asset.startswith(f"{call.subject_id}/") for asset in given_up)
        self.end(tuple(asset for asset in call.assets if asset not in bad))
        self.end(given_up)

    @precondition(lambda self: self.out)
    @rule(
        data=st.data(),
        fault=st.sampled_from(
            [Fault.ERROR, Fault.BAD_ASSET, Fault.OUT_OF_MEMORY, Fault.ANCHORS_LOST, Fault.STORE_FULL, Fault.STORAGE]
        ),
    )
    def fail(self, data: st.DataObject, fault: Fault) -> None:
        call = self.pick(data)
        if call.kind == "anchors" and fault is Fault.ANCHORS_LOST:
            fault = Fault.ERROR
        given_up = self.scheduler.failed(call, fault)
        if call.kind == "scenes" and len(call.assets) > 1 and fault is not Fault.ANCHORS_LOST and not self.failed(call):
            assert given_up == (), "a batch that fails as a whole fails nobody in it"
        self.end(given_up)

    def failed(self, call: Call) -> bool:
        """Whether the call's subject has been given up, and with it whatever comes back."""
        return self.scheduler.is_over(call.subject_id)

    @precondition(lambda self: len(self.live) > 1)
    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        self.retired.add(name)
        self.scheduler.retire_worker(name)
        self.add_worker()

    @rule(number=st.integers(0, 4), pinned=st.booleans())
    def save(self, number: int, pinned: bool) -> None:
        name = f"s{number}"
        if any(asset.startswith(name) for asset in self.planned):
            _ = self.scheduler.caches.pin(name, 0) if pinned else self.scheduler.saved(name)

    @rule(limits=st.sampled_from([{}, {"node-0": SIZE}, {"node-0": 3 * SIZE, "node-1": SIZE}]))
    def reread(self, limits: dict[str, int]) -> None:
        self.scheduler.limit_caches(limits)

    @precondition(lambda self: self.live)
    @rule(
        data=st.data(),
        fault=st.sampled_from([Fault.WORKER_DIED, Fault.NODE_DIED, Fault.STUCK, Fault.BROKEN]),
        replaced=st.booleans(),
    )
    def lose_worker(self, data: st.DataObject, fault: Fault, replaced: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        had = [call for call in self.out.values() if call.worker == name]
        given_up = self.scheduler.remove_worker(name, fault)
        if fault is Fault.NODE_DIED or not any(call.alone for call in had):
            assert not given_up
        self.out = {key: call for key, call in self.out.items() if call.worker != name}
        self.live.discard(name)
        self.end(given_up)
        if replaced or self.live <= self.retired:
            self.add_worker()

    def pick(self, data: st.DataObject) -> Call:
        return self.out.pop(data.draw(st.sampled_from(sorted(self.out))))

    @invariant()
    def nothing_twice(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        in_flight = Counter(asset for call in self.out.values() for asset in call.assets)
        together = in_flight + self.ended
        assert all(count == 1 for count in together.values()), together.most_common(3)
        assert set(together) <= set(self.planned)

    @invariant()
    def calls_are_bounded(self) -> None:
        per_worker = Counter(call.worker for call in self.out.values()) if hasattr(self, "out") else Counter()
        assert all(count <= MAX_IN_FLIGHT for count in per_worker.values())
        for call in self.out.values() if hasattr(self, "out") else ():
            if call.alone:
                assert per_worker[call.worker] == 1

    def teardown(self) -> None:
        """From any state, a world without further faults comes to an end with every asset ended exactly once."""
        if not hasattr(self, "scheduler"):
            return
        for number in range(5):
            self.scheduler.saved(f"s{number}")
        for _ in range(1000):
            if self.scheduler.finished:
                break
            for call in self.scheduler.assign():
                self.out[call.call_id] = call
            assert self.out, "work is left and nothing is under way"
            call = self.out.pop(min(self.out))
            assert self.scheduler.done(call) == ()
            self.end(call.assets)
        assert self.ended == Counter(self.planned)
        assert self.scheduler.finished
        assert self.scheduler.caches.total == 0
        assert not any(self.scheduler.caches.held(node) for node in ("node-0", "node-1"))


World.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestWorld = World.TestCase


def test_anchors_come_first_then_every_scene_in_batches() -> None:
    scheduler = Scheduler([work("moss", 10)], batch_size=4)
    scheduler.add_worker("w")
    calls = run_to_the_end(scheduler)
    assert [call.kind for call in calls] == ["anchors", "scenes", "scenes", "scenes"]
    assert [len(call.assets) for call in calls] == [2, 4, 4, 2]
    assert scheduler.take_released() == ["moss"]


def test_a_worker_stays_with_its_subject() -> None:
    scheduler = Scheduler([work(f"s{index}", 12) for index in range(4)], batch_size=3)
    for name in "ab":
        scheduler.add_worker(name)
    calls = run_to_the_end(scheduler)
    for name in "ab":
        visits = [call.subject_id for call in calls if call.worker == name]
        changes = sum(before != after for before, after in itertools.pairwise(visits))
        assert changes == len(set(visits)) - 1, visits


def test_an_idle_worker_steals_from_the_largest() -> None:
    scheduler = Scheduler([work("small", 8), work("large", 40)], batch_size=2)
    for name in "ab":
        scheduler.add_worker(name)
    for call in scheduler.assign():
        scheduler.done(call)
    scheduler.add_worker("thief")
    stolen = [call for call in scheduler.assign() if call.worker == "thief"]
    assert {call.subject_id for call in stolen} == {"large"}


def test_everybody_gets_a_first_call_before_anybody_gets_a_second() -> None:
    scheduler = Scheduler([work("one", 8)], batch_size=4)
    scheduler.add_worker("a")
    (anchors,) = scheduler.assign()
    scheduler.done(anchors)
    scheduler.add_worker("b")
    assert sorted((call.worker, len(call.assets)) for call in scheduler.assign()) == [("a", 4), ("b", 4)]


def test_anchors_are_made_ahead_behind_the_last_scenes() -> None:
    scheduler = Scheduler([work("one", 4), work("two", 4)], batch_size=4)
    scheduler.add_worker("a")
    (anchors,) = scheduler.assign()
    scheduler.done(anchors)
    assert [(call.kind, call.subject_id) for call in scheduler.assign()] == [("scenes", "one"), ("anchors", "two")]


def test_the_budget_holds_anchors_back() -> None:
    scheduler = Scheduler([work(f"s{index}", 4, cache_bytes=60) for index in range(3)], batch_size=4, cache_budget=100)
    for name in "abc":
        scheduler.add_worker(name)
    assert [call.subject_id for call in scheduler.assign()] == ["s0"]


def test_out_of_memory_halves_batches_and_fails_nobody() -> None:
    scheduler = Scheduler([work("one", 16, anchors=0)], batch_size=8, max_in_flight=1)
    scheduler.add_worker("a")
    (load,) = scheduler.assign()
    scheduler.done(load)
    sizes = []
    while not scheduler.finished:
        (call,) = scheduler.assign()
        sizes.append(len(call.assets))
        if len(call.assets) > 3:
            assert scheduler.failed(call, Fault.OUT_OF_MEMORY) == ()
        else:
            scheduler.done(call)
    assert sizes == [8, 4] + [2] * 8


def test_a_bad_scene_fails_after_two_workers_and_its_neighbours_do_not() -> None:
    scheduler = Scheduler([work("one", 4, anchors=0)], batch_size=4)
    for name in "ab":
        scheduler.add_worker(name)
    for call in scheduler.assign():
        scheduler.done(call)
    met, lost = [], []
    while not scheduler.finished:
        for call in scheduler.assign():
            if "one/2" in call.assets:
                met.append((call.worker, len(call.assets), call.attempt))
                lost += scheduler.failed(call, Fault.ERROR)
            else:
                scheduler.done(call)
    assert lost == ["one/2"]
    alone = [item for item in met if item[1] == 1]
    assert [attempt for _, _, attempt in alone] == [1, 2]
    assert len({worker for worker, _, _ in alone}) == 2


def test_poison_is_isolated_and_costs_three_workers() -> None:
    scheduler = Scheduler([work("one", 8, anchors=0)], batch_size=4)
    scheduler.add_worker("w")
    deaths, lost = 0, []
    for _ in range(100):
        if scheduler.finished:
            break
        for call in scheduler.assign():
            if call not in scheduler.calls_of("w"):
                continue
            if "one/5" in call.assets:
                deaths += 1
                lost += scheduler.remove_worker("w", Fault.WORKER_DIED)
                scheduler.add_worker("w")
            else:
                scheduler.done(call)
    assert scheduler.finished
    assert (deaths, lost) == (3, ["one/5"])


def test_failed_anchors_fail_their_scenes_only() -> None:
    scheduler = Scheduler([work("bad", 3), work("good", 3)], batch_size=4)
    scheduler.add_worker("w")
    lost: list[str] = []
    while not scheduler.finished:
        for call in scheduler.assign():
            if call.subject_id == "bad":
                lost += scheduler.failed(call, Fault.ERROR)
            else:
                scheduler.done(call)
    assert sorted(lost) == ["bad/0", "bad/1", "bad/2", "bad/anchor-0", "bad/anchor-1"]


def test_lost_anchors_are_fetched_again_once_for_all_calls_that_missed_them() -> None:
    scheduler = Scheduler([work("one", 8)], batch_size=4)
    scheduler.add_worker("w")
    (anchors,) = scheduler.assign()
    assert anchors.assets
    scheduler.done(anchors)
    for call in scheduler.assign():
        scheduler.failed(call, Fault.ANCHORS_LOST)
    assert scheduler.take_released() == ["one"]
    (again,) = scheduler.assign()
    assert (again.kind, again.assets) == ("anchors", ())
    scheduler.done(again)
    assert sum(len(call.assets) for call in run_to_the_end(scheduler)) == 8


def test_a_subject_outlives_any_number_of_lost_caches_between_which_it_gets_on() -> None:
    """Spot machines take its cache with them all weekend long; none of that is the subject's fault."""
    scheduler, losses = Scheduler([work("one", 100)], batch_size=4, max_in_flight=1), 0
    scheduler.add_worker("w")
    lost: list[str] = []
    while not scheduler.finished:
        (call,) = scheduler.assign()
        scheduler.done(call)
        if call.kind == "scenes" and (later := scheduler.assign()):
            losses += 1
            lost += scheduler.failed(later[0], Fault.ANCHORS_LOST)
    assert losses == 24 > 4 * CAPS.cache_losses
    assert not lost


def test_a_cache_that_is_lost_again_and_again_with_nothing_to_show_for_it_fails_its_scenes() -> None:
    scheduler, losses = Scheduler([work("one", 8)], batch_size=4, max_in_flight=1), 0
    scheduler.add_worker("w")
    lost: list[str] = []
    while not scheduler.finished:
        (call,) = scheduler.assign()
        if call.kind == "anchors":
            scheduler.done(call)
        else:
            losses += 1
            assert losses <= CAPS.cache_losses + 1, "it would go on for ever"
            lost += scheduler.failed(call, Fault.ANCHORS_LOST)
    assert losses == CAPS.cache_losses + 1
    assert sorted(lost) == [f"one/{index}" for index in range(8)]


def test_what_failed_on_the_only_worker_that_stays_is_tried_there_again() -> None:
    """A worker that is leaving takes nothing more, so it is no other place to try it."""
    scheduler = Scheduler([work("one", 1)], batch_size=4)
    scheduler.add_worker("goes")
    scheduler.add_worker("stays")
    (call,) = scheduler.assign()
    assert call.worker == "goes"
    scheduler.failed(call, Fault.STORE_FULL)
    scheduler.retire_worker("goes")
    for fault in (Fault.ERROR, None):
        (call,) = scheduler.assign()
        assert (call.worker, call.kind) == ("stays", "anchors")
        assert fault is None or scheduler.failed(call, fault) == ()
    scheduler.done(call)
    run_to_the_end(scheduler)


@pytest.mark.parametrize("fault", [Fault.DISK_FULL, Fault.BAD_MODEL])
def test_some_faults_stop_the_run(fault: Fault) -> None:
    scheduler = Scheduler([work("one", 8)], batch_size=4)
    scheduler.add_worker("w")
    (call,) = scheduler.assign()
    scheduler.failed(call, fault)
    assert scheduler.stop_reason is fault


def test_storage_that_keeps_failing_stops_the_run_without_giving_anything_up() -> None:
    scheduler = Scheduler([work("one", 1, anchors=0)], batch_size=4)
    scheduler.add_worker("w")
    (load,) = scheduler.assign()
    scheduler.done(load)
    for _ in range(CAPS.storage_attempts):
        assert scheduler.stop_reason is None
        (call,) = scheduler.assign()
        assert scheduler.done(call, {"one/0": Fault.STORAGE}) == ()
    assert scheduler.stop_reason is Fault.STORAGE


def test_an_idle_worker_prefers_what_its_machine_has() -> None:
    scheduler = Scheduler([work("big", 40), work("small", 12)], batch_size=BATCH, max_in_flight=1)
    scheduler.add_worker("w0", "left")
    scheduler.add_worker("w1", "right")
    for call in scheduler.assign():  # each makes the anchors of one subject
        scheduler.done(call, cache_bytes=10)
    out = {call.worker: call for call in scheduler.assign()}
    assert {call.subject_id for call in out.values()} == {"big", "small"}
    near = next(name for name, call in out.items() if call.subject_id == "small")
    scheduler.add_worker("w2", "left" if near == "w0" else "right")
    (call,) = [call for call in scheduler.assign() if call.worker == "w2"]
    assert call.subject_id == "small", "the larger remainder is on the other machine"


def test_workers_take_what_fits_into_their_own_memory_until_it_does_not() -> None:
    scheduler = Scheduler([work("s", 60)], batch_size=BATCH, max_in_flight=1)
    scheduler.add_worker("w0", batches={(None, None): 9})
    scheduler.done(scheduler.assign()[0], cache_bytes=10)
    (call,) = scheduler.assign()
    assert len(call.assets) == 9
    scheduler.failed(call, Fault.OUT_OF_MEMORY)
    (call,) = scheduler.assign()
    assert len(call.assets) == 4


def test_a_leaving_worker_gets_nothing_more() -> None:
    scheduler = Scheduler([work("s", 8)], batch_size=2, max_in_flight=1)
    scheduler.add_worker("w0")
    scheduler.done(scheduler.assign()[0], cache_bytes=10)
    (call,) = scheduler.assign()
    scheduler.retire_worker("w0")
    scheduler.done(call)
    assert scheduler.assign() == []
    assert scheduler.queued == 6
    scheduler.remove_worker("w0")
    scheduler.add_worker("w1")
    assert len(run_to_the_end(scheduler)) == 3


class Machines:
    """A pool without processes: who died too often in a row stays away, as in ``engine/workers/pool.py``."""

    def __init__(self, scheduler: Scheduler, names: list[str]) -> None:
        self.scheduler = scheduler
        self.deaths = dict.fromkeys(names, 0)
        self.killed, self.lost = 0, []  # type: ignore[var-annotated]
        for name in names:
            scheduler.add_worker(name)

    def run(self, is_poison: Callable[[str], bool]) -> None:
        """To the end; a call with a poison asset takes its worker down."""
        for _ in range(10_000):
            if self.scheduler.finished or not self.deaths:
                return
            for call in self.scheduler.assign():
                if call not in self.scheduler.calls_of(call.worker):
                    continue  # its worker has died in this very round
                if not any(is_poison(asset) for asset in call.assets):
                    self.scheduler.done(call, cache_bytes=10)
                    self.deaths[call.worker] = 0
                    continue
                self.die(call.worker)

    def die(self, name: str) -> None:
        given_up = self.scheduler.remove_worker(name, Fault.WORKER_DIED)
        self.killed += 1
        self.lost += given_up
        self.deaths[name] += not given_up
        for other in self.scheduler.take_acquitted() & self.deaths.keys():
            self.deaths[other] = 0
        if self.deaths[name] < CAPS.worker_deaths:
            self.scheduler.add_worker(name, shaken=self.deaths[name] > 0)
        else:
            del self.deaths[name]


@pytest.mark.parametrize("workers", [1, 2, 8, 16])
def test_a_poison_subject_neither_eats_the_cluster_nor_blocks_it(workers: int) -> None:
    """All 50 scenes of one of 20 subjects kill; the others are rendered, and nobody is lost for it."""
    works = [work(f"s{index:02}", 50) for index in range(20)]
    scheduler = Scheduler(works, batch_size=4, caps=Caps())
    machines = Machines(scheduler, [f"w{number}" for number in range(workers)])
    machines.run(lambda asset: asset.startswith("s00/") and "anchor" not in asset)
    assert scheduler.finished
    assert sorted(machines.lost) == sorted(works[0].scenes)
    assert len(machines.deaths) == workers, "no worker was given up"
    assert machines.killed <= 8 + 2 * workers


def test_single_poison_scenes_fail_and_their_subject_goes_on() -> None:
    works = [work(f"s{index}", 40) for index in range(4)]
    poison = {f"s{subject}/{scene}" for subject in range(4) for scene in (3, 11, 12, 31, 39)}
    scheduler = Scheduler(works, batch_size=4, caps=Caps())
    machines = Machines(scheduler, ["a", "b", "c"])
    machines.run(poison.__contains__)
    assert scheduler.finished and set(machines.lost) == poison and len(machines.deaths) == 3


def test_a_subject_of_which_everything_fails_is_given_up_after_some() -> None:
    scheduler = Scheduler([work("bad", 200), work("good", 40)], batch_size=4)
    for name in "ab":
        scheduler.add_worker(name)
    calls, lost = 0, []
    while not scheduler.finished:
        for call in scheduler.assign():
            calls += 1
            if call.subject_id == "bad" and call.kind == "scenes":
                lost += scheduler.failed(call, Fault.ERROR)
            else:
                scheduler.done(call)
    assert len(lost) == 200
    assert calls < 110, "each scene alone, twice, would be 400 calls"


def test_memory_is_learnt_for_each_worker_and_tried_again_later() -> None:
    scheduler = Scheduler([work("s", 4000, anchors=0)], batch_size=16, max_in_flight=1)
    for name in ("small", "large"):
        scheduler.add_worker(name)
    sizes: dict[str, list[int]] = {"small": [], "large": []}
    failures = 0
    while not scheduler.finished:
        for call in scheduler.assign():
            if call.kind == "scenes":
                sizes[call.worker].append(len(call.assets))
            if call.worker == "small" and len(call.assets) > 5:
                failures += 1
                assert scheduler.failed(call, Fault.OUT_OF_MEMORY) == ()
            else:
                scheduler.done(call, cache_bytes=10)
    assert set(sizes["large"][:-4]) == {16}, "the other one has room"
    assert sizes["small"][:3] == [16, 8, 4]
    assert 5 in sizes["small"], "a little more was tried after a while"
    assert failures <= 4


def test_a_full_object_store_keeps_fewer_caches_and_fails_nobody() -> None:
    scheduler = Scheduler([work(f"s{index}", 8, cache_bytes=10) for index in range(4)], batch_size=4, max_in_flight=1)
    for name in "abc":
        scheduler.add_worker(name)
    first, second, third = scheduler.assign()
    scheduler.done(first, cache_bytes=10)
    assert scheduler.failed(second, Fault.STORE_FULL) == () == scheduler.failed(third, Fault.STORE_FULL)
    most = 0
    while not scheduler.finished:
        for call in scheduler.assign():
            most = max(most, scheduler.caches.total)
            scheduler.done(call, cache_bytes=10)
    assert most == 10, "what was there when it was full, and no more"


def test_a_cache_that_is_being_saved_counts() -> None:
    scheduler = Scheduler([work("one", 0), work("two", 4)], batch_size=4, cache_budget=15)
    scheduler.add_worker("w")
    (call,) = scheduler.assign()
    scheduler.done(call, cache_bytes=10)
    scheduler.caches.pin("one", 10)
    assert scheduler.take_released() == ["one"] and scheduler.is_over("one")
    assert scheduler.assign() == [] and scheduler.caches.total == 10
    scheduler.saved("one")
    assert [call.subject_id for call in scheduler.assign()] == ["two"]


def test_a_machine_that_is_full_keeps_only_its_own_workers_waiting() -> None:
    works = [work(f"s{index}", 8, cache_bytes=10) for index in range(6)]
    scheduler = Scheduler(works, batch_size=4, max_in_flight=1, cache_limits={"small": 10, "large": 40})
    for name, node in (("a", "small"), ("b", "small"), ("c", "large"), ("d", "large"), ("e", "unknown")):
        scheduler.add_worker(name, node)
    assert sorted(call.worker for call in scheduler.assign()) == ["a", "c", "d", "e"]
    assert scheduler.caches.held("small") == 10 and scheduler.caches.held("large") == 20
    assert scheduler.short_of_room == {"b": 10}
    scheduler.limit_caches({"small": 20, "large": 40})
    assert [call.worker for call in scheduler.assign()] == ["b"]
    assert scheduler.short_of_room == {}


def test_a_copy_of_a_cache_needs_room_on_the_machine_that_gets_it() -> None:
    works = [work("near", 4, cache_bytes=10), work("far", 40, cache_bytes=10)]
    scheduler = Scheduler(works, batch_size=4, max_in_flight=1, cache_limits={"left": 10, "right": 10})
    scheduler.add_worker("a", "left")
    scheduler.add_worker("b", "right")
    for call in scheduler.assign():
        scheduler.done(call, cache_bytes=10)
    near = next(call for call in scheduler.assign() if call.subject_id == "near")
    assert scheduler.caches.held("left") == scheduler.caches.held("right") == 10
    scheduler.done(near)  # with its subject over there is room, and a copy of the other one comes
    (stolen,) = scheduler.assign()
    assert (stolen.worker, stolen.subject_id) == (near.worker, "far")
    assert scheduler.caches.held("left") == scheduler.caches.held("right") == 10
    run = [stolen, *scheduler.calls_of("a"), *scheduler.calls_of("b")]
    for call in {call.call_id: call for call in run}.values():
        scheduler.done(call)
    run_to_the_end(scheduler)
    assert not scheduler.caches.held("left") and not scheduler.caches.held("right")


def test_nobody_waits_for_room_where_a_cache_is_the_only_way_to_go_on() -> None:
    """Its own machine has nobody left, or the scene failed there: then a full machine takes one more."""
    works = [work("one", 8, cache_bytes=10), work("two", 8, cache_bytes=10)]
    scheduler = Scheduler(works, batch_size=4, max_in_flight=1, cache_limits={"left": 10, "right": 10})
    scheduler.add_worker("a", "left")
    scheduler.add_worker("b", "right")
    for call in scheduler.assign():
        scheduler.done(call, cache_bytes=10)
    scheduler.retire_worker("a")
    calls = {call.worker: call for call in scheduler.assign()}
    assert list(calls) == ["b"]
    scheduler.remove_worker("a")
    while not scheduler.finished:
        for call in [*scheduler.calls_of("b")] or scheduler.assign():
            scheduler.done(call)


def test_two_anchors_in_a_row_only_while_there_are_subjects_for_everybody() -> None:
    def kinds(subjects: int) -> Counter[str]:
        scheduler = Scheduler([work(f"s{index}", 4) for index in range(subjects)], batch_size=4)
        for name in "ab":
            scheduler.add_worker(name)
        return Counter(call.worker for call in scheduler.assign())

    assert kinds(2) == kinds(4) == {"a": 1, "b": 1}
    assert kinds(6) == {"a": 2, "b": 2}


def test_the_usual_caps_leave_a_worker_alive_that_an_asset_is_to_blame_for() -> None:
    caps = Caps()
    assert caps.worker_deaths > caps.crashes, "an asset that kills is found before its worker's place is given up"
    assert caps.worker_errors > caps.attempts, "a scene that fails everywhere does not make its workers broken"
    assert caps.failures_in_a_row > caps.failing * caps.failing_subjects, "subjects are given up before the run is"
    assert caps.failing > caps.killers


def test_the_next_anchors_are_made_before_the_last_batch() -> None:
    """While there are subjects for everybody; the order of one worker's calls."""
    scheduler = Scheduler([work(f"s{index}", 12) for index in range(4)], batch_size=4)
    scheduler.add_worker("w")
    first, second = scheduler.assign()
    assert (first.kind, second.kind) == ("anchors", "anchors")
    order = []
    out = [first, second]
    while len(order) < 7:
        call = out.pop(0)
        order.append((call.kind, call.subject_id))
        scheduler.done(call, cache_bytes=10)
        out += scheduler.assign()
    scenes = [number for number, entry in enumerate(order) if entry == ("scenes", "s0")]
    assert len(scenes) == 3 and ("anchors", "s2") in order[: scenes[-1]], order
