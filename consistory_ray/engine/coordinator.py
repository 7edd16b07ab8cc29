"""The run itself: compare the output with the plan, let workers make what is missing, index what they made.

Only this process writes the index and the run record, and only the workers touch pictures and anchor caches: what
passes through here are a few hundred bytes per picture, and references to caches that stay where they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow.compute as pc

from consistory_ray.engine.anchor_files import clear_anchors, move_caches
from consistory_ray.engine.cluster.address import check_address
from consistory_ray.engine.dispatching.session import RaySession
from consistory_ray.engine.events import Event, Notice, RunFinished, RunStarted, RunState, RunSummary, plural
from consistory_ray.engine.faults import is_lasting
from consistory_ray.engine.history import History, RecordKeeper, told
from consistory_ray.engine.inputs import copy_inputs
from consistory_ray.engine.ledger import Ledger
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.outages import Outages, with_backoff
from consistory_ray.engine.spending import Spending
from consistory_ray.engine.stopping import EXIT_MAX_COST, StopRequest, stop_on_signals
from consistory_ray.engine.takes import TakeKeeper
from consistory_ray.engine.workload import Workload, missing_pictures
from consistory_ray.errors import (
    ClusterLostError,
    ConsistoryError,
    InputError,
    OutageError,
    RunError,
    RunInterrupted,
    StorageError,
)
from consistory_ray.output.asked import asked_plan, passed_over
from consistory_ray.output.comparison import named, plan_as_begun
from consistory_ray.output.decisions import read_decisions
from consistory_ray.output.index.index import current_index
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.lease.record import LEASE_FOLDER
from consistory_ray.output.resume import REPLACED, Resumed, resume
from consistory_ray.output.run_record import RUN_RECORD, RunRecord
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.plan.pricing import bill, worded
from consistory_ray.plan.takes import without

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Plan

T = TypeVar("T")

SECONDS_PER_PART = 2.0
"""How old a finished picture's row may get before it is committed."""


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
    options, emit = options or RunOptions(), on_event or (lambda event: None)
    record = RunRecord(plan.name, plan.model, dict(job or {}), submission=options.submission)
    history = History(record, spending := Spending(options, stop))

    def tell(event: Event) -> None:
        spending.take(event)
        emit(event)

    with stop_on_signals(stop):
        return Outages(options.outage_seconds, stop, tell).keep_trying(
            lambda: _Run(plan, open_output(url), options, tell, stop, history)
        )


