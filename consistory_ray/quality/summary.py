"""What the scores of an output say: subjects beside each other, with intervals; outliers; copied scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.evaluation.bootstrap import mean_interval
from consistory_ray.quality.copies import BACKGROUND, COPIED

if TYPE_CHECKING:
    from consistory_ray.quality.scoring import MetricFacts

MAX_OUTLIERS = 48
MAX_COPIES = 200
OUTLIER_FACTOR = 2.0
"""A picture whose identity gap is above so many times its subject's median is an outlier."""


@dataclass(frozen=True, slots=True)
class Number:
    """A mean with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Number | None:
        """Of some numbers, drawn again with replacement; None of none."""
        return cls(float(np.mean(values)), *mean_interval(np.asarray(values, np.float64))) if len(values) else None


@dataclass(frozen=True, slots=True)
class SubjectSummary:
    """A subject's scenes.

    Attributes:
        subject: its id.
        scenes: how many of them have scores.
        numbers: metric -> mean over scenes, with its interval over scenes.
        harmonic: see :func:`harmonic`, of identity among scenes and alignment; None where one is not known.
    """

    subject: str
    scenes: int
    numbers: Mapping[str, Number]
    harmonic: float | None


@dataclass(frozen=True, slots=True)
class Outlier:
    """A picture that is far from its subject's anchors: its gap (1 - identity), and that over the subject's median."""

    asset_id: str
    subject: str
    path: str
    gap: float
    ratio: float


@dataclass(frozen=True, slots=True)
class Copy:
    """Two pictures of different prompts whose backgrounds differ in ``bits`` of 64."""

    asset_id: str
    subject: str
    path: str
    other: str
    bits: int


@dataclass(frozen=True)
class Summary:
    """What an evaluation found.

    Attributes:
        metrics: name -> version.
        identity, alignment: the metrics on the plane's axes; empty where there is none.
        pictures: how many there are.
        run: metric -> mean over subjects' means, with its interval over subjects.
        harmonic: of the run's identity among scenes and alignment.
        subjects: best first.
        outliers: farthest first; how many there are in all under ``outlier_count``.
        copies: the nearest first; ``copy_count`` in all.
    """

    metrics: Mapping[str, str]
    identity: str
    alignment: str
    pictures: int
    run: Mapping[str, Number]
    harmonic: float | None
    subjects: tuple[SubjectSummary, ...]
    outliers: tuple[Outlier, ...]
    outlier_count: int
    copies: tuple[Copy, ...]
    copy_count: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def harmonic(identity: float | None, alignment: float | None) -> float | None:
    """S_H, the harmonic mean of identity and alignment, ``2 i a / (i + a)``; None where one is not known.

    Consistency without the prompt, and the prompt without consistency, both bring it down. It sums up methods in the
    tables of 1Prompt1Story (arXiv 2501.13554) and SDeC (arXiv 2510.14553). Both values are cut to 0..1 here; numbers
    are comparable between runs scored by the same metrics, and not with those tables, whose scaling may differ.
    """
    if identity is None or alignment is None:
        return None
    i, a = (min(max(value, 0.0), 1.0) for value in (identity, alignment))
    return 2 * i * a / (i + a) if i + a > 0 else 0.0


def summarise(rows: pa.Table, scores: pa.Table, facts: Sequence[MetricFacts]) -> Summary:
    """Sum up the newest scores of these metrics about pictures that are still those that were looked at.

    Args:
        rows: of the index, pictures that are there.
        scores: see :data:`consistory_ray.quality.scores.SCHEMA`.
        facts: of the metrics.
    """
    versions = {name: fact.version for fact in facts for name in fact.scores}
    names = list(versions)
    table = _joined(rows, scores, versions)
    identity = next((name for name in names if name.endswith("_among")), "")
    alignment = next((name for name in names if name.endswith("_alignment")), "")
    scenes = table.filter(pc.not_equal(table["kind"], "anchor"))
    means: dict[str, dict[str, Number]] = {}
    counts: dict[str, int] = {}
    for row in scenes.group_by(["subject", "metric"]).aggregate([("value", "list"), ("asset_id", "count")]).to_pylist():
        counts[row["subject"]] = max(counts.get(row["subject"], 0), row["asset_id_count"])
        known = [value for value in row["value_list"] if value is not None]
        if (number := Number.of(known)) is not None:
            means.setdefault(row["subject"], {})[row["metric"]] = number
    subjects = [_subject(name, counts[name], means.get(name, {}), identity, alignment) for name in counts]
    run = {
        name: number
        for name in names
        if (number := Number.of([own[name].mean for own in means.values() if name in own])) is not None
    }
    outliers = _outliers(scenes, identity.replace("_among", "_identity"))
    copies = _copies(table)
    return Summary(
        metrics={fact.name: fact.version for fact in facts},
        identity=identity,
        alignment=alignment,
        pictures=len(rows),
        run=run,
        harmonic=harmonic(_mean(run, identity), _mean(run, alignment)),
        subjects=tuple(sorted(subjects, key=lambda one: (-_rank(one, identity), one.subject))),
        outliers=tuple(outliers[:MAX_OUTLIERS]),
        outlier_count=len(outliers),
        copies=tuple(copies[:MAX_COPIES]),
        copy_count=len(copies),
    )


def _joined(rows: pa.Table, scores: pa.Table, versions: Mapping[str, str]) -> pa.Table:
    """Scores of the pictures that are there, with what the index says of these."""
    named = pc.is_in(scores["metric"], value_set=pa.array(list(versions), pa.string()))
    scores = scores.filter(named)
    own = pa.array([versions[name] for name in scores["metric"].to_pylist()], pa.string())
    scores = scores.filter(pc.equal(scores["version"], pa.chunked_array([own])))
    facts = rows.select(["asset_id", "sha256", "subject", "kind", "path"])
    columns = ["asset_id", "sha256", "metric", "value", "other"]
    return scores.select(columns).join(facts, keys=["asset_id", "sha256"], join_type="inner").sort_by(
        [("subject", "ascending"), ("path", "ascending"), ("metric", "ascending")]
    )  # fmt: skip


def _subject(name: str, scenes: int, numbers: Mapping[str, Number], identity: str, alignment: str) -> SubjectSummary:
    return SubjectSummary(name, scenes, numbers, harmonic(_mean(numbers, identity), _mean(numbers, alignment)))


def _mean(numbers: Mapping[str, Number], name: str) -> float | None:
    return numbers[name].mean if name in numbers else None


def _rank(one: SubjectSummary, identity: str) -> float:
    """By both, else by identity alone; who has neither comes last."""
    value = one.harmonic if one.harmonic is not None else _mean(one.numbers, identity)
    return -1.0 if value is None else value


def _outliers(scenes: pa.Table, metric: str) -> list[Outlier]:
    own = scenes.filter(pc.and_(pc.equal(scenes["metric"], metric), pc.is_valid(scenes["value"])))
    rows = own.select(["asset_id", "subject", "path", "value"]).to_pylist()
    gaps: dict[str, list[float]] = {}
    for row in rows:
        gaps.setdefault(row["subject"], []).append(1 - row["value"])
    medians = {subject: float(np.median(values)) for subject, values in gaps.items()}
    found = []
    for row in rows:
        gap, median = 1 - row["value"], medians[row["subject"]]
        if len(gaps[row["subject"]]) > 2 and gap > OUTLIER_FACTOR * median and median > 0:
            found.append(Outlier(row["asset_id"], row["subject"], row["path"], gap, gap / median))
    return sorted(found, key=lambda one: (-one.ratio, one.path))


def _copies(table: pa.Table) -> list[Copy]:
    near = pc.less_equal(table["value"], COPIED)
    found = table.filter(pc.fill_null(pc.and_(pc.equal(table["metric"], BACKGROUND), near), False))
    paths = dict(zip(table["asset_id"].to_pylist(), table["path"].to_pylist(), strict=True))
    copies = {
        frozenset((row["asset_id"], row["other"])): Copy(
            row["asset_id"], row["subject"], row["path"], paths.get(row["other"], ""), int(row["value"])
        )
        for row in found.to_pylist()
    }
    return sorted(copies.values(), key=lambda one: (one.bits, one.path))
