"""The run itself: compare the output with the plan, let workers make what is missing, index what they made.

Only this process writes the index and the run record, and only the workers touch pictures and anchor caches: what
passes through here are a few hundred bytes per picture, and references to caches that stay where they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow.compute as pc

from consistory_ray.engine.cluster.address import check_address
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
from consistory_ray.engine.events import (
    Event,
    Notice,
    RunFinished,
    RunStarted,
    RunState,
    RunSummary,
    SubjectProgress,
)
from consistory_ray.engine.faults import is_lasting
from consistory_ray.engine.keeping import (
    CachePolicy,
    anchors_of_finished,
    clear_anchors,
    clear_cache,
    missing_pictures,
)
from consistory_ray.engine.ledger import Ledger
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.outages import Outages
from consistory_ray.engine.renaming import move_caches
from consistory_ray.engine.retries import with_backoff
from consistory_ray.engine.scheduling.remaining import failed_with_anchors, subject_works, without_broken_sets
from consistory_ray.engine.scheduling.scheduler import Scheduler
from consistory_ray.engine.stopping import StopRequest, stop_on_signals
from consistory_ray.engine.units import size
from consistory_ray.errors import (
    ClusterLostError,
    ConsistoryError,
    InputError,
    OutageError,
    Problem,
    RunError,
    RunFailed,
    RunInterrupted,
    StorageError,
)
from consistory_ray.guards.numerics import half_on_cpu
from consistory_ray.output.comparison import named, plan_as_begun
from consistory_ray.output.index.index import current_index
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.lease.record import LEASE_FOLDER
from consistory_ray.output.resume import REPLACED, resume
from consistory_ray.output.run_record import (
    RUN_RECORD,
    RunRecord,
    ended_the_same,
    look_for_record,
    read_run_record,
    write_run_record,
)
from consistory_ray.output.shards import write_dataset
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.plan.forecast import expected_cache_bytes

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Plan, SubjectPlan

T = TypeVar("T")

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

    An output that is out of reach for a while only delays a run that has begun, see
    :mod:`consistory_ray.engine.outages`. The first SIGINT or SIGTERM stops the run once running batches are in, the
    second at once; either way everything finished is indexed and the same call resumes the run.

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
        OutputBusyError: another run is writing to the output.
        StorageError, OutageError: the output was out of reach, at the beginning or for ``outage_seconds``.
        RunInterrupted: stopped while the output was out of reach, or held by another run.
        RunError: the run cannot go on, for example because every worker dies.
    """
    stop = stop if stop is not None else StopRequest()
    options, emit = options or RunOptions(), on_event or _ignore
    outages = Outages(options.outage_seconds, stop, emit)
    history = _History(RunRecord(plan.name, plan.model, dict(job or {}), submission=options.submission))
    with stop_on_signals(stop):
        while True:
            run = _Run(plan, open_output(url), options, emit, stop, history)
            try:
                return run.execute()
            except ConsistoryError as error:
                if isinstance(error, ClusterLostError) and history.recorded and run.begins_again(error):
                    history.lost_ray = error.reason
                    emit(Notice(f"{error.reason}; it is started again, once"))
                    continue
                outage = history.recorded and run.met_outage(error)
                try:
                    if outage and outages.outlast(error, run.seconds):
                        continue
                except RunInterrupted:
                    run.record_end("interrupted", error)
                    raise
                if outages.met or outage:
                    run.record_end("failed", error)
                raise


@dataclass
class _History:
    """What a run takes along when it is begun again after an outage.

    Attributes:
        record: as it was at first.
        began: by the monotonic clock.
        recorded: whether the record was written, which is when it has begun.
        found: how many pictures were there at first.
        fingerprint: of the model, once a worker has loaded it.
        given_up: ids of the assets that were given up, and not made since.
        shape: what it asked the cluster for: fewer machines may be left after an outage, and come back.
        stopped: why there is nothing more to try, only to finish.
        books: of the try that was stopped.
        lost_ray: how the Ray that the run had started ended, if it did.
    """

    record: RunRecord
    began: float = field(default_factory=time.monotonic)
    recorded: bool = False
    found: int = 0
    fingerprint: str = ""
    given_up: set[str] = field(default_factory=set)
    shape: WorkerShape | None = None
    stopped: str = ""
    books: Ledger | None = None
    lost_ray: str = ""


