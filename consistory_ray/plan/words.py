"""What pictures are told besides their prompts: other words for the second text encoder, and what not to show."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from consistory_ray.jobs.subject import Anchor, GivenPicture, Scene

canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode
"""JSON as it enters ids."""
_KEY_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Words:
    """What a picture is told besides its prompt.

    Attributes:
        prompt_2: what the second text encoder reads instead, the whole of it; None where it reads the prompt.
        negative_prompt: in place of that of the settings, or None.
    """

    prompt_2: str | None = None
    negative_prompt: str | None = None

    def to_dict(self) -> dict[str, str]:
        """JSON-ready fields, those that are given; they enter ids."""
        given = {"prompt_2": self.prompt_2, "negative_prompt": self.negative_prompt}
        return {name: text for name, text in given.items() if text is not None}


NO_WORDS = Words()


def own_words(entry: Anchor | GivenPicture | Scene) -> Words:
    """What a picture is told besides its prompt, as it stands in the job."""
    if isinstance(entry, GivenPicture) or (entry.prompt_2 is None and entry.negative_prompt is None):
        return NO_WORDS
    return Words(entry.prompt_2, entry.negative_prompt)


def whole(words: Words, head: Callable[[str], str]) -> Words:
    """The same with what comes before every prompt of its kind."""
    return words if words.prompt_2 is None else replace(words, prompt_2=head(words.prompt_2))


def told(words: Words) -> list[dict[str, str]]:
    """Words as they enter ids: nothing where there are none, so that what had none keeps its id."""
    return [] if words is NO_WORDS or not (found := words.to_dict()) else [found]


def scene_words(scene: Scene, prompt: str | None = None) -> str:
    """All that tells a scene from others of its subject.

    Args:
        scene: as it was written.
        prompt: in place of its own.
    """
    text = scene.prompt if prompt is None else prompt
    if scene.prompt_2 is None and scene.negative_prompt is None:
        return text
    others = told(own_words(scene))
    return canonical([text, *others]) if others else text


def digest(value: Any) -> str:
    """SHA-256 over canonical JSON, shortened to 32 hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:_KEY_DIGITS]
