"""The run itself: compare the output with the plan, let workers make what is missing, index what they made.

Only this process writes the index and the run record, and only the workers touch pictures and anchor caches: what
passes through here are a few hundred bytes per picture, and references to caches that stay where they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from consistory_ray.engine.cluster import default_cache_budget, joined_cluster, shape_workers
from consistory_ray.engine.events import (
    Event,
    RunFinished,
    RunStarted,
    RunState,
    RunSummary,
    SubjectProgress,
    WorkersRequested,
)
from consistory_ray.engine.ledger import Ledger
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.retries import with_backoff
from consistory_ray.engine.scheduler import Scheduler
from consistory_ray.engine.stopping import StopRequest, stop_on_signals
from consistory_ray.engine.work import SubjectWork
from consistory_ray.errors import StorageError
from consistory_ray.forecast import expected_cache_bytes
from consistory_ray.output.index import IndexWriter
from consistory_ray.output.resume import resume
from consistory_ray.output.run_record import RunRecord, write_run_record
from consistory_ray.output.storage import OutputStore, open_output

if TYPE_CHECKING:
    from consistory_ray.plan import Plan, SubjectPlan

SECONDS_PER_PART = 2.0
"""How old a finished picture's row may get before it is committed."""
AUTO_BATCH_SIZE = 4
"""Scenes per call where nobody says more; the scheduler reduces it where the device runs out of memory."""


def run_plan(
    plan: Plan,
    url: str,
    options: RunOptions | None = None,
    on_event: Callable[[Event], None] | None = None,
    *,
    job: Mapping[str, Any] | None = None,
    stop: StopRequest | None = None,
) -> RunSummary:
    """Render what the output lacks of a plan.

    The first SIGINT or SIGTERM stops the run once running batches are in, the second at once; either way everything
    finished is indexed and the same call resumes the run.

    Args:
        plan: what to render.
        url: the output, a folder or any fsspec URL that all workers can reach.
        options: how to use the machines.
        on_event: is told what happens, from the calling thread; must be quick.
        job: the job as given, for the run record.
        stop: asks for a stop from another thread.

    Returns:
        How it ended; see :meth:`RunSummary.raise_for_state`.

    Raises:
        InputError: the model, the output or the cluster cannot be used.
        StorageError: the output failed for longer than the retries last.
        RunError: the run cannot go on, for example because every worker dies.
    """
    stop = stop if stop is not None else StopRequest()
    with stop_on_signals(stop):
        return _Run(plan, open_output(url), options or RunOptions(), on_event or _ignore, job or {}, stop).execute()


