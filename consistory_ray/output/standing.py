"""Where the pictures of a gated job stand, from the index alone: takes, their scores, and which fall short."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.output.index.takes import picture_ids
from consistory_ray.plan.takes import possible_scenes, take_of
from consistory_ray.quality.gate import Bar, Gate, Verdict

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A scene of which no take passes.

    Attributes:
        asset_id, path: of its best take, which is its picture.
        score: of that one.
        bar: what would pass.
        takes: how many there are.
    """

    asset_id: str
    path: str
    score: float
    bar: float
    takes: int

    def __str__(self) -> str:
        takes = "take" if self.takes == 1 else f"best of {self.takes} takes"
        return f"{self.path}: {self.score:.3f} ({takes}), {self.bar:.3f} would pass"


COLUMNS = ("asset_id", "status", "take", "take_of", "score", "scored_by")
_BATCH_ROWS = 10_000


def scored_as(plan: Plan) -> str:
    """How ``scored_by`` begins of scores that count for a plan; the metric's version follows."""
    return "" if plan.quality is None else f"{plan.quality.metric} {plan.quality.measure} "


def gate_of(plan: Plan, only: Collection[str] | None = None) -> Gate | None:
    """A plan's gate before anything is known; None where the plan has none.

    Args:
        plan: the plan.
        only: ids of the pictures that further takes may be asked for; None is all.
    """
    if plan.quality is None:
        return None
    asked = plan.quality
    bar = Bar(asked.threshold, asked.within, asked.max_takes)
    subjects = {
        subject.subject_id: tuple(scene.asset_id for scene in possible_scenes(subject)) for subject in plan.subjects
    }
    due: dict[str, list[int]] = {}
    for take in (take for subject in plan.subjects for take in subject.takes):
        due.setdefault(take.take_of, []).append(take.take)
    return Gate(bar, subjects, only, due=due, settled=plan.decided.pictures)


def take_in(gate: Gate, plan: Plan, rows: pa.Table, *, rejected: bool = True) -> set[str]:
    """Tell a gate what the index knows.

    Args:
        gate: of the plan.
        plan: the plan.
        rows: one for each asset, with at least :data:`COLUMNS`.
        rejected: whether takes that were rejected stay so; they then hold their pictures like those that were given up.

    Returns:
        Asset ids of takes that are there and have no score that counts, such as those of before there was a gate.
    """
    unscored = set()
    gone = set(plan.decided.rejected)
    for asset_id, picture, take, score in _ok_takes(rows, scored_as(plan)):
        if picture not in gate:
            continue
        gone.discard(asset_id)
        if score is None:
            unscored.add(asset_id)
            gate.coming(picture, take)
        else:
            gate.known(picture, take, score)
    if rejected:
        refused = rows.filter(pc.equal(rows["status"], "rejected"))
        takes = pc.fill_null(refused["take"], 1).to_pylist()
        for picture, take in zip(picture_ids(refused).to_pylist(), takes, strict=True):
            if picture in gate:
                gate.refused(picture, take)
    for picture in gone:  # of first takes that are gone for good, for which no median waits
        if picture in gate:
            gate.refused(picture, 1)
    return unscored


def shortfalls(gate: Gate, plan: Plan) -> Iterator[Shortfall]:
    """The scenes that fall short for good, in the plan's order."""
    scenes = (scene for subject in plan.subjects for scene in possible_scenes(subject))
    for scene in scenes:
        if gate.verdict(scene.asset_id) is not Verdict.SHORT:
            continue
        best, bar = gate.best(scene.asset_id), gate.bar_of(scene.asset_id)
        assert best is not None and bar is not None, "it was judged"
        take = take_of(scene, best[0])
        yield Shortfall(take.asset_id, take.path, best[1], bar, gate.takes(scene.asset_id))


def _ok_takes(rows: pa.Table, prefix: str) -> Iterator[tuple[str, str, int, float | None]]:
    """Asset id, picture, number and score of the takes that are there; None for a score of something else."""
    rows = rows.filter(pc.equal(rows["status"], "ok"))
    counts = pc.and_(pc.is_valid(rows["score"]), pc.starts_with(pc.fill_null(rows["scored_by"], ""), prefix))
    columns = {
        "asset_id": rows["asset_id"],
        "picture": picture_ids(rows),
        "take": pc.fill_null(rows["take"], 1),
        "score": pc.if_else(counts, rows["score"], pa.scalar(None, pa.float64())),
    }
    for batch in pa.table(columns).to_batches(_BATCH_ROWS):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
