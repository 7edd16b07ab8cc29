"""What people have asked for in a review, as a plan: takes to make, takes that stay away, scenes that are settled.

Decisions hang on asset ids, which are hashes of what makes a picture: those about a scene that the job has in other
words by now are about nothing that the plan has, and say nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.output.comparison import plan_as_begun
from consistory_ray.output.decisions import Decision, decided_rows, read_decisions, standing
from consistory_ray.output.storage import OutputStore
from consistory_ray.plan.takes import as_decided

if TYPE_CHECKING:
    from consistory_ray.plan.planned import Plan


def plan_as_asked(plan: Plan, store: OutputStore) -> tuple[Plan, list[str]]:
    """A plan for what an output holds, :func:`~consistory_ray.output.comparison.plan_as_begun`, and for what people
    have decided about it; and what :func:`passed_over` says of parts of their decisions that cannot be used.

    Raises:
        InputError, StorageError: see :func:`consistory_ray.output.index.index.read_index`.
    """
    decisions, broken = read_decisions(store)
    return asked_plan(plan_as_begun(plan, store), decisions), list(passed_over(broken))


def passed_over(broken: Mapping[str, str]) -> Iterator[str]:
    """A line for each part of decisions that cannot be used, by its path and the reason."""
    for path, reason in broken.items():
        yield f"decisions that cannot be used are passed over: {path} ({reason})"


def asked_plan(plan: Plan, decisions: Iterable[Decision]) -> Plan:
    """A plan after these decisions; they may be those of an earlier call, and more, or fewer."""
    stands = standing(decisions)
    if not stands:
        return plan
    return as_decided(
        plan,
        {picture: one.wanted_takes for picture, one in stands.items() if one.wanted_takes},
        {asset_id for one in stands.values() for asset_id in one.rejected},
        {picture for picture, one in stands.items() if one.picked or one.rejected or one.wanted_takes},
    )


def decision_counts(plan: Plan, decisions: Iterable[Decision]) -> dict[str, int]:
    """How many decisions of each kind stand about a plan's scenes, and about pictures that it does not have."""
    scenes = {scene.asset_id for subject in plan.subjects for scene in subject.scenes}
    counts: Counter[str] = Counter()
    for picture, one in standing(decisions).items():
        own = {"picked": int(one.picked is not None), "rejected": len(one.rejected), "re-rolled": len(one.wanted_takes)}
        own["noted"] = len(one.notes)
        counts.update(own if picture in scenes else {"about other pictures": sum(own.values())})
    kinds = ("picked", "rejected", "re-rolled", "noted", "about other pictures")
    return {kind: counts[kind] for kind in kinds if counts[kind]}


def pictures_of(table: pa.Table, store: OutputStore) -> pa.Table:
    """The rows of pictures, one for each scene: the take that people have picked, else the best one of those that they
    have not rejected, see :func:`~consistory_ray.output.decisions.decided_rows`. Anchors are nobody's to decide about.

    Raises:
        StorageError: the storage failed.
    """
    stands = standing(read_decisions(store)[0])
    if stands:
        anchors = set(table.filter(pc.equal(table["kind"], "anchor"))["asset_id"].to_pylist())
        stands = {picture: one for picture, one in stands.items() if picture not in anchors}
    return decided_rows(table, stands)
