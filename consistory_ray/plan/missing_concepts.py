"""Pictures that cannot be made since nothing of a concept stands in their prompts, where a job accepts that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from consistory_ray.jobs.checks import lacking_in_anchor, lacks_all
from consistory_ray.jobs.problems import shown


class Prompted(Protocol):
    """A picture to make; :class:`~consistory_ray.plan.plan.Asset` is one."""

    @property
    def asset_id(self) -> str: ...
    @property
    def prompt(self) -> str: ...


def impossible(
    anchors: Sequence[Prompted], scenes: Sequence[Prompted], concepts: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """The ids of the pictures that cannot be made, each with the reason.

    An anchor that lacks a concept takes all of its subject's pictures with it, a scene only itself.
    """
    for number, anchor in enumerate(anchors):
        if absent := lacking_in_anchor(anchor.prompt, concepts):
            reason = (
                f"the prompt of anchor-{number} contains nothing of {_listed(absent, ' and ')}: {shown(anchor.prompt)}"
            )
            return tuple((asset.asset_id, reason) for asset in (*anchors, *scenes))
    listed = _listed(concepts, " or ")
    return tuple(
        (scene.asset_id, f"the prompt contains nothing of {listed}: {shown(scene.prompt)}")
        for scene in scenes
        if lacks_all(scene.prompt, concepts)
    )


def _listed(concepts: Sequence[str], conjunction: str) -> str:
    return conjunction.join(shown(concept) for concept in concepts)