class _Run:
    """One try of a run: a :class:`~consistory_ray.engine.outages.Try`."""

    def __init__(
        self,
        plan: Plan,
        store: OutputStore,
        options: RunOptions,
        emit: Callable[[Event], None],
        stop: StopRequest,
        history: History,
    ) -> None:
        self._history = history
        self._again = history.recorded
        self._plan = plan
        self._store = store.begun(LEASE_FOLDER)  # whoever writes here does so under a lease
        self._options = options
        self._stop = stop
        self._emit = emit
        self._work = Workload({}, frozenset(), 0)
        self._rejected: Mapping[str, str] = {}
        self._takes = TakeKeeper(plan)
        self._unread: Mapping[str, str] = {}
        self._stopped = ""
        self._finished = False
        self._begun: float | None = None
        self._owner = f"the run of {plan.name}"
        self._lease: Lease | None = None
        self._record = RecordKeeper(self._store, history, stop)
        writer = IndexWriter(self._store, seconds_per_part=SECONDS_PER_PART, lost=self._lost)
        self._ledger = Ledger(plan.model, writer, emit, history.fingerprint, history.given_up, history.spent)
        if history.books is not None:
            self._ledger.take_over(history.books)
        self._session = RaySession(self._store, options, history, self._ledger, stop, self._lost)

    def execute(self) -> RunSummary:
        """Take the lease and do everything under it."""
        if not self._again:
            if not self._options.only_failed:
                self._record.refuse_repetition()
            check_address(self._options.address)
        self._record.look_for(needed=self._options.only_failed)
        store = self._store.begun(RUN_RECORD if self._again else "")
        lease = self._patiently(
            lambda: Lease.acquire(
                store, self._owner, ttl_seconds=self._options.lease_seconds, on_wait=self._waiting_for_lease
            )
        )
        with lease:
            self._lease = lease
            self._record.look_for(needed=self._options.only_failed)
            return self._execute()

    def _patiently(self, action: Callable[[], T]) -> T:
        """:func:`with_backoff`, unless the run is being stopped: nothing was begun yet that would have to be ended."""
        return with_backoff(action, enough=lambda: self._stop)

    @property
    def seconds(self) -> float:
        """For how long it was delivering: from when it knew what is there to its last picture."""
        last = self._ledger.last_delivery
        return 0.0 if self._begun is None or last is None else last - self._begun

    def met_outage(self, error: ConsistoryError) -> bool:
        """Whether what ended the run, after it had begun, is that the output was out of reach, and nothing else."""
        if not self._history.recorded or isinstance(error, RunInterrupted):
            return False
        if isinstance(error, StorageError):
            return not is_lasting(error)
        lease = self._lease if isinstance(error, RunError) else None
        gone = lease is not None and (lease.expired or lease.vanished)
        return gone or isinstance(error, OutageError)

    def starts_ray_again(self, error: ConsistoryError) -> bool:
        """Whether it was the Ray of our own that ended; the next try starts another one, but only once."""
        if not isinstance(error, ClusterLostError) or not self._history.recorded or not self._may_restart(error):
            return False
        self._history.lost_ray = error.reason
        self._emit(Notice(f"{error.reason}; it is started again, once"))
        return True

    def record_end(self, state: Literal["failed", "interrupted"], error: ConsistoryError) -> None:
        """Say how it ended after an outage, if the output can be written to after all and nobody else was there."""
        self._record.end(self._owner, state, error)

    def _may_restart(self, error: BaseException) -> bool:
        own = isinstance(error, ClusterLostError) and error.own
        return own and not self._history.lost_ray and not self._stop

    def _lost(self) -> str:
        return self._lease.lost if self._lease is not None else ""

    def _execute(self) -> RunSummary:
        found = self._compare_with_plan()
        self._begun = time.monotonic()
        self._tell(found)
        with self._recording():
            done = self._work.done
            self._stopped = self._history.stopped
            if not self._stopped:
                done = done | self._ledger.refused(self._plan, done)
                done = done | self._ledger.still_rejected(self._plan, self._rejected)
            if self._work.found + self._ledger.failed < self._work.planned and not self._stopped:
                self._patiently(lambda: copy_inputs(self._store, self._plan.inputs(), self._lost))
                self._stopped = self._session.render(self._plan, done, self._takes)
                self._history.spending.rest()
                if self._stopped and not self._stop:
                    self._history.stopped, self._history.books = self._stopped, self._ledger
            self._finish()
            self._finished = True
        summary = self._summary()
        code = EXIT_MAX_COST if summary.max_cost_reached else 1 if summary.state == "failed" else None
        self._write_record(state=summary.state, exit_code=code)
        self._emit(RunFinished(summary))
        return summary

    def _compare_with_plan(self) -> Resumed:
        """Bring the output into step with the plan, and write down that the run has begun."""
        plan = self._patiently(lambda: plan_as_begun(self._plan, self._store, self._lost))
        decisions, self._unread = self._patiently(lambda: read_decisions(self._store))
        plan = asked_plan(plan, decisions)
        takes = self._takes = TakeKeeper(plan)
        paths = {asset.asset_id: asset.path for asset in plan.assets()} | takes.possible()
        found = self._patiently(lambda: resume(self._store, paths, lost=self._lost))
        if found.moved:
            self._patiently(lambda: move_caches(self._store, plan, self._lost))
        self._plan = plan = without(plan, plan.decided.rejected - found.done)
        self._ledger.asked = plan.decided.rerolls
        keep, only_failed = self._options.keep_anchors, self._options.only_failed
        self._rejected = {} if only_failed else found.rejected
        self._patiently(lambda: takes.begin(self._store, found.done, only_failed=only_failed))
        self._work = Workload.of(plan, found.done, found.failed, only_failed=only_failed, keep=keep, takes=takes)
        if not self._again:
            self._history.found = self._work.found
            self._expect()
        self._write_record(state="running")
        self._history.recorded = True
        return found

    def _expect(self) -> None:
        """Forecast what this run takes, for its record, and say so if it will hardly do with its money."""
        options, limit = self._options, self._options.max_cost
        expected = bill(self._plan, self._work.done, options.rate, workers=options.workers or 1)
        self._history.forecast = expected.to_record()
        if limit is not None and expected.cost is not None and expected.cost.likely > limit:
            money = worded(expected.cost, expected.currency)
            self._emit(Notice(f"what is left will cost about {money}, and --max-cost is {limit:g}: it will be stopped"))

    def _tell(self, found: Resumed) -> None:
        plan, work, url = self._plan, self._work, self._store.url
        self._emit(RunStarted(plan.name, url, work.progress(plan), work.planned, work.found, found.recovered))
        for text in passed_over(self._unread):
            self._emit(Notice(text))
        if rerolls := plan.decided.rerolls:
            left = plural(len(rerolls - work.done), "re-roll")
            self._emit(Notice(f"people have asked for {plural(len(rerolls), 'further take')}: {left} to make"))
        for part in found.set_aside:
            self._emit(Notice(f"a part of the index was damaged and moved away: {part}"))
        if found.moved:
            self._emit(Notice(f"{found.moved} pictures were moved to the places that the job now gives them"))
        if found.replaced:
            kept = f"{found.replaced} pictures that the job no longer has in their places are kept"
            self._emit(Notice(f"{kept} in {url}/{REPLACED}"))

    def _finish(self) -> None:
        self._confirm_lease()  # the last rows do not go into what may have taken the output's place since the last look
        self._ledger.flush()
        if not self._stop:
            self._clear_anchors()
        self._ledger.close(merge=not self._stop)
        if not self._left and not self._stopped:
            self._compare()
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
        self._patiently(lambda: resume(self._store, self._work.expected, lost=self._lost))
        if missing := self._missing():
            raise OutageError(
                f"{len(missing)} of {self._work.planned} pictures that were delivered are not at {self._store.url} any "
                f"more, or without their rows: {named(missing.values())}"
            )

    def _missing(self) -> dict[str, str]:
        given_up, keep = self._ledger.given_up | self._ledger.accepted, self._options.keep_anchors
        return self._patiently(lambda: missing_pictures(self._store, self._plan, self._work.expected, given_up, keep))

    def _confirm_lease(self) -> None:
        if self._lease is not None:
            lease = self._lease
            with_backoff(lambda: lease.confirm("the run cannot be brought to its end"))

    @property
    def _left(self) -> int:
        """Pictures of which nothing is known yet."""
        ended = self._ledger.rendered + self._ledger.scored + self._ledger.failed
        return self._work.planned - self._work.found - ended

    def _waiting_for_lease(self, message: str) -> None:
        self._emit(Notice(message))
        if self._stop:
            raise RunInterrupted("stopped while another run still held the output")

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
            waits = isinstance(error, ConsistoryError) and (self.met_outage(error) or self._may_restart(error))
            code = 2 if isinstance(error, InputError) and not waits else None
            with suppress(StorageError):
                self._write_record(state="running" if waits else "failed", error=told(error), exit_code=code)
            raise

    @property
    def _rendered(self) -> int:
        """Pictures made since the first try; what the tries before this one made was found by it."""
        return max(0, self._work.found - self._history.found + self._ledger.rendered)

    @property
    def _accepts_short(self) -> bool:
        """Whether pictures that fall short of the gate are good enough in the end."""
        quality = self._plan.quality
        return self._options.accept_below or (quality is not None and quality.when_none_passes == "accept")

    def _write_record(self, **changes: Any) -> None:
        totals = {
            "planned": self._work.planned,
            "found": self._history.found,
            "rendered": self._rendered,
            "failed": self._ledger.failed,
            **({"short": self._takes.shortfalls()[0]} if self._plan.quality is not None else {}),
            "seconds": round(self._history.seconds, 3),
            **self._history.spending.to_record(),
        }
        changes |= {"forecast": self._history.forecast, "currency": self._options.rate.currency}
        fingerprint = self._history.fingerprint = self._ledger.fingerprint
        if self._ledger.controlnets:
            changes["controlnets"] = dict(zip(self._plan.controlnets, self._ledger.controlnets, strict=True))
        self._record.write(self._lost(), totals, fingerprint, **changes)

    def _summary(self) -> RunSummary:
        ledger = self._ledger
        state: RunState = "complete"
        short, shortfalls = self._takes.shortfalls()
        if ledger.failed or self._stopped or (short and not self._accepts_short):
            state = "failed"
        if (self._left and not self._stopped) or not self._finished:
            state = "interrupted"
        return RunSummary(
            name=self._plan.name,
            url=self._store.url,
            state=state,
            planned=self._work.planned,
            found=self._history.found,
            rendered=self._rendered,
            failed=ledger.failed,
            seconds=self._history.seconds,
            failures=tuple(ledger.failures),
            failures_by_kind=dict(ledger.failures_by_kind),
            stopped=self._stopped,
            caches=self._session.caches_told,
            profile=self._plan.profile,
            forecast=self._history.forecast,
            outcome=self._history.spending.to_record(),
            currency=self._options.rate.currency,
            max_cost_reached=state == "interrupted" and self._history.spending.reached,
            spent={name: round(seconds, 3) for name, seconds in self._history.spent.items()},
            scored=ledger.scored,
            takes=ledger.takes,
            rerolls=ledger.rerolls,
            gated=self._plan.quality is not None,
            short=short,
            shortfalls=shortfalls,
        )
