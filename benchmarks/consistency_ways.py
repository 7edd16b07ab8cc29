"""What benchmarks/consistency.py compares: vanilla, the method at several strengths, and baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import drawn_subjects
from benchmarks.casting import candidate, cast
from consistory_ray.evaluation.baselines import colours_transferred, naming_colours, naming_details, one_seed
from consistory_ray.evaluation.evidence import Judged, Way, judged, way_of
from consistory_ray.evaluation.hard_attributes import Look, look
from consistory_ray.evaluation.picture_quality import blurred
from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.evaluation.rendering import Rendered, Renderer, stacked
from consistory_ray.miniature.judge import Judge
from consistory_ray.quality.metrics import Metric

VANILLA = "vanilla"
ONE_SEED, NAMED_COLOURS, NAMED_DETAILS, COLOUR_TRANSFER = (
    "one_seed",
    "named_colours",
    "named_details",
    "colour_transfer",
)
DETAILS = "_details"
"""What the name of a strength ends with where the prompts name details."""
CAST = "_cast"
"""What the name of a strength ends with where the anchors' seeds were chosen among several; after the details."""
BLURRED, SAME_INDIVIDUAL, STRANGERS = "vanilla_blurred", "same_individual", "strangers"
LABELS = {
    VANILLA: "vanilla",
    ONE_SEED: "vanilla, one seed for all scenes",
    NAMED_COLOURS: "vanilla, two colours named",
    NAMED_DETAILS: "vanilla, details named",
    COLOUR_TRANSFER: "vanilla, colours of the first scene painted over",
    BLURRED: "vanilla, blurred",
    SAME_INDIVIDUAL: "the same individual, drawn",
    STRANGERS: "other individuals, drawn",
}
"""What tables and plots call the ways that are no strength of the method."""
BLOCK = 8
"""Subjects that are rendered in all ways before the next ones: one of each kind."""


def label(way: str) -> str:
    """What tables and plots call a way."""
    worded = way.removesuffix(CAST)
    strength = worded.removesuffix(DETAILS)
    told = [", details named" if strength != worded else "", ", cast" if worded != way else ""]
    return LABELS.get(way, f"ConsiStory, {strength}{''.join(told)}")


