"""A discrete-event model of a cluster, driven by the engine's real scheduler.

Every decision (which worker gets which scenes of which subject when) is made by
:class:`consistory_ray.engine.scheduling.scheduler.Scheduler` itself; what is modelled is the time that things take:

* **Coordinator**: one serial process. It takes in all reports that have arrived, then hands out calls, as the engine's
  loop does. A report costs ``call_ms`` and each of its pictures ``picture_ms`` of it; both are measured on the real
  engine. With ``charge_scheduler`` the CPU time that the scheduler takes here is added, so that a decision among 1,024
  workers costs what it really costs.
* **Worker**: one device that works off its calls in order, ``picture_seconds`` each (``anchor_seconds`` for anchors)
  plus ``call_seconds`` for a batch. Encoding and writing follow on other threads (``write_threads`` pictures at a time)
  while the device goes on, and so does what a new cache needs: it is copied into one piece (``join_gbyte``), hashed
  (``digest_gbyte``) and put into the object store (``put_gbyte``), one after the other. A report leaves when all of
  that is over. Cores for that are assumed to be there.
* **Node**: up to ``workers_per_node`` workers share one copy of an anchor cache in the object store and one full-duplex
  link of ``link_gbit``.
* **Network**: a cache comes from that node with a copy whose link is free first, at the link's full rate, after what
  both links have already accepted (first come, first served; no sharing of a link, no loss, a switch without limits).
  New caches and pictures are sent to the storage over the same links; the storage itself has no limit.
* A new cache stays in the scheduler's account, as in the engine, until it has been sent to the storage.
* A message takes ``latency`` seconds each way. Nothing fails; all workers are there from the start.

*Efficiency* is the time devices spent on pictures over workers times duration, start and end included; *busy* leaves
out the end, when there are fewer scenes left than workers.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from consistory_ray.engine.scheduling.choosing import Chooser
from consistory_ray.engine.scheduling.scheduler import Scheduler
from consistory_ray.engine.scheduling.state import Call, KnownWorker, SubjectWork


@dataclass(frozen=True)
class Costs:
    """What things cost; times in seconds unless the name says milliseconds, sizes in bytes.

    Attributes:
        picture_seconds: device time of a scene, and of an anchor if ``anchor_seconds`` says nothing else.
        anchor_seconds: device time of an anchor.
        call_seconds: device time of a call besides its pictures.
        write_seconds: encoding and writing of a picture, on one thread.
        picture_bytes, cache_bytes: sizes of a picture file and of an anchor cache.
        call_ms, picture_ms: CPU time of the coordinator per call and per picture.
        latency: of a message.
        link_gbit: bandwidth of a node's link, each way.
        join_gbyte, digest_gbyte, put_gbyte: gigabytes per second at which a worker copies a new cache into one piece,
            hashes it, and puts it into its node's object store.
        write_threads: of a worker.
    """

    picture_seconds: float = 0.2
    anchor_seconds: float | None = None
    call_seconds: float = 0.0
    write_seconds: float = 0.005
    picture_bytes: float = 2e3
    cache_bytes: float = 4e3
    call_ms: float = 1.0
    picture_ms: float = 0.2
    latency: float = 0.001
    link_gbit: float = 10.0
    join_gbyte: float = 2.75
    digest_gbyte: float = 1.8
    put_gbyte: float = 2.0
    write_threads: int = 4


@dataclass(frozen=True)
class Setup:
    """A job and a cluster.

    Attributes:
        workers, workers_per_node: the cluster.
        pictures_per_worker: scenes in all, over workers.
        scenes, anchors: of each subject.
        batch_size, max_in_flight: see :class:`~consistory_ray.engine.options.RunOptions`.
        budget_per_node: bytes of anchor caches on each node at a time; None is no limit.
        sticky: whether workers stay with a subject, as they do; if not, every batch is of a random one.
    """

    workers: int = 8
    workers_per_node: int = 8
    pictures_per_worker: int = 200
    scenes: int = 50
    anchors: int = 2
    batch_size: int = 4
    max_in_flight: int = 2
    budget_per_node: float | None = None
    sticky: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a simulated run went; see the module for ``efficiency`` and ``busy``.

    Attributes:
        seconds: duration of the run.
        pictures: anchors and scenes made.
        moved_bytes: anchor caches sent from node to node.
        coordinator_load: share of the time that the coordinator was at work.
        scheduler_ms: CPU time of the real scheduler per picture, measured here.
    """

    workers: int
    pictures: int
    seconds: float
    efficiency: float
    busy: float
    moved_bytes: float
    coordinator_load: float
    scheduler_ms: float

    @property
    def pictures_per_second(self) -> float:
        """Throughput of the whole run."""
        return self.pictures / self.seconds

    @property
    def moved_per_picture(self) -> float:
        """Bytes of anchor caches that were sent from node to node for each picture."""
        return self.moved_bytes / self.pictures


