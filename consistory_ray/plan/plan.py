"""From a job to a plan: every picture with its prompt, its seed, its place and an id that is a hash of its content.

Nothing that decides a picture depends on the order of a file or on what else is in it: the same scene of the same
subject has the same id, seed and picture alone, among a million, or after a resume. Derived *names* get a short hash
where others would have the same one. Pure: no torch, no ray, no reading of the output (of a local model only the ends
of its files).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

from consistory_ray.errors import JobError, Problem
from consistory_ray.jobs.checks import impossible
from consistory_ray.jobs.ids import Wanted, distinct_names, seed_scope, slug
from consistory_ray.jobs.job import RenderJob, Subject
from consistory_ray.jobs.quality import Quality
from consistory_ray.jobs.render_settings import RenderSettings
from consistory_ray.plan.controls import ControlPlanner, PlannedControl, in_poses
from consistory_ray.plan.controls import identity as identity_of
from consistory_ray.plan.drawing import Drawer, Take, scene_names
from consistory_ray.plan.inputs import PlannedFile, PlannedPicture, planned_picture
from consistory_ray.plan.loaded import ALONE, Loaded, planned_loading
from consistory_ray.plan.sampling import refuse_sampling
from consistory_ray.plan.seeds import Seeds
from consistory_ray.plan.stored_settings import refuse_other_settings
from consistory_ray.plan.text_encoders import refuse_unreadable
from consistory_ray.plan.words import NO_WORDS, Words, canonical, digest, own_words, told, whole
from consistory_ray.settings import MethodSettings, configuration_revision, model_revision

PLAN_FORMAT = 1

_FORMER_NUMBERS = 8


@dataclass(frozen=True, slots=True)
class Asset:
    """One picture to make.

    Attributes:
        asset_id: 32 hexadecimal digits, a hash of everything that decides the picture.
        kind: anchors define a subject, scenes follow it.
        subject_id, scene_id: names, unique in the job and in the subject; an anchor's scene_id is ``anchor-0``, ….
        prompt: the whole prompt.
        seed: of the initial latents.
        path: of the PNG file, relative to the output URL.
        control: what leads its layout.
        words: what it is told besides its prompt.
        take: which of the pictures of one scene, from 1; see :mod:`consistory_ray.plan.takes`.
        take_of: of a further take the asset_id of the first one; empty for that one.
    """

    asset_id: str
    kind: Literal["anchor", "scene"]
    subject_id: str
    scene_id: str
    prompt: str
    seed: int
    path: str
    control: tuple[PlannedControl, ...] = ()
    words: Words = NO_WORDS
    take: int = 1
    take_of: str = ""

    @property
    def picture_id(self) -> str:
        """Of the first take: what all takes of one scene have in common."""
        return self.take_of or self.asset_id


@dataclass(frozen=True, slots=True)
class CacheSource:
    """An anchor cache that another run has stored: where, its SHA-256, its size in bytes."""

    url: str
    sha256: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class SubjectPlan:
    """One subject: its anchors are made once and cached, its scenes are rendered from that cache.

    Attributes:
        subject_key: 32 hexadecimal digits, a hash of everything that decides the anchor cache.
        cache_path: of the anchor cache, relative to the output URL.
        style, text, anchor_prompts: the words that the subject is made of, for whoever takes it up again: first and
            second part of its prompts, and the third part and the seed of each anchor.
        anchor_words: the same of what anchors are told besides: as their third part; empty where there is none.
        sources: the anchor caches of a stored subject, which has no anchors to make, or of several that meet, which are
            joined in this order; none for all others.
        details: what is to be seen of it in scenes, for whoever takes it up again.
        pictures: the pictures that are given instead of its anchors, one for each; empty where they are made.
        settings: what its scenes are rendered with, and its anchors, where they are made.
        stored_with: of a stored subject the settings that its cache was made with, where those are others.
        loaded: what is loaded with the model, the same for all subjects of a plan.
        impossible: ids of pictures that cannot be made, which the job accepts, each with the reason.
        former: the same subject with the seeds that an earlier version may have given it because of its neighbours, for
            outputs that were begun with it; see :func:`as_begun`.
    """

    subject_id: str
    subject_key: str
    concepts: tuple[str, ...]
    anchors: tuple[Asset, ...]
    scenes: tuple[Asset, ...]
    settings: MethodSettings
    cache_path: str
    style: str = ""
    text: str = ""
    anchor_prompts: tuple[tuple[str, int], ...] = ()
    anchor_words: tuple[Words, ...] = ()
    sources: tuple[CacheSource, ...] = ()
    details: str = ""
    pictures: tuple[PlannedPicture, ...] = ()
    impossible: tuple[tuple[str, str], ...] = ()
    former: tuple[SubjectPlan, ...] = field(default=(), compare=False, repr=False)
    stored_with: MethodSettings | None = None
    loaded: Loaded = ALONE

    @property
    def cache_settings(self) -> MethodSettings:
        """The settings of its anchor cache: its own, unless it was stored with others."""
        return self.stored_with or self.settings

    def assets(self) -> Iterator[Asset]:
        """Its pictures, anchors first."""
        yield from self.anchors
        yield from self.scenes


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a run has to make.

    Attributes:
        controlnets: the networks that hints are for, as the job names them.
        guess_mode: see :class:`~consistory_ray.jobs.job.RenderJob`.
        png_level: of the pictures' files; it changes none of their pixels, and is no part of any id.
        loaded: what is loaded with the model.
        checks: names of functions that look at every picture before it is kept; they are no part of any id.
        quality: what is demanded of scenes; None looks at none.
    """

    name: str
    model: str
    subjects: tuple[SubjectPlan, ...]
    batch_size: int | Literal["auto"]
    torch_dtype: str
    config: str | None = None
    controlnets: tuple[str, ...] = ()
    guess_mode: bool = False
    png_level: int = 1
    loaded: Loaded = ALONE
    checks: tuple[str, ...] = ()
    quality: Quality | None = None

    @property
    def anchor_count(self) -> int:
        """Number of anchor pictures."""
        return sum(len(subject.anchors) for subject in self.subjects)

    @property
    def scene_count(self) -> int:
        """Number of scene pictures."""
        return sum(len(subject.scenes) for subject in self.subjects)

    @property
    def profile(self) -> str | None:
        """The profile that all scenes are rendered with; None where they differ, or have settings of their own."""
        found = {settings.profile for settings in {subject.settings for subject in self.subjects}}
        return found.pop() if len(found) == 1 else None

    def assets(self) -> Iterator[Asset]:
        """All pictures, subject by subject, anchors first; of scenes that may have several takes the first ones."""
        for subject in self.subjects:
            yield from subject.assets()

    def inputs(self) -> Iterator[PlannedFile]:
        """Every file that is given, once."""
        given = (file for subject in self.subjects for picture in subject.pictures for file in picture.files)
        hints = (control.file for asset in self.assets() for control in asset.control)
        yield from {file.path: file for file in chain(given, hints)}.values()


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
