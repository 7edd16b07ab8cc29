"""The words of dynamic prompts: which of them each picture of a plan has.

What is drawn is decided by content alone: for a scene or an anchor by its seed and its prompt as it was written, for a
subject's own words by the job's seed, the subject's id or text and these words. So neither neighbours nor an order
change any picture, and equal words with equal seeds give equal words. Pure: no torch.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from consistory_ray.concepts.compel_syntax import plain_text
from consistory_ray.errors import JobError, Problem
from consistory_ray.guards.problems import path, shown
from consistory_ray.jobs.checks import Prompted, lacking_in_anchor, lacks_all, must_contain
from consistory_ray.jobs.dynamic_checks import LOOKS, is_dynamic
from consistory_ray.jobs.ids import Wanted, distinct_names, numbered, seed_scope, slug
from consistory_ray.jobs.template_draws import Lists
from consistory_ray.jobs.templates import Template, parse
from consistory_ray.plan.words import canonical, scene_words

if TYPE_CHECKING:
    from consistory_ray.jobs.controls import Control
    from consistory_ray.jobs.job import RenderJob
    from consistory_ray.jobs.subject import Scene, Subject
    from consistory_ray.settings import MethodSettings

_TOLD = 20
_EXAMPLES = 3


class DrawnAsset(Prompted, Protocol):
    """A picture to make; :class:`~consistory_ray.plan.plan.Asset` is one."""

    @property
    def scene_id(self) -> str: ...


class PlannedSubject(Protocol):
    """What was planned of a subject; :class:`~consistory_ray.plan.plan.SubjectPlan` is one."""

    @property
    def subject_id(self) -> str: ...
    @property
    def anchor_prompts(self) -> Sequence[tuple[str, int]]: ...
    @property
    def scenes(self) -> Sequence[DrawnAsset]: ...
    @property
    def settings(self) -> MethodSettings: ...


@dataclass(frozen=True, slots=True)
class Take:
    """A scene as it is planned: as it was written, or one of the texts that a prompt can become.

    Attributes:
        scene: as it was written.
        place: of the scene in its subject.
        prompt: what its seeds are derived from, and its text unless words are drawn.
        id: of its pictures, before they are numbered.
        is_drawn: whether each of its pictures draws words of its own.
    """

    scene: Scene
    place: int
    prompt: str
    id: str | None
    is_drawn: bool = False

    @property
    def seed(self) -> int | None:
        """Of the first picture, where it was written."""
        return self.scene.seed

    @property
    def count(self) -> int:
        """How many pictures."""
        return self.scene.count

    @property
    def control(self) -> tuple[Control, ...]:
        """What leads its layout."""
        return self.scene.control


@dataclass(frozen=True, slots=True)
class DrawnPrompt:
    """What a dynamic prompt of a scene becomes.

    Attributes:
        subject: the subject's id.
        written: the scene's prompt as it was written.
        variants: how many ways there are to draw from it, at most
            :data:`~consistory_ray.jobs.template_draws.UNCOUNTED`.
        pictures: how many are made of it.
        examples: whole prompts of the first of them.
    """

    subject: str
    written: str
    variants: int
    pictures: int
    examples: tuple[str, ...]


class Drawer:
    """Draws the words of a job.

    Args:
        job: as it was written.

    Attributes:
        job: with the subjects' own words drawn; the job itself where nothing is dynamic.
    """

    def __init__(self, job: RenderJob) -> None:
        self._lists = Lists(job.wildcards)
        self._parsed: dict[str, Template] = {}
        self.job = job
        self._dynamic = [is_dynamic(job, subject) for subject in job.subjects]
        if any(self._dynamic):
            subjects = zip(job.subjects, self._dynamic, strict=True)
            drawn = tuple(self._looks(job.settings.seed, one) if dynamic else one for one, dynamic in subjects)
            self.job = job.model_copy(update={"subjects": drawn})

    def is_dynamic(self, subject: Subject) -> bool:
        """Whether a subject's prompts are drawn."""
        return is_dynamic(self.job, subject)

    def text(self, written: str, *key: Any) -> str:
        """What a prompt becomes; the same for the same key."""
        digest = hashlib.sha256(canonical(["draw", written, *key]).encode()).digest()
        return self._lists.draw(self._template(written), Random(int.from_bytes(digest, "big")))

    def anchor(self, subject: Subject, written: str, seed: int) -> str:
        """The words of an anchor or a given picture; those of a stored subject were drawn when it was made."""
        return self.text(written, seed) if self.is_dynamic(subject) and not subject.sources else written

    def takes(self, subject: Subject) -> list[Take]:
        """A subject's scenes, those with ``expand: all`` as a scene for every text."""
        dynamic = self.is_dynamic(subject)
        found: list[Take] = []
        for place, scene in enumerate(subject.scenes):
            if dynamic and scene.expand == "all":
                texts = self._lists.every(self._template(scene.prompt))
                ids: Sequence[str | None] = numbered(scene.id, len(texts)) if scene.id else [None] * len(texts)
                found += [Take(scene, place, text, name) for text, name in zip(texts, ids, strict=True)]
            else:
                found.append(Take(scene, place, scene.prompt, scene.id, dynamic and self._has_choice(scene.prompt)))
        return found

    def words(self, take: Take, seeds: Sequence[int]) -> list[str] | None:
        """The words of each picture of a scene; None where all have those that were written."""
        return [self.text(take.prompt, seed) for seed in seeds] if take.is_drawn else None

    def check(self, subjects: Iterable[PlannedSubject]) -> None:
        """Makes sure that what was drawn can be rendered.

        Args:
            subjects: what was planned of the job's, in their order.

        Raises:
            JobError: words that were drawn lack a concept, or two pictures are the same or have the same name.
        """
        found = (
            problem
            for number, (subject, planned) in enumerate(zip(self.job.subjects, subjects, strict=True))
            if self.is_dynamic(subject)
            for problem in self._problems(number, subject, planned)
        )
        if problems := list(islice(found, _TOLD)):
            raise JobError("the job cannot be planned: some prompts that were drawn cannot be rendered", problems)

    def drawn(self, plan: Iterable[PlannedSubject]) -> Iterator[DrawnPrompt]:
        """What becomes of every dynamic prompt of a scene.

        Args:
            plan: what was planned of the job's subjects, in their order.
        """
        for subject, planned in zip(self.job.subjects, plan, strict=True):
            if not self.is_dynamic(subject):
                continue
            counts = Counter[int]()
            poses = max(1, len(subject.poses))
            for take in self.takes(subject):
                counts[take.place] += take.count * poses
            prompts = iter(planned.scenes)
            for place, pictures in sorted(counts.items()):
                written = subject.scenes[place].prompt
                texts = dict.fromkeys(asset.prompt for asset in islice(prompts, pictures))
                if self._has_choice(written):
                    variants = self._lists.variants(self._template(written))
                    examples = tuple(islice(texts, _EXAMPLES))
                    yield DrawnPrompt(planned.subject_id, written, variants, pictures, examples)

    def _looks(self, seed: int, subject: Subject) -> Subject:
        """A subject with its own words drawn."""
        scope = subject.id or seed_scope(subject.subject or "-".join(subject.concept), "subject")
        written = {name: getattr(subject, name) for name in LOOKS}
        return subject.model_copy(
            update={name: self.text(text, seed, scope, name) for name, text in written.items() if text}
        )

    def _template(self, written: str) -> Template:
        if written not in self._parsed:
            self._parsed[written] = parse(written)
        return self._parsed[written]

    def _has_choice(self, written: str) -> bool:
        """Whether a prompt is more than its own words."""
        return self._template(written) not in ((), (written,))

    def _problems(self, number: int, subject: Subject, planned: PlannedSubject) -> Iterator[Problem]:
        if subject.on_missing_concept != "skip":
            yield from _without_concepts(number, subject, planned, self.takes(subject))
        ids: dict[str, int] = {}
        names: dict[str, int] = {}
        for place, asset in _placed(planned, self.takes(subject), subject):
            if (other := ids.setdefault(asset.asset_id, place)) != place:
                where = path(("subjects", number, "scenes", place, "seed"))
                fix = f"choose another seed, scenes[{other}] draws the same words with the same seed"
                yield Problem(where, shown(asset.prompt), fix)
            if (other := names.setdefault(asset.scene_id.lower(), place)) != place:
                where = path(("subjects", number, "scenes", place, "id"))
                yield Problem(where, asset.scene_id, f"choose another id, scenes[{other}] makes a picture of this name")


