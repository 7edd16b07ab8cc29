"""From a job to a plan: every picture with its prompt, its seed, its place and an id that is a hash of its content.

Nothing that decides a picture depends on the order of a file or on what else is in it: the same scene of the same
subject has the same id, seed and picture alone, among a million, or after a resume. Derived *names* get a short hash
where others would have the same one. Pure: no torch, no ray, no reading of the output (of a local model only the ends
of its files).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from consistory_ray.errors import JobError, Problem
from consistory_ray.jobs.checks import impossible
from consistory_ray.jobs.ids import Wanted, distinct_names, seed_scope, slug
from consistory_ray.jobs.job import RenderJob
from consistory_ray.jobs.render_settings import RenderSettings
from consistory_ray.jobs.subject import Subject
from consistory_ray.plan.controls import ControlPlanner, PlannedControl, in_poses
from consistory_ray.plan.controls import identity as identity_of
from consistory_ray.plan.drawing import Drawer, Take, scene_names
from consistory_ray.plan.inputs import planned_picture
from consistory_ray.plan.loaded import ALONE, Loaded, planned_loading
from consistory_ray.plan.planned import Asset, CacheSource, Plan, SubjectPlan
from consistory_ray.plan.sampling import refuse_sampling
from consistory_ray.plan.seeds import Seeds
from consistory_ray.plan.stored_settings import refuse_other_settings
from consistory_ray.plan.takes import taken
from consistory_ray.plan.text_encoders import refuse_unreadable
from consistory_ray.plan.words import NO_WORDS, Words, canonical, digest, own_words, told, whole
from consistory_ray.settings import MethodSettings, configuration_revision, model_revision

__all__ = ["PLAN_FORMAT", "Asset", "CacheSource", "Plan", "SubjectPlan", "as_begun", "make_plan", "scene_asset_id"]

PLAN_FORMAT = 1

_FORMER_NUMBERS = 8


def make_plan(job: RenderJob) -> Plan:
    """Plans a job.

    Raises:
        JobError: two subjects would be the same individual, a stored one was made with other settings, words that were
            drawn cannot be rendered, the text encoders cannot read some of them, or settings of the sampler do not go
            together.
        CheckpointError: the model's own settings file cannot be used.
    """
    loaded = planned_loading(job)
    refuse_other_settings(job, loaded)
    drawer = Drawer(job)
    job = drawer.job
    settings = job.settings.for_model(job.model)
    refuse_sampling(settings)
    identity = {"format": PLAN_FORMAT, "model": job.model, "settings": settings.to_dict()}
    if (revision := model_revision(job.model)) is not None:
        identity["revision"] = revision
    if job.config is not None:  # it decides the sampler's noise schedule and how words are read
        identity["config"] = configuration_revision(job.config) or job.config
    if job.settings.torch_dtype != "auto":
        identity["torch_dtype"] = job.settings.torch_dtype
    identity |= loaded.identity()
    former, led = _former_scopes(job), ControlPlanner(job)
    subjects = tuple(
        _plan_subject(subject, name, job.settings, identity, settings, led, drawer, former.get(index, ()))
        for index, (subject, name) in enumerate(zip(job.subjects, _subject_ids(job), strict=True))
    )
    if loaded != ALONE:
        subjects = tuple(_with(subject, loaded) for subject in subjects)
    drawer.check(subjects)
    refuse_unreadable(job.model, subjects)
    _refuse_twins(subjects)
    if job.takes > 1:
        subjects = tuple(taken(subject, job.takes) for subject in subjects)
    nets = tuple(net.model for net in job.controlnets)
    batch_size, dtype, level = job.settings.batch_size, job.settings.torch_dtype, job.settings.png_level
    own = (job.guess_mode, level, loaded, job.checks, job.quality)
    return Plan(job.name, job.model, subjects, batch_size, dtype, job.config, nets, *own)


def _with(subject: SubjectPlan, loaded: Loaded) -> SubjectPlan:
    return replace(subject, loaded=loaded, former=tuple(_with(one, loaded) for one in subject.former))


def as_begun(plan: Plan, made: Collection[str]) -> Plan:
    """The plan for an output that may have been begun by a version in which seeds depended on a subject's neighbours.

    A subject of which the output has pictures with such seeds, and none with its own, keeps those: it stays the
    individual that it is there, and nothing is rendered again.

    Args:
        plan: of any job.
        made: ids of the assets that the output has.
    """

    def choose(subject: SubjectPlan) -> SubjectPlan:
        there = (one for one in (subject, *subject.former) if any(asset.asset_id in made for asset in one.assets()))
        return replace(next(there, subject), former=())

    if not any(subject.former for subject in plan.subjects):
        return plan
    return replace(plan, subjects=tuple(choose(subject) if subject.former else subject for subject in plan.subjects))


def _refuse_twins(subjects: tuple[SubjectPlan, ...]) -> None:
    first: dict[str, int] = {}
    problems = []
    for index, subject in enumerate(subjects):
        other = first.setdefault(subject.subject_key, index)
        if other != index:
            add = f"add its scenes to subjects[{other}], which is the same individual"
            which = "pictures" if subject.pictures else "anchors"
            other_one = f"give its {which} other seeds, or it an id of its own for another individual"
            fix = add if subject.sources else f"{other_one}; or {add}"
            where = "from" if subject.sources else which
            problems.append(Problem(f"subjects[{index}].{where}", subject.subject_id, fix))
    if problems:
        raise JobError("the job cannot be planned: some subjects are the same individual", problems)


def _subject_text(subject: Subject) -> str:
    return subject.subject or "-".join(subject.concept)


def _subject_ids(job: RenderJob) -> list[str]:
    """Ids that were given, the others made of each subject's own words."""
    unnamed = [subject for subject in job.subjects if not subject.id]
    wanted = [Wanted(slug(_subject_text(subject), "subject"), _subject_words(subject)) for subject in unnamed]
    names = iter(distinct_names(wanted, [subject.id for subject in job.subjects if subject.id]))
    return [subject.id or next(names)[0] for subject in job.subjects]


