"""An evaluation: compare the pictures with the scores that are there, let workers score the rest, write it down.

The unit is a subject: its pictures are compared with each other. A subject whose scores are all there, of these metrics
in these versions and of these very pictures, is left out; one of which anything is missing or has changed is scored
whole. Scores are committed every two seconds, so a killed evaluation loses little, and the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.engine.cluster.address import check_address
from consistory_ray.engine.cluster.joining import joined_cluster
from consistory_ray.engine.cluster.placement import shape_workers
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.outages import with_backoff
from consistory_ray.engine.scoring.dispatch import ScoreDispatch
from consistory_ray.engine.stopping import StopRequest, stop_on_signals
from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.named_code import is_named_code
from consistory_ray.output.gallery.evaluation import build_evaluation_page
from consistory_ray.output.index.index import read_index
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.lease.record import LEASE_FOLDER
from consistory_ray.output.scores import merge_scores, read_scores, write_scores, write_summary
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.quality.metrics import MetricOptions, check_metric
from consistory_ray.quality.scores import Score, scores_to_table
from consistory_ray.quality.scoring import MetricFacts, Picture, SubjectPictures, context_of
from consistory_ray.quality.summary import summarise

if TYPE_CHECKING:
    from consistory_ray.quality.scoring import Scored

SECONDS_PER_PART = 2.0
MAX_LISTED = 1000
_PARTS_BEFORE_MERGE = 64


@dataclass(frozen=True, slots=True)
class EvaluationOptions:
    """What to measure, and where.

    Attributes:
        metrics: names, see :func:`~consistory_ray.quality.metrics.load_metric`; None is ``judge`` for pictures of the
            bundled model, and else has to be given.
        weights: of them.
        run: where workers run: ``address``, ``device``, ``workers``, ``cpus_per_worker``, ``gpus_per_worker``,
            ``lease_seconds``.
    """

    metrics: tuple[str, ...] | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    run: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How an evaluation ended.

    Attributes:
        url: the output.
        state: ``complete``, ``failed`` (pictures could not be scored) or ``interrupted``.
        pictures: how many there are to be scored.
        found, scored: how many of them had all scores before, and how many were scored now.
        failures: path -> why a picture could not be scored, the first thousand.
        failed: how many there are.
        without_mask: how many pictures have no mask and were looked at whole.
        metrics: name -> version.
        summary: see :func:`~consistory_ray.quality.summary.summarise`; empty when interrupted.
        page: path of the page below the output; empty when interrupted.
        seconds: from beginning to end.
    """

    url: str
    state: Literal["complete", "failed", "interrupted"]
    pictures: int
    found: int
    scored: int
    failures: Mapping[str, str]
    failed: int
    without_mask: int
    metrics: Mapping[str, str]
    summary: Mapping[str, Any]
    page: str
    seconds: float


def evaluate_output(
    url: str,
    options: EvaluationOptions | None = None,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_notice: Callable[[str], None] = lambda text: None,
    stop: StopRequest | None = None,
) -> Evaluation:
    """Score every picture of an output.

    Args:
        url: the output, a folder or any fsspec URL that all workers can reach.
        options: what to measure, and where.
        on_progress: is told how many pictures of how many are scored.
        on_notice: is told what somebody should know.
        stop: asks for a stop from another thread; signals are heard in the main thread.

    Raises:
        InputError: nothing was rendered there, or a metric or option cannot be used.
        CheckpointError: weights of a metric cannot be used.
        OutputBusyError: a run or another evaluation is writing to the output.
        StorageError: the output is out of reach.
        RunError: the evaluation cannot go on.
    """
    stop = stop if stop is not None else StopRequest()
    options = options or EvaluationOptions()
    started, store = time.monotonic(), open_output(url)
    rows = _rows(store)
    options = replace(options, metrics=_metrics(options, rows))
    check_address(options.run.address)
    with (
        stop_on_signals(stop),
        Lease.acquire(store, "an evaluation", ttl_seconds=options.run.lease_seconds, on_wait=on_notice) as lease,
    ):
        work = _Work(store.begun(LEASE_FOLDER), _rows(store), options, lambda: lease.lost, on_progress, on_notice)
        with joined_cluster(options.run) as watch:
            shape = shape_workers(options.run)
            named = MetricOptions(options.weights, shape.device)
            dispatch = ScoreDispatch(shape, (work.store, options.metrics, named, shape.threads), watch, lambda: stop)
            try:
                hello = dispatch.hello()
                for notice in hello.notices:
                    on_notice(notice)
                for subject, scored in dispatch.score(work.begin(hello.facts)):
                    work.take(subject, scored)
            finally:
                dispatch.close()
                work.commit()
        return work.end(interrupted=bool(stop), seconds=time.monotonic() - started)


def _rows(store: OutputStore) -> pa.Table:
    """The index's rows of pictures that are there.

    Raises:
        InputError: there are none.
    """
    table = with_backoff(lambda: read_index(store))
    table = table.filter(pc.equal(table["status"], "ok"))
    if not len(table):
        fix = "give the folder or URL that a render wrote to"
        raise InputError("there are no pictures to be scored", [Problem("URL", store.url, fix)])
    return table


def _metrics(options: EvaluationOptions, rows: pa.Table) -> tuple[str, ...]:
    """The metrics that are to be used.

    Raises:
        InputError: none is named and the pictures are not of the bundled model, or one is unknown or named twice.
    """
    names = options.metrics
    if names is None:
        if any(not model.startswith("miniature") for model in pc.unique(rows["model"]).to_pylist()):
            fix = "name some, such as --metrics clip,dinov2 --weights clip=FOLDER --weights dinov2=FOLDER"
            raise InputError("these pictures need a metric", [Problem("--metrics", "", fix)])
        names = ("judge",)
    for name in names:
        check_metric("--metrics", name)
    if not names or len(set(names)) < len(names):
        raise InputError("metrics are not clear", [Problem("--metrics", ",".join(names), "name each one once")])
    unknown = sorted(set(options.weights) - set(names))
    if unknown and not any(is_named_code(name) for name in names):  # these know their own names
        fix = f"give weights of {', '.join(names)} only"
        raise InputError("weights of no metric", [Problem("--weights", ", ".join(unknown), fix)])
    return names