def _placed(planned: PlannedSubject, takes: list[Take], subject: Subject) -> Iterator[tuple[int, DrawnAsset]]:
    """A subject's planned scenes, each with the place of the scene that it is made of."""
    poses = max(1, len(subject.poses))
    places = (take.place for take in takes for _ in range(take.count * poses))
    return zip(places, planned.scenes, strict=True)


def _without_concepts(number: int, subject: Subject, planned: PlannedSubject, takes: list[Take]) -> Iterator[Problem]:
    """Words that lack concepts: anchors show all of them, a scene one at least."""
    name, syntax = "pictures" if subject.pictures else "anchors", planned.settings.prompt_syntax
    for index, (text, _) in enumerate(() if subject.sources else planned.anchor_prompts):
        absent = lacking_in_anchor(plain_text(subject.caption(text), syntax), subject.concept)
        if absent and (text or name == "anchors"):
            who = "an anchor" if name == "anchors" else "a picture"
            where = path(("subjects", number, name, index, "prompt"))
            yield Problem(where, shown(text), must_contain(who, absent, " and "))
    for place, asset in _placed(planned, takes, subject):
        if lacks_all(plain_text(asset.prompt, syntax), subject.concept):
            where = path(("subjects", number, "scenes", place, "prompt"))
            yield Problem(where, shown(asset.prompt), must_contain("a scene", subject.concept, " or "))


def scene_names(takes: Sequence[Take], words: Sequence[Sequence[str] | None]) -> list[list[str]]:
    """The names of each scene's pictures: ids that were given, the others made of each one's own words.

    Args:
        takes: a subject's scenes.
        words: what was drawn for each, see :meth:`Drawer.words`.
    """
    given = [numbered(take.id, take.count) if take.id else None for take in takes]
    wanted: list[Wanted] = []
    for take, texts in zip(takes, words, strict=True):
        if take.id:
            continue
        own = scene_words(take.scene, take.prompt)
        if texts is not None:
            marks = [f"-{number}" for number in range(take.count)] if take.count > 1 else [""]
            wanted += [
                Wanted(f"{_scene_slug(text)}{mark}", f"{own}{mark}") for text, mark in zip(texts, marks, strict=True)
            ]
        else:
            wanted.append(Wanted(_scene_slug(take.prompt), own, take.count))
    names = iter(distinct_names(wanted, [name for names in given if names for name in names]))
    return [
        ids
        if ids is not None
        else [name for _ in range(take.count) for name in next(names)]
        if take.is_drawn
        else next(names)
        for ids, take in zip(given, takes, strict=True)
    ]


def _scene_slug(prompt: str) -> str:
    wanted = slug(prompt, "scene")
    return f"scene-{wanted}" if wanted.startswith("anchor") else wanted