def _subject_words(subject: Subject) -> str:
    """All that tells an individual from others: not its scenes, which may come and go."""
    anchors = [
        [one.prompt, one.seed, *(c.image.sha256 for c in one.control), *told(own_words(one))]
        for one in subject.shown_by
    ]
    words = [subject.style, subject.subject, subject.concept, anchors]
    if subject.pictures:
        words.append([planned_picture(picture).identity for picture in subject.pictures])
    return canonical([*words, *(stored.sha256 for stored in subject.sources)])


def _former_scopes(job: RenderJob) -> dict[int, tuple[str, ...]]:
    """What the seeds of some subjects were derived from in versions that numbered equal names in the order of the file.

    By the subject's index. The number that this very file would have given comes first, a few others follow, since the
    file may have been sorted meanwhile.
    """
    given = {subject.id.lower() for subject in job.subjects if subject.id}
    scopes = {i: seed_scope(_subject_text(one), "subject") for i, one in enumerate(job.subjects) if not one.id}
    times = Counter(scopes.values())
    taken, last = given, Counter[str]()
    former = {}
    for index, scope in scopes.items():
        if times[scope] == 1 and scope not in taken:
            taken.add(scope)
            continue
        last[scope] += 1
        while (name := f"{scope}-{last[scope]}" if last[scope] > 1 else scope) in taken:
            last[scope] += 1
        taken.add(name)
        others = (f"{scope}-{number}" for number in range(2, min(times[scope], _FORMER_NUMBERS) + 1))
        former[index] = tuple(dict.fromkeys(one for one in (name, *others) if one != scope))
    return former