class _Run:
    def __init__(
        self,
        plan: Plan,
        store: OutputStore,
        options: RunOptions,
        emit: Callable[[Event], None],
        job: Mapping[str, Any],
        stop: StopRequest,
    ) -> None:
        self._plan = plan
        self._store = store
        self._options = options
        self._stop = stop
        self._emit = emit
        self._planned = plan.anchor_count + plan.scene_count
        self._found = 0
        self._started = time.monotonic()
        self._ledger = Ledger(plan.model, IndexWriter(store, seconds_per_part=SECONDS_PER_PART), emit)
        self._record = RunRecord(plan.name, plan.model, dict(job))

    def execute(self) -> RunSummary:
        found = with_backoff(lambda: resume(self._store, {asset.asset_id: asset.path for asset in self._plan.assets()}))
        done = without_broken_sets(self._plan, found.done)
        self._found = len(done)
        self._write_record(state="running")
        progress = tuple(_progress(subject, done) for subject in self._plan.subjects)
        self._emit(RunStarted(self._plan.name, self._store.url, progress, self._planned, self._found, found.recovered))
        with self._recording():
            if self._found < self._planned:
                with joined_cluster(self._options):
                    self._dispatch(done)
            self._ledger.close(merge=not self._stop)
        summary = self._summary()
        self._write_record(state=summary.state)
        self._emit(RunFinished(summary))
        return summary

    def _dispatch(self, done: frozenset[str]) -> None:
        from consistory_ray.engine.dispatch import Dispatch  # imports Ray
        from consistory_ray.engine.pool import WorkerPool

        options, plan = self._options, self._plan
        shape = shape_workers(options)
        self._emit(WorkersRequested(shape.count, shape.device))
        scheduler = Scheduler(
            subject_works(plan, done, expected_cache_bytes(plan, shape.device)),
            batch_size=_batch_size(plan, options),
            max_in_flight=options.max_in_flight,
            cache_budget=options.cache_budget or default_cache_budget(),
            caps=options.caps,
        )
        subjects = {subject.subject_id: subject for subject in plan.subjects}
        assets = {asset.asset_id: asset for asset in plan.assets() if asset.asset_id not in done}
        pool = WorkerPool(shape, plan.model, plan.torch_dtype, self._store, options)
        try:
            url = self._store.url
            Dispatch(subjects, assets, scheduler, pool, self._ledger, self._stop, options, url).run()
        finally:
            pool.close()

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Whatever happens inside: rows of finished pictures are committed and the run record says how it ended."""
        try:
            yield
        except KeyboardInterrupt:
            if not self._stop:
                raise
            self._ledger.rescue()  # asked twice to stop: leave, but not without what is finished
        except BaseException as error:
            self._ledger.rescue()
            with suppress(StorageError):
                self._write_record(state="failed", error=f"{type(error).__name__}: {error}")
            raise

    def _write_record(self, **changes: Any) -> None:
        totals = {
            "planned": self._planned,
            "found": self._found,
            "rendered": self._ledger.rendered,
            "failed": self._ledger.failed,
            "seconds": round(time.monotonic() - self._started, 3),
        }
        fingerprint = self._ledger.fingerprint or self._record.model_fingerprint
        self._record = self._record.update(totals=totals, model_fingerprint=fingerprint, **changes)
        with_backoff(lambda: write_run_record(self._store, self._record))

    def _summary(self) -> RunSummary:
        ledger = self._ledger
        left = self._planned - self._found - ledger.rendered - ledger.failed
        state: RunState = "interrupted" if left else "failed" if ledger.failed else "complete"
        return RunSummary(
            name=self._plan.name,
            url=self._store.url,
            state=state,
            planned=self._planned,
            found=self._found,
            rendered=ledger.rendered,
            failed=ledger.failed,
            seconds=time.monotonic() - self._started,
            failures=tuple(ledger.failures),
        )


def without_broken_sets(plan: Plan, done: Collection[str]) -> frozenset[str]:
    """``done`` without the anchors of subjects that lack one of theirs: anchors are made together or not at all."""
    broken: set[str] = set()
    for subject in plan.subjects:
        anchors = {asset.asset_id for asset in subject.anchors}
        if not anchors.issubset(done):
            broken |= anchors
    return frozenset(done) - broken


def subject_works(plan: Plan, done: Collection[str], cache_bytes: Mapping[str, int]) -> list[SubjectWork]:
    """What is left of a plan, subject by subject; those whose anchors are there come first.

    ``done`` holds all of a subject's anchors or none, see :func:`without_broken_sets`.
    """
    works = []
    for subject in plan.subjects:
        scenes = tuple(asset.asset_id for asset in subject.scenes if asset.asset_id not in done)
        anchors = tuple(asset.asset_id for asset in subject.anchors)
        to_make = () if anchors[0] in done else anchors
        if scenes or to_make:
            size = (subject.settings.height, subject.settings.width)
            works.append(SubjectWork(subject.subject_id, to_make, scenes, cache_bytes[subject.subject_id], size))
    return sorted(works, key=lambda work: bool(work.anchors))


def _batch_size(plan: Plan, options: RunOptions) -> int:
    chosen = plan.batch_size if options.batch_size is None else options.batch_size
    return AUTO_BATCH_SIZE if chosen == "auto" else chosen


def _progress(subject: SubjectPlan, done: Collection[str]) -> SubjectProgress:
    assets = [*subject.anchors, *subject.scenes]
    return SubjectProgress(subject.subject_id, len(assets), sum(asset.asset_id in done for asset in assets))


def _ignore(event: Event) -> None:
    """Nobody watches."""