class _Work:
    """What is to be scored, and what came of it."""

    def __init__(
        self,
        store: OutputStore,
        rows: pa.Table,
        options: EvaluationOptions,
        lost: Callable[[], str],
        on_progress: Callable[[int, int], None],
        on_notice: Callable[[str], None],
    ) -> None:
        self.store = store
        self._rows, self._options, self._lost = rows, options, lost
        self._on_progress, self._on_notice = on_progress, on_notice
        self._paths = dict(zip(rows["asset_id"].to_pylist(), rows["path"].to_pylist(), strict=True))
        self._facts: tuple[MetricFacts, ...] = ()
        self._pending: list[Score] = []
        self._committed = time.monotonic()
        self._parts = 0
        self._failures: dict[str, str] = {}
        self._done = self._found = self._scored = 0

    def begin(self, facts: Sequence[MetricFacts]) -> list[SubjectPictures]:
        """The subjects that are to be scored, largest first."""
        self._facts = tuple(facts)
        subjects = subjects_of(self._rows)
        there, broken = with_backoff(lambda: read_scores(self.store))
        for path, why in broken.items():
            self._on_notice(f"{path} cannot be used ({why}): what it held is scored again")
        complete = complete_contexts(there, self._facts)
        left = [own for own in subjects if complete.get(context_of(own), 0) < len(own.pictures)]
        waiting = sum(len(own.pictures) for own in left)
        self._found = self._done = len(self._rows) - waiting
        if missing := pc.sum(pc.is_null(self._rows["mask"])).as_py():
            self._on_notice(f"{missing} pictures have no subject mask and are looked at whole, background included")
        self._on_progress(self._done, len(self._rows))
        return sorted(left, key=lambda own: (-len(own.pictures), own.subject))

    def take(self, subject: SubjectPictures, scored: Scored) -> None:
        """Note what came of a subject, and commit if it is time to."""
        now = datetime.now(timezone.utc)
        self._pending += [replace(score, scored_at=now) for score in scored.scores]
        self._failures |= scored.failures
        self._scored += len(subject.pictures) - len(scored.failures)
        self._done += len(subject.pictures)
        self._on_progress(self._done, len(self._rows))
        if time.monotonic() - self._committed >= SECONDS_PER_PART:
            self.commit()

    def commit(self) -> None:
        """Write down what is waiting for it."""
        self._committed = time.monotonic()
        if self._pending and not self._lost():
            table = scores_to_table(self._pending)
            with_backoff(lambda: write_scores(self.store, table, self._lost))
            self._pending, self._parts = [], self._parts + 1
            if self._parts % _PARTS_BEFORE_MERGE == 0:
                with_backoff(lambda: merge_scores(self.store, self._lost))

    def end(self, *, interrupted: bool, seconds: float) -> Evaluation:
        """Merge, build the page, say that it is complete."""
        listed = {self._paths[asset_id]: why for asset_id, why in list(self._failures.items())[:MAX_LISTED]}
        result = Evaluation(
            url=self.store.url,
            state="failed" if self._failures else "complete",
            pictures=len(self._rows),
            found=self._found,
            scored=self._scored,
            failures=listed,
            failed=len(self._failures),
            without_mask=pc.sum(pc.is_null(self._rows["mask"])).as_py() or 0,
            metrics={fact.name: fact.version for fact in self._facts},
            summary={},
            page="",
            seconds=round(seconds, 3),
        )
        if interrupted and self._done < len(self._rows):
            return replace(result, state="interrupted")
        with_backoff(lambda: merge_scores(self.store, self._lost))
        table = with_backoff(lambda: read_scores(self.store))[0]
        numbers = summarise(self._rows, table, self._facts)
        page = with_backoff(lambda: build_evaluation_page(self.store, numbers, self._rows, listed, self._lost))
        told = numbers.to_dict() | {"failed": result.failed, "failures": listed, "without_mask": result.without_mask}
        with_backoff(lambda: write_summary(self.store, told, self._lost))
        return replace(result, summary=told, page=page)


def subjects_of(rows: pa.Table) -> list[SubjectPictures]:
    """The index's rows, subject by subject."""
    columns = ("subject", "asset_id", "kind", "prompt", "path", "sha256", "mask")
    by_subject: dict[str, list[Picture]] = {}
    for row in rows.select(columns).to_pylist():
        by_subject.setdefault(row.pop("subject"), []).append(Picture(**row))
    return [SubjectPictures(name, tuple(pictures)) for name, pictures in by_subject.items()]


def complete_contexts(scores: pa.Table, facts: Iterable[MetricFacts]) -> dict[str, int]:
    """For each context of which scores are there how many pictures have every one of them."""
    least: dict[str, int] = {}
    counts: dict[tuple[str, str, str], int] = {}
    grouped = scores.group_by(["context", "metric", "version"]).aggregate([("asset_id", "count_distinct")])
    for row in grouped.to_pylist():
        counts[row["context"], row["metric"], row["version"]] = row["asset_id_count_distinct"]
    wanted = [(name, fact.version) for fact in facts for name in fact.scores]
    for context in {context for context, _, _ in counts}:
        least[context] = min((counts.get((context, *one), 0) for one in wanted), default=0)
    return least