class RestlessChooser(Chooser):
    """The engine's choices without their stickiness: a worker takes the next batch of any subject at random."""

    random: random.Random

    def _from_home(self, worker: KnownWorker) -> Call | None:
        subjects = list(self._board.takeable.values())
        self.random.shuffle(subjects)
        return next((call for subject in subjects if (call := self._take(worker, subject)) is not None), None)


@dataclass(slots=True)
class _Node:
    out_free: float = 0.0
    in_free: float = 0.0
    caches: dict[str, float] = field(default_factory=dict)  # subject: when its copy is complete
    saved: dict[str, float] = field(default_factory=dict)  # subject: when its cache is at the storage


@dataclass(slots=True)
class _Worker:
    node: int
    device_free: float = 0.0
    worked: float = 0.0


class Simulation:
    """One run; see the module for what is modelled.

    Args:
        setup: the job and the cluster.
        costs: what things cost.
        charge_scheduler: add the scheduler's own CPU time, as measured, to the coordinator's; a run is then no longer
            the same every time.
        seed: of what is random when workers do not stay with their subjects.
    """

    def __init__(self, setup: Setup, costs: Costs, *, charge_scheduler: bool = False, seed: int = 0) -> None:
        self._setup, self._costs, self._charge = setup, costs, charge_scheduler
        self._nodes = [_Node() for _ in range(-(-setup.workers // setup.workers_per_node))]
        self._workers = {f"worker-{i}": _Worker(i // setup.workers_per_node) for i in range(setup.workers)}
        works = self._works()
        self._unassigned = sum(len(work.scenes) for work in works)
        self._pictures = self._unassigned + sum(len(work.anchors) for work in works)
        room = setup.budget_per_node
        limits = {} if room is None else {f"node-{i}": int(room) for i in range(len(self._nodes))}
        self._scheduler = Scheduler(
            works, batch_size=setup.batch_size, max_in_flight=setup.max_in_flight, cache_limits=limits
        )
        if not setup.sticky:
            self._scheduler._chooser = RestlessChooser(self._scheduler._board, setup.batch_size)
            self._scheduler._chooser.random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._inbox: list[Call] = []
        self._working = False
        self._moved = self._coordinator = self._scheduler_cpu = self._busy = 0.0

    def run(self) -> Outcome:
        """Let it happen.

        Raises:
            RuntimeError: the scheduler has work left and hands none of it out.
        """
        for name, worker in self._workers.items():
            self._scheduler.add_worker(name, f"node-{worker.node}")
        self._at(0.0, self._turn)
        now = 0.0
        while self._events:
            now, _, action, arguments = heapq.heappop(self._events)
            action(now, *arguments)
        if not self._scheduler.finished:
            raise RuntimeError(f"{self._unassigned} scenes are left after {now:.1f} s and nobody has them")
        worked = sum(worker.worked for worker in self._workers.values())
        return Outcome(
            workers=len(self._workers),
            pictures=self._pictures,
            seconds=now,
            efficiency=worked / (len(self._workers) * now),
            busy=self._busy,
            moved_bytes=self._moved,
            coordinator_load=self._coordinator / now,
            scheduler_ms=1e3 * self._scheduler_cpu / self._pictures,
        )

    def _works(self) -> list[SubjectWork]:
        setup, left = self._setup, self._setup.workers * self._setup.pictures_per_worker
        works: list[SubjectWork] = []
        while left > 0:
            name, scenes = f"s{len(works)}", min(left, setup.scenes)
            anchors = tuple(f"{name}/anchor-{i}" for i in range(setup.anchors))
            scene_ids = tuple(f"{name}/{i}" for i in range(scenes))
            works.append(SubjectWork(name, anchors, scene_ids, int(self._costs.cache_bytes)))
            left -= scenes
        return works

    def _at(self, moment: float, action: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (moment, next(self._order), action, arguments))

    # The coordinator

    def _report(self, now: float, call: Call) -> None:
        self._inbox.append(call)
        if not self._working:
            self._turn(now)

    def _turn(self, now: float) -> None:
        """One round of the engine's loop: take in what has arrived, then hand out calls."""
        costs, started, clock = self._costs, now, time.thread_time()
        self._working = True
        reports, self._inbox = self._inbox, []
        for call in reports:
            size = int(costs.cache_bytes) if call.kind == "anchors" else None
            if size is not None:
                self._scheduler.caches.pin(call.subject_id, size)
                saved = self._nodes[self._workers[call.worker].node].saved.pop(call.subject_id)
                self._at(max(now, saved), self._saved, call.subject_id)
            self._scheduler.done(call, None, size)
            now += (costs.call_ms + costs.picture_ms * len(call.assets)) / 1e3
        for subject in self._scheduler.take_released():
            for node in self._nodes:
                node.caches.pop(subject, None)
        calls = self._scheduler.assign()
        cpu = time.thread_time() - clock
        self._scheduler_cpu += cpu
        now += cpu if self._charge else 0.0
        for call in calls:
            self._unassigned -= len(call.assets) if call.kind == "scenes" else 0
            self._at(now + costs.latency, self._arrive, call)
        if self._unassigned == 0 and not self._busy and now > 0:
            ahead = sum(max(0.0, worker.device_free - now) for worker in self._workers.values())
            worked = sum(worker.worked for worker in self._workers.values()) - ahead
            self._busy = worked / (len(self._workers) * now)
        self._coordinator += now - started
        self._at(now, self._rest)

    def _saved(self, now: float, subject: str) -> None:
        self._scheduler.saved(subject)
        if not self._working:
            self._turn(now)

    def _rest(self, now: float) -> None:
        self._working = False
        if self._inbox:
            self._turn(now)

    # Workers, nodes, network

    def _arrive(self, now: float, call: Call) -> None:
        """A call is with its worker; it waits for its cache, and then for the device."""
        node = self._nodes[self._workers[call.worker].node]
        ready = now if call.kind == "anchors" else self._fetch(now, node, call.subject_id)
        if ready <= now:
            self._render(now, call)
        else:
            self._at(ready, self._render, call)

    def _fetch(self, now: float, node: _Node, subject: str) -> float:
        """When the node has the subject's cache."""
        if subject not in node.caches:
            holders = [other for other in self._nodes if other.caches.get(subject, now + 1) <= now]
            source = min(holders, key=lambda other: other.out_free)
            start = max(now, source.out_free, node.in_free)
            source.out_free = node.in_free = node.caches[subject] = start + self._sending(self._costs.cache_bytes)
            self._moved += self._costs.cache_bytes
        return node.caches[subject]

    def _render(self, now: float, call: Call) -> None:
        costs, worker = self._costs, self._workers[call.worker]
        each = costs.picture_seconds
        if call.kind == "anchors" and costs.anchor_seconds is not None:
            each = costs.anchor_seconds
        worker.device_free = max(now, worker.device_free) + costs.call_seconds + each * len(call.assets)
        worker.worked += each * len(call.assets)
        self._at(worker.device_free, self._rendered, call)

    def _rendered(self, now: float, call: Call) -> None:
        """The device is done with it: pictures are written, a new cache goes to the object store and the storage."""
        costs, node = self._costs, self._nodes[self._workers[call.worker].node]
        now += -(-len(call.assets) // costs.write_threads) * costs.write_seconds
        sent = len(call.assets) * costs.picture_bytes
        if call.kind == "anchors":
            rates = (costs.join_gbyte, costs.digest_gbyte, costs.put_gbyte)
            now += sum(costs.cache_bytes / (rate * 1e9) for rate in rates)
            node.caches[call.subject_id] = now
            sent += costs.cache_bytes
        node.out_free = max(now, node.out_free) + self._sending(sent)
        if call.kind == "anchors":
            node.saved[call.subject_id] = node.out_free
        self._at(now + costs.latency, self._report, call)

    def _sending(self, size: float) -> float:
        return size * 8 / (self._costs.link_gbit * 1e9)