class _Run:
    def __init__(
        self,
        plan: Plan,
        store: OutputStore,
        options: RunOptions,
        emit: Callable[[Event], None],
        stop: StopRequest,
        history: _History,
    ) -> None:
        self._history = history
        self._again = history.recorded
        self._plan = plan
        self._store = store.begun(LEASE_FOLDER)  # whoever writes here does so under a lease
        self._options = options
        self._stop = stop
        self._emit = emit
        self._planned = plan.anchor_count + plan.scene_count
        self._expected: dict[str, str] = {}
        self._found = 0
        self._stopped = ""
        self._finished = False
        self._begun: float | None = None
        self._grows = True
        self._policy: CachePolicy | None = None
        self._owner = f"the run of {plan.name}"
        self._lease: Lease | None = None
        writer = IndexWriter(self._store, seconds_per_part=SECONDS_PER_PART, lost=self._lost)
        self._ledger = Ledger(plan.model, writer, emit, history.fingerprint, history.given_up)
        if history.books is not None:
            self._ledger.take_over(history.books)
        self._record = history.record

    def execute(self) -> RunSummary:
        if not self._again:
            self._refuse_repetition()
            check_address(self._options.address)
        self._look_for_record()
        store = self._store.begun(RUN_RECORD if self._again else "")
        lease = self._patiently(
            lambda: Lease.acquire(
                store, self._owner, ttl_seconds=self._options.lease_seconds, on_wait=self._waiting_for_lease
            )
        )
        with lease:
            self._lease = lease
            self._look_for_record()
            return self._execute()

    def _refuse_repetition(self) -> None:
        """A scheduler that repeats whatever has failed is told at once what would come out again.

        Raises:
            RunFailed, InputError: as the run did that it repeats.
        """
        if self._options.submission is None or self._options.only_failed:
            return
        there = self._patiently(lambda: read_run_record(self._store))
        code = ended_the_same(self._record, there)
        if code is None or there is None:
            return
        failed = int(there.totals.get("failed", 0))
        why = there.error or f"{failed} pictures failed, see consistory-ray status {self._store.url}"
        told = f"this submission has run already and would end the same way: {why}"
        if code == 1:
            raise RunFailed(told)
        fix = "change the job, or submit it anew (consistory-ray retry tries again what failed)"
        raise InputError(told, [Problem("--submission", str(self._options.submission), fix)])

    def _look_for_record(self) -> None:
        """The record of an earlier run, or of an earlier try of this one, if there has to be one.

        Once before the lease is taken, since a mount may have gone, and once after it, since another run may have come
        and gone.
        """
        if not self._again and not self._options.only_failed:
            return
        there = self._patiently(lambda: read_run_record(self._store))
        if there is None and look_for_record(self._store).problem:
            return  # something ran there, which is all that has to be known
        if there is None and self._again:
            raise OutageError(f"{self._store.url} is empty: it is not the storage that the run was begun in")
        if there is None:
            fix = "give the output of an earlier run, or render: a retry makes only what failed before"
            raise InputError("there is nothing to retry", [Problem("output", self._store.url, fix)])
        if self._again and there.started_at < self._record.started_at:
            raise OutageError(
                f"{self._store.url} is as it was before this run: it is not the storage that the run was begun in, "
                f"its last run began at {there.started_at}"
            )
        if self._again and there.started_at != self._record.started_at:
            raise RunError(f"another run, of {there.started_at}, has been at {self._store.url} meanwhile")

    def _patiently(self, action: Callable[[], T]) -> T:
        """:func:`with_backoff`, unless the run is being stopped: nothing was begun yet that would have to be ended."""
        return with_backoff(action, enough=lambda: self._stop)

    @property
    def seconds(self) -> float:
        """From when it knew what is there to its last picture."""
        last = self._ledger.last_delivery
        return 0.0 if self._begun is None or last is None else last - self._begun

    def met_outage(self, error: ConsistoryError) -> bool:
        """Whether what ended the run is that the output was out of reach, and nothing else."""
        if isinstance(error, StorageError):
            return not is_lasting(error)
        if isinstance(error, RunInterrupted):
            return False
        lease = self._lease if isinstance(error, RunError) else None
        gone = lease is not None and (lease.expired or lease.vanished)
        return gone or isinstance(error, OutageError)

    def begins_again(self, error: BaseException) -> bool:
        """Whether it was the Ray of our own that ended, which is started again once."""
        own = isinstance(error, ClusterLostError) and error.own
        return own and not self._history.lost_ray and not self._stop

    def _lost(self) -> str:
        return self._lease.lost if self._lease is not None else ""

    def _execute(self) -> RunSummary:
        self._plan = self._patiently(lambda: plan_as_begun(self._plan, self._store, self._lost))
        paths = {asset.asset_id: asset.path for asset in self._plan.assets()}
        found = self._patiently(lambda: resume(self._store, paths, lost=self._lost))
        if found.moved:
            self._patiently(lambda: move_caches(self._store, self._plan, self._lost))
        done = without_broken_sets(self._plan, found.done)
        if self._options.keep_anchors == "none":
            done |= anchors_of_finished(self._plan, done)
        if self._options.only_failed:
            chosen = failed_with_anchors(self._plan, found.failed, done)
            self._expected = {asset_id: paths[asset_id] for asset_id in chosen | done}
            self._planned = len(self._expected)
            done = frozenset(paths) - chosen
            self._found = self._planned - len(chosen)
        else:
            self._expected = paths
            self._found = len(done)
        if not self._again:
            self._history.found = self._found
        self._write_record(state="running")
        self._history.recorded = True
        progress = tuple(_progress(subject, done) for subject in self._plan.subjects)
        self._begun = time.monotonic()
        self._emit(RunStarted(self._plan.name, self._store.url, progress, self._planned, self._found, found.recovered))
        for part in found.set_aside:
            self._emit(Notice(f"a part of the index was damaged and moved away: {part}"))
        if found.moved:
            self._emit(Notice(f"{found.moved} pictures were moved to the places that the job now gives them"))
        if found.replaced:
            where = f"{self._store.url}/{REPLACED}"
            self._emit(
                Notice(f"{found.replaced} pictures that the job no longer has in their places are kept in {where}")
            )
        with self._recording():
            self._stopped = self._history.stopped
            if not self._stopped:
                done = done | self._ledger.refused(self._plan, done)
            if self._found + self._ledger.failed < self._planned and not self._stopped:
                with self._joined_cluster() as watch:
                    self._stopped = self._dispatch(done, watch)
                if self._stopped and not self._stop:
                    self._history.stopped, self._history.books = self._stopped, self._ledger
            self._finish()
            self._finished = True
        summary = self._summary()
        self._write_record(state=summary.state, exit_code=1 if summary.state == "failed" else None)
        self._emit(RunFinished(summary))
        return summary

    def _finish(self) -> None:
        self._ledger.flush()
        if reason := self._lost():
            raise RunError(f"the run cannot be brought to its end: {reason}")
        if not self._stop:
            self._clear_anchors()
        self._ledger.close(merge=not self._stop)
        if not self._left and not self._stopped:
            self._compare()
        if self._options.embed_images and self._found + self._ledger.rendered:
            if not self._stop:
                self._emit(Notice("writing the pictures into Parquet shards"))
            write_dataset(
                self._store,
                {asset.asset_id for asset in self._plan.assets()},
                should_stop=lambda: bool(self._stop),
                lost=self._lost,
            )
        self._confirm_lease()

    def _compare(self) -> None:
        """See whether what was delivered is there, whatever the books say.

        What only has no row, or an old one, is set right at once. What is gone is made again like after an outage.

        Raises:
            OutageError: pictures are missing.
        """
        missing = self._missing()
        if not missing:
            return
        self._confirm_lease()
        self._patiently(lambda: resume(self._store, self._expected, lost=self._lost))
        if missing := self._missing():
            raise OutageError(
                f"{len(missing)} of {self._planned} pictures that were delivered are not at {self._store.url} any "
                f"more, or without their rows: {named(missing.values())}"
            )

    def _missing(self) -> dict[str, str]:
        given_up, keep = self._ledger.given_up | self._ledger.accepted, self._options.keep_anchors
        return self._patiently(lambda: missing_pictures(self._store, self._plan, self._expected, given_up, keep))

    def _confirm_lease(self) -> None:
        if self._lease is not None:
            lease = self._lease
            with_backoff(lambda: lease.confirm("the run cannot be brought to its end"))

    @property
    def _left(self) -> int:
        """Pictures of which nothing is known yet."""
        return self._planned - self._found - self._ledger.rendered - self._ledger.failed

    def _waiting_for_lease(self, message: str) -> None:
        self._emit(Notice(message))
        if self._stop:
            raise RunInterrupted("stopped while another run still held the output")

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

    def _dispatch(self, done: frozenset[str], watch: ClusterWatch) -> str:
        from consistory_ray.engine.dispatch import Dispatch, NoWorkerLeft  # imports Ray
        from consistory_ray.engine.workers.pool import WorkerPool

        options, plan = self._options, self._plan
        shape = self._history.shape = self._history.shape or self._shape()
        if shape.device == "cpu" and options.device != "cpu" and (told := half_on_cpu(plan.torch_dtype)):
            self._emit(Notice(f"warning: {told}"))
        batch_size = plan.batch_size if options.batch_size is None else options.batch_size
        sizes = expected_cache_bytes(plan, shape.device)
        self._policy = CachePolicy(options.keep_anchors, sum(sizes.values()))
        scheduler = Scheduler(
            subject_works(plan, done, sizes),
            batch_size=AUTO_BATCH_SIZE if batch_size == "auto" else batch_size,
            max_in_flight=options.max_in_flight,
            cache_budget=options.cache_budget,
            cache_limits=cache_limits(),
            caps=options.caps,
        )
        subjects = {subject.subject_id: subject for subject in plan.subjects}
        assets = {asset.asset_id: asset for asset in plan.assets() if asset.asset_id not in done}
        formats = {(subject.settings.height, subject.settings.width) for subject in plan.subjects}
        pool = WorkerPool(shape, plan.model, plan.torch_dtype, self._store, options, formats, config=plan.config)
        dispatch = Dispatch(
            subjects,
            assets,
            scheduler,
            pool,
            self._ledger,
            self._stop,
            options,
            self._store.url,
            self._lost,
            batch_size == "auto",
            None if options.keep_anchors == "all" or options.only_failed else self._clear_cache,
            self._policy,
            watch,
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

    def _shape(self) -> WorkerShape:
        shape = shape_workers(self._options)
        check_shape(self._options, shape, self._plan.model, grows=self._grows)
        there = places(self._options, shape)
        if there < shape.count:
            rest = "the others wait for nodes to start" if self._grows else "the others never find one"
            self._emit(Notice(f"the nodes that are up have places for {there} of {shape.count} workers: {rest}"))
        return shape

    def _clear_cache(self, subject: SubjectPlan) -> None:
        if not self._lost():
            with_backoff(lambda: clear_cache(self._store, subject))

    def _clear_anchors(self) -> None:
        """What ``keep_anchors`` asks for, once everything of a subject that was to be made is there."""
        if self._options.keep_anchors in ("all", "auto"):  # auto takes away only what this run has written itself
            return
        ok = current_index(self._store, {asset.asset_id for asset in self._plan.assets()})
        made = set(ok.filter(pc.equal(ok["status"], "ok"))["asset_id"].to_pylist())
        previews = self._options.keep_anchors == "previews"
        clear_anchors(self._store, self._plan, made, previews=previews, lost=self._lost)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Whatever happens inside: rows of finished pictures are committed and the run record says how it ended."""
        try:
            yield
        except (KeyboardInterrupt, RunInterrupted) as error:
            if not self._stop and isinstance(error, KeyboardInterrupt):
                raise
            if not self._stop:  # Ray heard it, while it was starting
                self._stop.ask(str(error))
            self._ledger.rescue()  # asked twice to stop, or while it was finishing: not without what is there
        except BaseException as error:
            self._ledger.rescue()
            if self._lost():  # the record is another run's by now
                raise
            waits = isinstance(error, ConsistoryError) and (self.met_outage(error) or self.begins_again(error))
            code = 2 if isinstance(error, InputError) and not waits else None
            with suppress(StorageError):
                self._write_record(state="running" if waits else "failed", error=_told(error), exit_code=code)
            raise

    def record_end(self, state: Literal["failed", "interrupted"], error: ConsistoryError) -> None:
        """Say how it ended after an outage, if the output can be written to after all and nobody else was there."""

        def refuse(message: str) -> None:
            raise RunError(message)

        def own() -> RunRecord | None:
            there = read_run_record(self._store)
            same = there is not None and (there.started_at, there.state) == (self._record.started_at, "running")
            return there if same else None

        with suppress(ConsistoryError):
            if own() is None:  # another place, or another run's: not even a lease is left there
                return
            with Lease.acquire(self._store.begun(RUN_RECORD), self._owner, on_wait=refuse):
                if (there := own()) is not None:
                    write_run_record(self._store, there.update(state=state, error=_told(error)))

    @property
    def _rendered(self) -> int:
        """Pictures made since the first try; what the tries before this one made was found by it."""
        return max(0, self._found - self._history.found + self._ledger.rendered)

    def _write_record(self, **changes: Any) -> None:
        if reason := self._lost():
            raise RunError(f"the run record cannot be written: {reason}")
        totals = {
            "planned": self._planned,
            "found": self._history.found,
            "rendered": self._rendered,
            "failed": self._ledger.failed,
            "seconds": round(time.monotonic() - self._history.began, 3),
        }
        self._history.fingerprint = self._ledger.fingerprint
        fingerprint = self._ledger.fingerprint or None
        self._record = self._record.update(totals=totals, model_fingerprint=fingerprint, **changes)
        with_backoff(lambda: write_run_record(self._store, self._record))

    def _summary(self) -> RunSummary:
        ledger = self._ledger
        state: RunState = "complete"
        if ledger.failed or self._stopped:
            state = "failed"
        if (self._left and not self._stopped) or not self._finished:
            state = "interrupted"
        return RunSummary(
            name=self._plan.name,
            url=self._store.url,
            state=state,
            planned=self._planned,
            found=self._history.found,
            rendered=self._rendered,
            failed=ledger.failed,
            seconds=time.monotonic() - self._history.began,
            failures=tuple(ledger.failures),
            failures_by_kind=dict(ledger.failures_by_kind),
            stopped=self._stopped,
            caches=self._caches_told(),
        )

    def _caches_told(self) -> str:
        if self._policy is None or self._options.keep_anchors != "auto" or self._policy.keeps:
            return ""
        return (
            f"anchor caches were not kept, they would take {size(self._policy.nbytes)}: for added scenes the anchors "
            "are made again; --keep-anchors all keeps them for later jobs"
        )


def _progress(subject: SubjectPlan, done: Collection[str]) -> SubjectProgress:
    assets = [*subject.anchors, *subject.scenes]
    return SubjectProgress(subject.subject_id, len(assets), sum(asset.asset_id in done for asset in assets))


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _ignore(event: Event) -> None:
    """Nobody watches."""
