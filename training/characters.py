"""Individuals of whom somebody has pictures, drawn: what they look like is known, and scenes ask for them elsewhere."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.miniature.vocabulary import KINDS, SCENES, NamedAttributes, caption, describe
from training.individuals import Identity, random_identity, random_placement
from training.world import Drawing, PictureSpec, draw

STYLE = "a drawing of"


@dataclass(frozen=True)
class Character:
    """One individual with given pictures of it, and the scenes that it is wanted in.

    Attributes:
        who: how it looks.
        stranger: how another individual of its kind looks.
        places: where the given pictures show it.
        scenes: where it is wanted, other places.
        name: of all of its random draws.
    """

    who: Identity
    stranger: Identity
    places: tuple[str, ...]
    scenes: tuple[str, ...]
    name: str

    def _drawn(self, individual: Identity, place: str) -> Drawing:
        rng = random.Random(f"{self.name}/{place}")
        return draw(PictureSpec((individual,), (random_placement(rng),), place, rng.randrange(2**31)))

    @cached_property
    def drawings(self) -> list[Drawing]:
        """The given pictures, with the true masks."""
        return [self._drawn(self.who, place) for place in self.places]

    @property
    def pictures(self) -> list[Image.Image]:
        """The given pictures."""
        return [drawing.image for drawing in self.drawings]

    @property
    def masks(self) -> list[np.ndarray]:
        """Where it is in them, bool ``[H, W]``."""
        return [drawing.masks[0] > 0.5 for drawing in self.drawings]

    @cached_property
    def pictures_of_stranger(self) -> list[Image.Image]:
        """The same for the other individual, which stands as the first one does."""
        return [self._drawn(self.stranger, place).image for place in self.places]

    @property
    def truth(self) -> dict[str, str]:
        """What the judge should read of it, by attribute; no colour of an accessory that it does not wear."""
        who = self.who
        found = {"body": who.body, "second": who.second, "pattern": who.pattern, "accessory": who.accessory}
        if who.accessory != "none":
            found["accessory_colour"] = who.accessory_colour
        return found | {"variant": f"{who.kind}-{who.variant}"}

    @property
    def subject(self) -> SubjectPrompts:
        """Captions of the given pictures and prompts of the scenes; they name its kind and the place, nothing else."""
        return self._prompts(tuple(self._caption(place) for place in self.scenes))

    def naming(self, *attributes: str) -> SubjectPrompts:
        """The same with scenes that name some of its look.

        Args:
            attributes: of ``body``, ``pattern``, ``accessory`` and ``accessory_colour``. There are no words for its
                second colour and its build.
        """
        return self.worded(self.called(*attributes))

    def worded(self, words: str) -> SubjectPrompts:
        """The same with scenes that call it what one likes."""
        return self._prompts(tuple(f"{STYLE} {words} {place}" for place in self.scenes))

    def called(self, *attributes: str) -> str:
        """It in words that name these of its attributes: "a spotted ghost with a purple hat"; plain is no pattern."""
        who = self.who
        wears = "accessory" in attributes and who.accessory != "none"
        named = NamedAttributes(
            body=who.body if "body" in attributes else None,
            pattern=who.pattern if "pattern" in attributes and who.pattern != "plain" else None,
            accessory=who.accessory if wears else None,
        )
        words = describe(who.kind, named)
        if wears and "accessory_colour" in attributes:
            words = words.replace(who.accessory, f"{who.accessory_colour} {who.accessory}")
        return words

    def _caption(self, place: str) -> str:
        return caption(STYLE, [self.who.kind], [NamedAttributes()], place)

    def _prompts(self, prompts: tuple[str, ...]) -> SubjectPrompts:
        def seeds(places: tuple[str, ...]) -> tuple[int, ...]:
            return tuple(random.Random(f"{self.name}/seed/{place}").randrange(2**32) for place in places)

        captions = tuple(self._caption(place) for place in self.places)
        return SubjectPrompts(self.who.kind, captions, seeds(self.places), prompts, seeds(self.scenes), self.scenes)


def draw_characters(count: int, pictures: int = 2, scenes: int = 6, purpose: str = "reported") -> list[Character]:
    """Individuals of all kinds in turn.

    Args:
        count: how many; the first n of a longer list are the shorter list.
        pictures: given of each, in different places; the first n of more are the fewer.
        scenes: of each, in other places; the first n of more are the fewer.
        purpose: each has individuals of its own: those that results are reported of are not those that settings are
            chosen with.
    """
    found = []
    for index in range(count):
        name = f"characters/{purpose}/{index}"
        rng = random.Random(name)
        kind = KINDS[index % len(KINDS)]
        who = stranger = random_identity(rng, kind)
        while stranger == who:
            stranger = random_identity(rng, kind)
        places = tuple(rng.sample(SCENES, len(SCENES)))
        found.append(Character(who, stranger, places[::-1][:pictures], places[:scenes], name))
    return found
