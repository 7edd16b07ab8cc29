"""What is planned, as values: pictures, subjects, all of a job; :mod:`consistory_ray.plan.plan` makes them.

Pure: no torch, no ray, no reading of the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

from consistory_ray.jobs.quality import Quality
from consistory_ray.plan.controls import PlannedControl
from consistory_ray.plan.inputs import PlannedFile, PlannedPicture
from consistory_ray.plan.loaded import ALONE, Loaded
from consistory_ray.plan.words import NO_WORDS, Words
from consistory_ray.settings import MethodSettings


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
        takes: further takes of its scenes that are made in any case, scene by scene.
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
    takes: tuple[Asset, ...] = ()

    @property
    def renders(self) -> tuple[Asset, ...]:
        """All that is made of its anchor cache: its scenes, then their further takes."""
        return (*self.scenes, *self.takes) if self.takes else self.scenes

    @property
    def cache_settings(self) -> MethodSettings:
        """The settings of its anchor cache: its own, unless it was stored with others."""
        return self.stored_with or self.settings

    def assets(self) -> Iterator[Asset]:
        """Its pictures, anchors first."""
        yield from self.anchors
        yield from self.renders


@dataclass(frozen=True, slots=True)
class Decided:
    """What people have decided about the pictures of a plan.

    Attributes:
        pictures: ids of the scenes of which a take was picked, rejected or asked for: they are no gate's business.
        rejected: ids of the takes that nobody wants, which are not made again.
        rerolls: ids of the takes that were asked for.
    """

    pictures: frozenset[str] = frozenset()
    rejected: frozenset[str] = frozenset()
    rerolls: frozenset[str] = frozenset()


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
        decided: what people have decided; see :func:`~consistory_ray.plan.takes.as_decided`.
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
    decided: Decided = Decided()

    @property
    def anchor_count(self) -> int:
        """Number of anchor pictures."""
        return sum(len(subject.anchors) for subject in self.subjects)

    @property
    def scene_count(self) -> int:
        """Number of scene pictures."""
        return sum(len(subject.scenes) for subject in self.subjects)

    @property
    def take_count(self) -> int:
        """Number of their further takes that are made in any case."""
        return sum(len(subject.takes) for subject in self.subjects)

    @property
    def profile(self) -> str | None:
        """The profile that all scenes are rendered with; None where they differ, or have settings of their own."""
        found = {settings.profile for settings in {subject.settings for subject in self.subjects}}
        return found.pop() if len(found) == 1 else None

    def assets(self) -> Iterator[Asset]:
        """All pictures, subject by subject, anchors first; without takes that a gate may still ask for."""
        for subject in self.subjects:
            yield from subject.assets()

    def inputs(self) -> Iterator[PlannedFile]:
        """Every file that is given, once."""
        given = (file for subject in self.subjects for picture in subject.pictures for file in picture.files)
        hints = (control.file for asset in self.assets() for control in asset.control)
        yield from {file.path: file for file in chain(given, hints)}.values()
