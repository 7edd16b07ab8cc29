"""What somebody wants to have loaded with a model, in frozen values that a plan can hash and a worker can obey."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

from consistory_ray.errors import InputError, Problem

BUNDLED_LORAS = "miniature/"
"""How the names of the LoRAs of the bundled model begin."""

_MOST_WORDS = 200


@dataclass(frozen=True, slots=True)
class LoRA:
    """A low-rank change of a model's weights.

    Attributes:
        path: ``"miniature/distilled-8"`` and other bundled ones (:func:`bundled_loras`), a Hugging Face hub id
            ``owner/name`` or one file there ``owner/name/file.safetensors``, a folder, a ``.safetensors`` file, or a
            URL that fsspec can read.
        weight: how much of it is added; 1 is as it was trained, 0 nothing, below 0 the opposite.
        name: what it is called in messages and in the index; nothing else depends on it.

    Raises:
        InputError: one of them cannot be used.
    """

    path: str
    weight: float = 1.0
    name: str | None = None

    def __post_init__(self) -> None:
        problems = _text_problems("path", self.path, "give a file, a folder, a hub id or a URL")
        if isinstance(self.weight, bool) or not isinstance(self.weight, (int, float)) or not math.isfinite(self.weight):
            problems.append(Problem("weight", repr(self.weight), "must be a finite number; 1 is as it was trained"))
        else:
            object.__setattr__(self, "weight", float(self.weight))
        if self.name is not None:
            problems += _text_problems("name", self.name, f"give 1 to {_MOST_WORDS} characters, or leave it out")
        if problems:
            raise InputError("the LoRA cannot be used", problems)

    @property
    def label(self) -> str:
        """Its name, or the path where it has none."""
        return self.name or self.path


@dataclass(frozen=True, slots=True)
class Embedding:
    """A word that a model was taught (textual inversion): vectors that its text encoders read in the word's place.

    Attributes:
        path: of the file, as for :class:`LoRA`; none is bundled.
        token: the word that stands for it in prompts. Of several vectors the others are called ``token_1`` and so on;
            prompts name the first one alone.

    Raises:
        InputError: one of them cannot be used.
    """

    path: str
    token: str

    def __post_init__(self) -> None:
        problems = _text_problems("path", self.path, "give a file, a folder, a hub id or a URL")
        fix = f"give one word of 1 to {_MOST_WORDS} characters without blanks, such as <moss-dragon>"
        if problem := _text_problems("token", self.token, fix):
            problems += problem
        elif len(self.token) > _MOST_WORDS or any(letter.isspace() for letter in self.token):
            problems.append(Problem("token", repr(self.token)[:100], fix))
        if problems:
            raise InputError("the embedding cannot be used", problems)


def is_bundled_lora(path: str) -> bool:
    """Whether a path names a LoRA of the bundled model, there or not."""
    return path.startswith(BUNDLED_LORAS)


def bundled_loras() -> list[str]:
    """The names of the LoRAs that come with the package."""
    folder = resources.files("consistory_ray").joinpath("miniature", "loras")
    if not folder.is_dir():
        return []
    found = (entry.name for entry in folder.iterdir() if entry.name.endswith(".safetensors"))
    return sorted(f"{BUNDLED_LORAS}{name.removesuffix('.safetensors')}" for name in found)


def _text_problems(field: str, value: Any, fix: str) -> list[Problem]:
    most = _MOST_WORDS if field == "name" else 4096
    good = isinstance(value, str) and value.strip() and "\0" not in value and len(value) <= most
    return [] if good else [Problem(field, repr(value)[:100], fix)]
