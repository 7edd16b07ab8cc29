"""Further takes of a scene: more pictures of the same words, each with a seed and an id of its own.

The first take is the scene's asset as every plan has it. A further one is derived from it and from its number alone, so
it is the same picture whoever asks for it, when, and after how many others. Its file is named after its id, too: an
edited scene never takes the place of its former takes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from consistory_ray.plan.planned import Asset, Decided, Plan, SubjectPlan
from consistory_ray.plan.words import digest

TAKES_FOLDER = "takes"
_SEED_DIGITS, _NAME_DIGITS = 8, 8
_MARK = re.compile(rf"\.\d+-[0-9a-f]{{{_NAME_DIGITS}}}")


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


def named_by(path: str) -> tuple[str, str] | None:
    """Subject and scene by the path of a picture, a further take or not; None for a path that no plan gives."""
    folder, *middle, name = path.split("/")
    scene, ending = name[:-4], name[-4:]
    if folder not in ("images", "anchors") or ending != ".png":
        return None
    if len(middle) == 1:
        return middle[0], scene
    mark = scene.rfind(".")
    if len(middle) != 2 or middle[1] != TAKES_FOLDER or mark < 1 or not _MARK.fullmatch(scene[mark:]):
        return None
    return middle[0], scene[:mark]


def possible_scenes(subject: SubjectPlan) -> Sequence[Asset]:
    """The scenes that can be made."""
    impossible = {asset_id for asset_id, _ in subject.impossible}
    return [scene for scene in subject.scenes if scene.asset_id not in impossible] if impossible else subject.scenes


def with_takes(subject: SubjectPlan, numbers: Mapping[str, Collection[int]]) -> SubjectPlan:
    """A subject with more takes of its scenes that are made in any case.

    Args:
        subject: the subject.
        numbers: of the takes, from 2, by the id of the scene; those that it has already make no difference.
    """
    there: dict[str, set[int]] = {}
    for take in subject.takes:
        there.setdefault(take.take_of, set()).add(take.take)
    takes = (
        take_of(scene, number)
        for scene in possible_scenes(subject)
        for number in sorted({*numbers.get(scene.asset_id, ()), *there.get(scene.asset_id, ())})
    )
    return replace(subject, takes=tuple(takes)) if any(numbers.values()) else subject


def taken(subject: SubjectPlan, takes: int) -> SubjectPlan:
    """A subject, and what it may have been before, with that many takes of each scene."""
    numbers = dict.fromkeys((scene.asset_id for scene in subject.scenes), range(2, takes + 1))
    return replace(with_takes(subject, numbers), former=tuple(taken(one, takes) for one in subject.former))


def as_decided(
    plan: Plan, wanted: Mapping[str, Collection[int]], rejected: Collection[str], settled: Collection[str]
) -> Plan:
    """A plan after people have decided about its pictures.

    What is said of scenes that the plan does not have, such as those of words that were edited since, says nothing.

    Args:
        plan: of the job.
        wanted: numbers of the takes that are asked for, by the id of the scene.
        rejected: ids of the takes that nobody wants.
        settled: ids of the scenes that somebody has decided about.
    """
    subjects, rerolls, own = [], set[str](), set[str]()
    for subject in plan.subjects:
        asked = {scene.asset_id: wanted.get(scene.asset_id, ()) for scene in possible_scenes(subject)}
        subject = with_takes(subject, asked)
        rerolls |= {take.asset_id for take in subject.takes if take.take in asked[take.take_of]}
        own |= {asset.asset_id for asset in (*subject.scenes, *subject.takes)}
        subjects.append(subject)
    pictures = {scene.asset_id for subject in subjects for scene in subject.scenes}
    decided = Decided(*map(frozenset, (pictures.intersection(settled), own.intersection(rejected), rerolls)))
    return replace(plan, subjects=tuple(subjects), decided=decided)


def without(plan: Plan, asset_ids: Collection[str]) -> Plan:
    """A plan without some of its scenes and takes."""
    if not asset_ids:
        return plan

    def rest(assets: tuple[Asset, ...]) -> tuple[Asset, ...]:
        return tuple(asset for asset in assets if asset.asset_id not in asset_ids)

    subjects = (replace(one, scenes=rest(one.scenes), takes=rest(one.takes)) for one in plan.subjects)
    decided = replace(plan.decided, rerolls=plan.decided.rerolls.difference(asset_ids))
    return replace(plan, subjects=tuple(subjects), decided=decided)


def further_takes(plan: Plan) -> Iterator[Asset]:
    """Every take but the first ones that the plan's gate may ask for; none without a gate."""
    if plan.quality is None:
        return
    for subject in plan.subjects:
        for scene in possible_scenes(subject):
            for number in range(2, plan.quality.max_takes + 1):
                yield take_of(scene, number)
