"""Further takes of a scene: more pictures of the same words, each with a seed and an id of its own.

The first take is the scene's asset as every plan has it. A further one is derived from it and from its number alone, so
it is the same picture whoever asks for it, when, and after how many others. Its file is named after its id, too: an
edited scene never takes the place of its former takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from consistory_ray.plan.plan import Asset
from consistory_ray.plan.words import digest

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Plan, SubjectPlan

TAKES_FOLDER = "takes"
_SEED_DIGITS, _NAME_DIGITS = 8, 8


def take_of(first: Asset, number: int) -> Asset:
    """Take ``number`` of a scene, from 1.

    Args:
        first: the scene as the plan has it.
        number: which take.
    """
    if number == 1:
        return first
    asset_id = digest(["take", first.asset_id, number])
    folder, _, name = first.path.rpartition("/")
    path = f"{folder}/{TAKES_FOLDER}/{name.removesuffix('.png')}.{number}-{asset_id[:_NAME_DIGITS]}.png"
    seed = take_seed(first.seed, number)
    return replace(first, asset_id=asset_id, seed=seed, path=path, take=number, take_of=first.asset_id)


def take_seed(seed: int, number: int) -> int:
    """The seed of take ``number``, from 1, of a picture with that seed."""
    return seed if number == 1 else int(digest(["take", seed, number])[:_SEED_DIGITS], 16)


def gated_scenes(subject: SubjectPlan) -> Sequence[Asset]:
    """The scenes that a gate looks at: those that can be made."""
    impossible = {asset_id for asset_id, _ in subject.impossible}
    return [scene for scene in subject.scenes if scene.asset_id not in impossible]


def further_takes(plan: Plan) -> Iterator[Asset]:
    """Every take but the first ones that the plan's gate may ask for; none without a gate."""
    if plan.quality is None:
        return
    for subject in plan.subjects:
        for scene in gated_scenes(subject):
            for number in range(2, plan.quality.max_takes + 1):
                yield take_of(scene, number)
