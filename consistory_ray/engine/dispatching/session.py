"""A run's time on a Ray cluster: joined, workers placed on it, everything that is left rendered, and left again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from consistory_ray.engine.anchor_files import clear_cache
from consistory_ray.engine.cluster.cluster_watch import ClusterWatch
from consistory_ray.engine.cluster.joining import joined_cluster
from consistory_ray.engine.cluster.placement import (
    WorkerShape,
    cache_limits,
    check_shape,
    places,
    shape_workers,
    starts_own_ray,
)
from consistory_ray.engine.dispatching.cache_keeping import CacheKeeper, CachePolicy
from consistory_ray.engine.events import Notice, size
from consistory_ray.engine.history import History
from consistory_ray.engine.ledger import Ledger
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.outages import with_backoff
from consistory_ray.engine.scheduling.scheduler import Scheduler
from consistory_ray.engine.stopping import StopRequest
from consistory_ray.engine.takes import TakeKeeper
from consistory_ray.engine.workload import subject_works
from consistory_ray.errors import ClusterLostError, InputError, OutageError, RunError, RunInterrupted
from consistory_ray.guards.numerics import half_on_cpu
from consistory_ray.output.storage import OutputStore
from consistory_ray.plan.forecast import expected_cache_bytes

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Plan, SubjectPlan

AUTO_BATCH_SIZE = 4
"""Scenes per call where nobody says more; the scheduler reduces it where the device runs out of memory."""


class RaySession:
    """One try's only stay.

    Args:
        store: the output.
        options: of the run.
        history: of the run; once a try has asked for workers, the next ones ask for the same.
        ledger: the books.
        stop: whether to stop.
        lost: tells why the output may no longer be written to, empty while it may.
    """

    def __init__(
        self,
        store: OutputStore,
        options: RunOptions,
        history: History,
        ledger: Ledger,
        stop: StopRequest,
        lost: Callable[[], str],
    ) -> None:
        self._store = store
        self._options = options
        self._history = history
        self._again = history.recorded
        self._ledger = ledger
        self._emit = ledger.emit
        self._stop = stop
        self._lost = lost
        self._grows = True
        self._policy: CachePolicy | None = None

    def render(self, plan: Plan, done: frozenset[str], takes: TakeKeeper) -> str:
        """Render what is left.

        Args:
            plan: of the job.
            done: ids of its assets that are not to be made.
            takes: what its gate wants besides, and will want.

        Returns:
            Why it ended before everything was tried; empty if it did not, or was asked to stop.

        Raises:
            InputError: there is no such cluster, no worker finds a place, or none is of any use.
            OutageError: the output is out of the workers' reach, or what was out of reach with it.
            ClusterLostError: Ray is gone.
            RunError: the run cannot go on.
        """
        with self._joined_cluster() as watch:
            return self._dispatch(plan, done, takes, watch)

    @property
    def caches_told(self) -> str:
        """What became of the anchor caches, where that is worth a word."""
        if self._policy is None or self._options.keep_anchors != "auto" or self._policy.keeps:
            return ""
        return (
            f"anchor caches were not kept, they would take {size(self._policy.nbytes)}: for added scenes the anchors "
            "are made again; --keep-anchors all keeps them for later jobs"
        )

    @contextmanager
    def _joined_cluster(self) -> Iterator[ClusterWatch]:
        """:func:`joined_cluster`; what was out of reach with the output may take longer than that to come back."""
        with ExitStack() as stack:
            self._grows = not starts_own_ray(self._options)
            try:
                watch = stack.enter_context(joined_cluster(self._options))
            except (InputError, RunError) as error:
                if not self._again or self._history.lost_ray or isinstance(error, RunInterrupted):
                    raise
                raise OutageError(f"Ray cannot be joined again: {error}") from error
            yield watch

    def _dispatch(self, plan: Plan, done: frozenset[str], takes: TakeKeeper, watch: ClusterWatch) -> str:
        from consistory_ray.engine.dispatching.dispatch import Dispatch, NoWorkerLeft  # imports Ray
        from consistory_ray.engine.dispatching.pool import WorkerPool
        from consistory_ray.engine.dispatching.workforce import Workforce

        options = self._options
        shape = self._history.shape = self._history.shape or self._shape(plan.model)
        if shape.device == "cpu" and options.device != "cpu" and (warning := half_on_cpu(plan.torch_dtype)):
            self._emit(Notice(f"warning: {warning}"))
        wanted = plan.batch_size if options.batch_size is None else options.batch_size
        batch_size = AUTO_BATCH_SIZE if wanted == "auto" else wanted
        sizes = expected_cache_bytes(plan, shape.device)
        self._policy = CachePolicy(options.keep_anchors, sum(sizes.values()))
        scheduler = Scheduler(
            subject_works(plan, done, sizes, takes.to_make()),
            batch_size=batch_size,
            max_in_flight=options.max_in_flight,
            cache_budget=options.cache_budget,
            cache_limits=cache_limits(),
            caps=options.caps,
        )
        subjects = {subject.subject_id: subject for subject in plan.subjects}
        assets = {asset.asset_id: asset for asset in plan.assets() if asset.asset_id not in done}
        assets |= {take.asset_id: take for take in takes.to_make()}
        formats = {(subject.settings.height, subject.settings.width) for subject in plan.subjects}
        pool = WorkerPool(
            *(shape, plan.model, plan.torch_dtype, self._store, options, formats),
            config=plan.config,
            controlnets=plan.controlnets,
            guess_mode=plan.guess_mode,
            pad_to=batch_size if options.deterministic else None,
            png_level=plan.png_level,
            loaded=plan.loaded,
            checks=plan.checks,
            quality=plan.quality,
        )
        adapts = wanted == "auto" and not options.deterministic
        workforce = Workforce(scheduler, pool, self._ledger, options, self._store.url, adapts, watch)
        clear = None if options.keep_anchors == "all" or options.only_failed else self._clear_cache
        caches = CacheKeeper(subjects, scheduler, pool, options, self._policy, clear, self._emit)
        dispatch = Dispatch(
            subjects,
            assets,
            scheduler,
            pool,
            workforce,
            caches,
            self._ledger,
            self._stop,
            options,
            self._lost,
            watch,
            takes,
        )
        try:
            return dispatch.run()
        except NoWorkerLeft as error:
            if self._again and self._ledger.last_delivery is None:  # they may need what is not back yet, as a model hub
                raise OutageError(str(error)) from error
            raise
        except ClusterLostError as error:
            dispatch.abandon(error.reason)
            raise
        except ConnectionError as error:  # of a Ray client
            dispatch.abandon(str(error))
            raise ClusterLostError(f"the connection to Ray is gone, {str(error).partition('. ')[0]}") from error
        finally:
            self._history.fingerprint = self._ledger.fingerprint
            pool.close()

    def _shape(self, model: str) -> WorkerShape:
        shape = shape_workers(self._options)
        check_shape(self._options, shape, model, grows=self._grows)
        there = places(self._options, shape)
        if there < shape.count:
            rest = "the others wait for nodes to start" if self._grows else "the others never find one"
            self._emit(Notice(f"the nodes that are up have places for {there} of {shape.count} workers: {rest}"))
        return shape

    def _clear_cache(self, subject: SubjectPlan) -> None:
        if not self._lost():
            with_backoff(lambda: clear_cache(self._store, subject))
