"""What a caller has pictures told besides their prompts, checked: other words, and what text encoders are set to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, get_args

from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.choices import PromptSyntax
from consistory_ray.settings import MethodSettings

Texts: TypeAlias = str | Sequence[str | None]
"""One text for all images, or one for each; None is what they would have without."""
_MOST_SKIPPED = 24
_LARGEST = 65536


def one_each(name: str, given: Texts | None, count: int) -> tuple[str | None, ...]:
    """A text, or None, for each of so many images; nothing where there is none for any.

    Raises:
        InputError: other than a text, or as many texts as there are images.
    """
    if given is None:
        return ()
    texts: list[Any] = [given] * count if isinstance(given, str) else list(given)
    problems = [
        Problem(f"{name}[{index}]", repr(text)[:100], "must be a text, or None")
        for index, text in enumerate(texts)
        if text is not None and not isinstance(text, str)
    ]
    if len(texts) != count:
        problems.append(Problem(name, str(len(texts)), f"give one per prompt, {count}, or one text for all"))
    if problems:
        raise InputError("the arguments do not fit each other", problems)
    return tuple(texts) if any(text is not None for text in texts) else ()


def second_prompts(prompts: Sequence[str], given: Texts | None) -> tuple[str, ...]:
    """What the second text encoder reads of each image; nothing where it reads the prompts."""
    texts = one_each("prompts_2", given, len(prompts))
    return tuple(prompt if text is None else text for text, prompt in zip(texts, prompts, strict=False))


def unlike_settings(given: Texts | None, count: int, settings: MethodSettings) -> tuple[str | None, ...]:
    """The negative prompt of each of so many images; nothing where all have that of the settings."""
    texts = one_each("negative_prompts", given, count)
    found = tuple(settings.negative_prompt if text is None else text for text in texts)
    return () if all(text == settings.negative_prompt for text in found) else found


def check_words(settings: MethodSettings) -> None:
    """Refuse settings of the text encoders that no model has.

    Raises:
        InputError: naming every one of them.
    """
    problems = list(_problems(settings))
    if problems:
        raise InputError("the settings cannot be used", problems)


def _problems(settings: MethodSettings) -> Iterator[Problem]:
    syntaxes = get_args(PromptSyntax)
    if settings.prompt_syntax not in syntaxes:
        yield Problem("prompt_syntax", repr(settings.prompt_syntax)[:100], f"use one of {', '.join(syntaxes)}")
    for name in ("negative_prompt", "negative_prompt_2"):
        text = getattr(settings, name)
        if text is not None and not isinstance(text, str):
            yield Problem(name, repr(text)[:100], "must be a text, or None")
    if settings.clip_skip is not None and not _whole(settings.clip_skip, 1, _MOST_SKIPPED):
        yield Problem("clip_skip", repr(settings.clip_skip)[:100], f"must be from 1 to {_MOST_SKIPPED}, or None")
    for name, least, what in (
        ("original_size", 1, "two whole numbers, height and width, or None"),
        ("target_size", 1, "two whole numbers, height and width, or None"),
        ("crops_coords_top_left", 0, "two whole numbers from 0, pixels from the top and from the left"),
    ):
        pair = getattr(settings, name)
        if pair is None and least:
            continue
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(_whole(n, least, _LARGEST) for n in pair):
            yield Problem(name, repr(pair)[:100], f"must be {what}")


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