@dataclass
class Ways:
    """Renders, keeps and judges; every picture once.

    Attributes:
        renderers: by strength; the first one renders what is without the method.
        baselines: whether these are rendered, too.
        details: whether the first strength and vanilla are also rendered from prompts that name details.
        judge: who reads the pictures.
        subjects: by number.
        vae: the model's autoencoder, through which drawings go.
        candidates: among how many the first strength is also cast; 1 is not at all.
        caster: who casts.
    """

    renderers: Mapping[str, Renderer]
    baselines: bool
    details: bool
    judge: Judge
    subjects: Sequence[SubjectPrompts]
    vae: Any
    candidates: int = 1
    caster: Metric | None = None

    def __post_init__(self) -> None:
        self.first, self.plain = next(iter(self.renderers.items()))
        self.pictures: dict[str, dict[int, np.ndarray]] = {}
        self.found: dict[str, dict[int, Judged]] = {}
        self.drawings: dict[int, np.ndarray] = {}
        self.agreements: dict[str, dict[int, tuple[float, ...]]] = {}

    def render(self, numbers: Sequence[int]) -> Iterator[int]:
        """Render these subjects in all ways, in blocks; tells after each how many there are."""
        for first in range(0, len(numbers), BLOCK):
            block = numbers[first : first + BLOCK]
            self._vanilla(VANILLA, block, [self.subjects[number] for number in block])
            for strength, renderer in self.renderers.items():
                asked = [self.subjects[number] for number in block]
                self._keep(strength, block, [scenes for _, scenes in renderer.subjects(asked)])
            if self.baselines:
                self._vanilla(ONE_SEED, block, [one_seed(self.subjects[number]) for number in block])
                self._vanilla(NAMED_COLOURS, block, [self.colours_named(number) for number in block])
            if self.details:
                told = [self.details_named(number) for number in block]
                self._vanilla(NAMED_DETAILS, block, told)
                self._keep(self.first + DETAILS, block, [scenes for _, scenes in self.plain.subjects(told)])
                self._cast(self.first + DETAILS + CAST, block, told)
            self._cast(self.first + CAST, block, [self.subjects[number] for number in block])
            yield first + len(block)

    def read(self, numbers: Sequence[int]) -> None:
        """Take up what the store has of these subjects, and render nothing."""
        for number in numbers:
            subject = self.subjects[number]
            self._stored(VANILLA, number, subject)
            for strength, renderer in self.renderers.items():
                self._keep_stored(strength, number, renderer, renderer.subject_keys(subject)[1])
            if self.baselines:
                self._stored(ONE_SEED, number, one_seed(subject))
            if number not in self.pictures.get(VANILLA, {}):
                continue
            if self.baselines:
                self._stored(NAMED_COLOURS, number, self.colours_named(number))
            if self.details:
                told = self.details_named(number)
                self._stored(NAMED_DETAILS, number, told)
                self._keep_stored(self.first + DETAILS, number, self.plain, self.plain.subject_keys(told)[1])
                self._cast_stored(self.first + DETAILS + CAST, number, told)
            self._cast_stored(self.first + CAST, number, subject)

    def first_look(self, number: int) -> Look | None:
        """What the judge reads in a subject's first vanilla scene: whoever wants that individual would name it so."""
        first = self.pictures[VANILLA][number][:1]
        (portrait,) = self.judge.portray(first, [self.judge.read(first)[0].foreground])
        return look(portrait)

    def colours_named(self, number: int) -> SubjectPrompts:
        """A subject whose prompts name two colours."""
        return naming_colours(self.subjects[number], self.first_look(number))

    def details_named(self, number: int) -> SubjectPrompts:
        """A subject whose prompts, the anchors' too, name body colour, pattern and accessory."""
        return naming_details(self.subjects[number], self.first_look(number))

    def summary(self) -> dict[str, Way]:
        """All ways as far as they have been rendered, and those that need no model; empty ones are left out."""
        vanilla = self.pictures.setdefault(VANILLA, {})
        self._derive(BLURRED, vanilla, lambda number: np.stack([blurred(image) for image in vanilla[number]]))
        if self.baselines:
            self._derive(COLOUR_TRANSFER, vanilla, self._transferred)
            for name, drawn in (
                (SAME_INDIVIDUAL, drawn_subjects.same_individual),
                (STRANGERS, drawn_subjects.strangers),
            ):
                self._derive(name, vanilla, lambda number, drawn=drawn: drawn(self.subjects[number], number, self.vae))
        return {name: self.way(name) for name, pictures in self.pictures.items() if pictures}

    def way(self, name: str) -> Way:
        """One way as far as it has been rendered; what is judged stays so."""
        known = self.found.setdefault(name, {})
        for number, images in self.pictures[name].items():
            subject = self.subjects[number]
            if number not in known:
                known[number] = judged(self.judge, number, subject, images)
            if number not in self.drawings:
                self.drawings[number] = self.judge.features(drawn_subjects.drawings_of(subject, number))
        return way_of(known, self.drawings)

    def _transferred(self, number: int) -> np.ndarray:
        images = self.pictures[VANILLA][number]
        return colours_transferred(images, [reading.foreground for reading in self.judge.read(images)])

    def _derive(self, way: str, of: Mapping[int, np.ndarray], made: Callable[[int], np.ndarray]) -> None:
        known = self.pictures.setdefault(way, {})
        known.update({number: made(number) for number in of if number not in known})

    def _vanilla(self, way: str, numbers: Sequence[int], asked: Sequence[SubjectPrompts]) -> None:
        self._keep(way, numbers, self.plain.vanilla_subjects(asked))

    def _cast(self, way: str, numbers: Sequence[int], asked: Sequence[SubjectPrompts]) -> None:
        if self.caster is None:
            return
        chosen = [cast(self.plain, self.caster, subject, self.candidates) for subject in asked]
        self.agreements.setdefault(way, {}).update(
            {number: one.agreements for number, one in zip(numbers, chosen, strict=True)}
        )
        self._keep(way, numbers, [scenes for _, scenes in self.plain.subjects([one.subject for one in chosen])])

    def _cast_stored(self, way: str, number: int, subject: SubjectPrompts) -> None:
        if self.caster is None:
            return
        tried = [candidate(subject, one) for one in range(1, self.candidates + 1)]
        if all(self.plain.store.get_all(self.plain.subject_keys(one)[0]) for one in tried):
            chosen = cast(self.plain, self.caster, subject, self.candidates)
            self.agreements.setdefault(way, {})[number] = chosen.agreements
            self._keep_stored(way, number, self.plain, self.plain.subject_keys(chosen.subject)[1])

    def _stored(self, way: str, number: int, asked: SubjectPrompts) -> None:
        self._keep_stored(way, number, self.plain, self.plain.vanilla_keys(asked.prompts, asked.seeds))

    def _keep_stored(self, way: str, number: int, renderer: Renderer, keys: Sequence[Mapping[str, object]]) -> None:
        pictures = renderer.store.get_all(keys)
        if pictures is not None:
            self._keep(way, [number], [pictures])

    def _keep(self, way: str, numbers: Sequence[int], scenes: Sequence[Sequence[Rendered]]) -> None:
        known = self.pictures.setdefault(way, {})
        known.update({number: stacked(pictures) for number, pictures in zip(numbers, scenes, strict=True)})
