"""What the coordinator looks after about once a second, beside the calls that come and go."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from consistory_ray.engine.cluster.cluster_watch import ClusterWatch, draining_nodes, own_node_is_dead, store_usage
from consistory_ray.engine.cluster.placement import cache_limits, places, shape_workers
from consistory_ray.engine.events import Notice, Pulse, WorkersRequested, plural, size
from consistory_ray.engine.faults import Failure, Fault
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.scheduling.scheduler import Scheduler
from consistory_ray.engine.scheduling.watchdog import Watchdog
from consistory_ray.errors import InputError

if TYPE_CHECKING:
    from consistory_ray.engine.dispatching.pool import WorkerPool
    from consistory_ray.engine.events import Event

INTERVAL_SECONDS = 1.0
SLOW_INTERVAL_SECONDS = 15.0
"""How often the cluster is asked how large it is, and how full its object stores are."""
PATIENCE_SECONDS = 30.0
"""How often a run with too few workers says so, and after how long it tells once that workers wait for room."""


class Housekeeping:
    """Watches workers, machines and the size of the cluster; the dispatch acts on what it finds.

    Args:
        options: the run's options.
        scheduler: what is left to do, and who has it.
        pool: the workers.
        emit: where events go.
        watch: whether Ray is still there.
    """

    def __init__(
        self,
        options: RunOptions,
        scheduler: Scheduler,
        pool: WorkerPool,
        emit: Callable[[Event], None],
        watch: ClusterWatch | None = None,
    ) -> None:
        self._watch = watch or ClusterWatch()
        self.watchdog = Watchdog(options.stuck_factor, options.stuck_seconds, options.first_call_seconds)
        self._options = options
        self._scheduler = scheduler
        self._pool = pool
        self._emit = emit
        self._last = self._last_slow = -float("inf")
        self._enough_since = time.monotonic()
        self._idle_since: dict[str, float] = {}
        self._store = (0, 0)
        self._requested = 0
        self._short_since: float | None = None
        self._told_of_room = 0  # to how many workers that wait for room

    def is_due(self, now: float) -> bool:
        """Whether it is time to look again."""
        return now - self._last >= INTERVAL_SECONDS

    def look(self, now: float, ready: Collection[str]) -> None:
        """Adjust how many workers are asked for, and tell how things are."""
        self._last = now
        if now - self._last_slow >= SLOW_INTERVAL_SECONDS:
            if own_node_is_dead():
                self._watch.node_died()
            self._last_slow, self._store = now, store_usage()
            if self._options.workers is None:
                self._follow_cluster()
            self._scheduler.limit_caches(cache_limits())
        self._pool.resize(self._scheduler.wanted_workers)
        if len(self._pool) > self._requested:
            self._emit(WorkersRequested(len(self._pool), self._pool.shape.device))
        self._requested = len(self._pool)
        self._complain(now, len(ready))
        self._complain_of_room(now)
        self.pulse(ready)

    def joined(self, node: str) -> None:
        """A worker has come up; if its machine is new, so is the room on it."""
        if node and node not in self._scheduler.caches.limits:
            self._scheduler.limit_caches(cache_limits())

    def pulse(self, ready: Collection[str]) -> None:
        """Tell how things are."""
        scheduler = self._scheduler
        starting = len(self._pool) - len(ready)
        cached = scheduler.caches.total
        waiting = (self._pool.unplaced, len(scheduler.short_of_room))
        self._emit(Pulse(scheduler.queued, len(ready), scheduler.busy, starting, cached, *self._store, *waiting))

    def stuck(self, now: float) -> list[tuple[str, Failure]]:
        """Workers without progress for far too long."""
        return [
            (name, Failure(Fault.STUCK, "Stuck", f"no progress for {seconds:.0f} s"))
            for name, seconds in self.watchdog.stuck(now)
        ]

    def on_draining_nodes(self) -> list[str]:
        """Workers whose machine is about to go."""
        nodes = draining_nodes()
        return self._pool.on_nodes(nodes) if nodes else []

    def idle(self, now: float, ready: Collection[str]) -> list[str]:
        """Workers that may go because there has been nothing for them for a while."""
        spare = len(ready) - max(self._options.min_workers, self._scheduler.wanted_workers)
        idle = [name for name in ready if not self._scheduler.calls_of(name)]
        self._idle_since = {name: self._idle_since.get(name, now) for name in idle}
        long = [name for name in idle if now - self._idle_since[name] >= self._options.idle_seconds]
        return long[: max(0, spare)]

    def _follow_cluster(self) -> None:
        """More machines may carry more workers. Of fewer machines it asks as much as before: they may come back."""
        before = self._pool.shape
        if before.device == "cuda":
            count = places(self._options, before)
        else:
            try:
                count = shape_workers(dataclasses.replace(self._options, device=before.device)).count
            except InputError:  # the last machine has gone
                return
        if count > before.count:
            self._pool.shape = dataclasses.replace(before, count=count)

    def _complain(self, now: float, ready: int) -> None:
        needed = min(self._options.min_workers, self._scheduler.wanted_workers)
        if ready >= needed:
            self._enough_since = now
        elif now - self._enough_since > PATIENCE_SECONDS:
            self._enough_since = now
            what = f"{ready} of at least {self._options.min_workers} workers" if ready else "no worker"
            self._emit(Notice(f"{what} ready: the cluster may lack free GPUs or CPUs; still waiting"))

    def _complain_of_room(self, now: float) -> None:
        """Say why workers that are ready have nothing to do, once for as many of them."""
        short = self._scheduler.short_of_room
        if not short:
            self._short_since = None
        elif self._short_since is None:
            self._short_since = now
        if len(short) <= self._told_of_room or self._short_since is None or now - self._short_since < PATIENCE_SECONDS:
            return
        self._told_of_room = len(short)
        caches, options = self._scheduler.caches, self._options
        nodes = {node for name in short if (node := self._pool.node_of(name)) in caches.limits}
        limit = min((found for node in nodes if (found := caches.limit(node)) is not None), default=None)
        budgets = [] if limit is None else [f"{size(limit)} on a machine"]
        fix = "raise the object store of the machines (cacheMemory in the chart, --object-store-memory of ray start)"
        if options.cache_budget is not None:
            budgets.insert(0, f"{size(options.cache_budget)} in all")
            fix = f"raise --cache-budget, or {fix.removeprefix('raise ')}"
        budget, one = " and ".join(budgets) or "what has room", size(max(short.values()))
        who = plural(len(short), "worker")
        verb = "waits" if len(short) == 1 else "wait"
        self._emit(Notice(f"{who} {verb} for room for another anchor cache (budget {budget}, one takes {one}): {fix}"))
