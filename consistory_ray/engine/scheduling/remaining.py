"""What is left of a plan, given what an output holds of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from consistory_ray.engine.scheduling.work import SubjectWork

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Plan


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
        to_make = () if not anchors or anchors[0] in done else anchors
        if scenes or to_make:
            size = (subject.settings.height, subject.settings.width)
            works.append(SubjectWork(subject.subject_id, to_make, scenes, cache_bytes[subject.subject_id], size))
    return sorted(works, key=lambda work: bool(work.anchors))


def failed_with_anchors(plan: Plan, failed: Collection[str], done: Collection[str]) -> set[str]:
    """The assets that failed before, and the anchors that have to be made for them; other missing ones stay missing."""
    chosen: set[str] = set()
    for subject in plan.subjects:
        anchors = {asset.asset_id for asset in subject.anchors}
        scenes = {asset.asset_id for asset in subject.scenes if asset.asset_id in failed}
        if scenes or not anchors.isdisjoint(failed):
            chosen |= scenes | {asset_id for asset_id in anchors if asset_id not in done}
    return chosen
