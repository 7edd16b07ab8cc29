"""The work of an evaluation: pictures less what is scored, scores committed as they come, then page and summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.engine.outages import with_backoff
from consistory_ray.output.gallery.evaluation import build_evaluation_page
from consistory_ray.output.lease.fencing import Lost
from consistory_ray.output.scores import merge_scores, read_scores, write_scores, write_summary
from consistory_ray.quality.scores import Score, scores_to_table
from consistory_ray.quality.scoring import MetricFacts, Picture, SubjectPictures, context_of
from consistory_ray.quality.summary import summarise

if TYPE_CHECKING:
    from consistory_ray.output.storage import OutputStore
    from consistory_ray.quality.scoring import Scored

SECONDS_PER_PART = 2.0
MAX_LISTED = 1000
_PARTS_BEFORE_MERGE = 64


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


class ScoreWork:
    """What is to be scored, and what came of it.

    Args:
        store: the output.
        rows: of its index, pictures that are there.
        lost: why the output may no longer be written to; empty while it may.
        on_progress, on_notice: see :func:`~consistory_ray.engine.scoring.evaluate.evaluate_output`.
    """

    def __init__(
        self,
        store: OutputStore,
        rows: pa.Table,
        lost: Lost = str,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        on_notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.store = store
        self._rows, self._lost = rows, lost
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
