"""The miniature's world in words: what its prompts can name, what the judge can tell apart, how a prompt is put.

A picture of this world shows one or two cartoon subjects in a scene. A prompt names their kinds and the scene, and of
what makes a subject an individual only what it must: "a drawing of a dragon in the forest" leaves the look open, as
prompts do in real life.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

PICTURE_SIZE = 128
"""Side of the world's pictures in pixels."""

KINDS = ("dragon", "cat", "rabbit", "robot", "ghost", "penguin", "octopus", "snail")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 62, 58),
    "orange": (244, 144, 46),
    "yellow": (250, 212, 66),
    "green": (96, 180, 76),
    "teal": (50, 176, 166),
    "blue": (70, 122, 224),
    "purple": (144, 92, 204),
    "pink": (246, 142, 178),
    "brown": (150, 98, 62),
    "white": (244, 242, 236),
    "gray": (142, 148, 160),
}
"""Each colour's sRGB value."""
PATTERNS = ("plain", "spotted", "striped")
ACCESSORIES = ("none", "hat", "scarf", "crown", "bow", "glasses")
ACCESSORY_COLOURS = ("red", "yellow", "blue", "purple", "teal")
SCENES = (
    "in the forest",
    "on the beach",
    "in space",
    "in the city at night",
    "in the desert",
    "in the snow",
    "in the meadow",
    "under the sea",
    "by the volcano",
    "in the kitchen",
    "at sunset",
    "in the rain",
)
STYLES = ("a drawing of", "a cartoon of", "a picture of")


@dataclass(frozen=True)
class NamedAttributes:
    """The attributes of one subject that its caption mentions."""

    body: str | None = None
    pattern: str | None = None
    accessory: str | None = None


def describe(kind: str, named: NamedAttributes) -> str:
    """A subject in words, such as "a red striped dragon with a hat"."""
    accessory = {None: "", "glasses": "with glasses"}.get(named.accessory, f"with a {named.accessory}")
    words = " ".join(filter(None, (named.body, named.pattern, kind, accessory)))
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(style: str, kinds: Iterable[str], mentions: Iterable[NamedAttributes], scene: str) -> str:
    """A whole prompt: style, subjects joined by "and", scene."""
    subjects = " and ".join(describe(kind, named) for kind, named in zip(kinds, mentions, strict=True))
    return " ".join(filter(None, (style, subjects, scene)))


def words() -> list[str]:
    """Every word a caption can contain, in a fixed order."""
    phrases = [*STYLES, *KINDS, *SCENES, *COLOURS, *PATTERNS, *ACCESSORIES, "with a an and"]
    return list(dict.fromkeys(word for phrase in phrases for word in phrase.split()))