def _plan_subject(
    subject: Subject,
    name: str,
    asked: RenderSettings,
    identity: dict[str, Any],
    settings: MethodSettings,
    led: ControlPlanner,
    drawer: Drawer,
    former: Sequence[str] = (),
    scope: str = "",
) -> SubjectPlan:
    """One subject; ``scope`` is what its seeds are derived from instead of its own id or words."""
    takes = drawer.takes(subject)
    seeds = Seeds(asked.seed, takes, scope or subject.id or seed_scope(_subject_text(subject), "subject"))
    anchor_seeds = ((anchor.prompt, seeds.of_anchor(anchor)) for anchor in subject.shown_by)
    given = [(drawer.anchor(subject, written, seed), seed) for written, seed in anchor_seeds]
    anchored = [(subject.caption(prompt), seed) for prompt, seed in given]
    pictures = tuple(map(planned_picture, subject.pictures))
    own_settings, stored_with = settings, None
    controls = [led(anchor.control) for anchor in subject.shown_by]
    of_anchors = [own_words(anchor) for anchor in subject.shown_by]
    words = [whole(own, subject.caption) for own in of_anchors]
    if not subject.sources:
        shown: dict[str, Any] = {"pictures": [picture.identity for picture in pictures]} if pictures else {}
        if any(controls):
            shown["controls"] = [identity_of(control) for control in controls]
        if any(map(told, words)):
            shown["words"] = [one.to_dict() for one in words]
        key = digest({**identity, "concepts": subject.concept, "anchors": anchored, **shown})
    else:
        anchored = []
        digests = [stored.sha256 for stored in subject.sources]
        made = MethodSettings.from_dict(subject.sources[0].settings)
        own_settings = asked.for_scenes_of(made)
        stored_with = made if made != own_settings else None
        content = digests if len(digests) > 1 else digests[0]
        key = digest({**identity, "settings": own_settings.to_dict(), "cache": content})
    anchors = tuple(
        Asset(
            digest(["anchor", key, i, text, seed]),
            "anchor",
            name,
            f"anchor-{i}",
            text,
            seed,
            f"anchors/{name}/anchor-{i}.png",
            controls[i],
            words[i],
        )
        for i, (text, seed) in enumerate(anchored)
    )
    scenes = tuple(_plan_scenes(subject, name, key, seeds, led, drawer, takes))
    return SubjectPlan(
        subject_id=name,
        subject_key=key,
        concepts=subject.concept,
        anchors=anchors,
        scenes=scenes,
        settings=own_settings,
        cache_path=f"anchors/{name}/{key[:16]}.safetensors",
        style=subject.style,
        text=subject.subject,
        anchor_prompts=tuple(given),
        anchor_words=tuple(of_anchors) if any(map(told, of_anchors)) else (),
        sources=tuple(CacheSource(stored.url, stored.sha256, stored.bytes) for stored in subject.sources),
        details=subject.details,
        pictures=pictures,
        impossible=impossible(anchors, scenes, subject.concept, own_settings.prompt_syntax)
        if subject.on_missing_concept == "skip"
        else (),
        former=tuple(_plan_subject(subject, name, asked, identity, settings, led, drawer, (), one) for one in former),
        stored_with=stored_with,
    )


def _plan_scenes(
    subject: Subject, name: str, key: str, seeds: Seeds, led: ControlPlanner, drawer: Drawer, takes: Sequence[Take]
) -> Iterator[Asset]:
    numbers: Iterator[Sequence[int]] = map(seeds.of_scene, takes)
    words: list[list[str] | None] = [None] * len(takes)
    if any(take.is_drawn for take in takes):
        known = list(numbers)
        numbers, words = iter(known), list(map(drawer.words, takes, known))
    for take, ids, its_seeds, drawn in zip(takes, scene_names(takes, words), numbers, words, strict=True):
        others = whole(own_words(take.scene), subject.prompt)
        texts = [subject.prompt(take.prompt)] if drawn is None else [subject.prompt(text) for text in drawn]
        for scene_id, number, controls in in_poses(ids, take.control, subject.poses):
            seed, control, text = its_seeds[number], led(controls), texts[0 if drawn is None else number]
            asset_id, path = scene_asset_id(key, text, seed, control, others), f"images/{name}/{scene_id}.png"
            yield Asset(asset_id, "scene", name, scene_id, text, seed, path, control, others)


def scene_asset_id(
    subject_key: str, prompt: str, seed: int, control: Sequence[PlannedControl] = (), words: Words = NO_WORDS
) -> str:
    """The id of a scene of the subject with that key."""
    return digest(["scene", subject_key, prompt, seed, *identity_of(control), *told(words)])
