"""Prompts in compel's syntax, read without torch: what is text in them, and what is wrong with them.

The parser is compel's own, a module that needs neither torch nor the rest of that package: it is loaded from its file.
Most prompts have no syntax in them; what the parser would make of these is known without it.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

INSTALL = 'install it: pip install "consistory-ray[compel]"'
"""What to do where it is missing."""

_COMMA = re.compile(r",(\S)")
_BLANKS = re.compile(r"[ \t\r\n]+")
_SYNTAX = re.compile(r'[()"\\+\x0b\x0c]|-(?=[\s.,=-]|$)|(?:use|with)Lora')
_OPERATOR = re.compile(r"\.(?:attend|swap|blend|and|add)\(")
_CONJUNCTION = re.compile(r"\.(?:and|add)\s*\(")
_BRACKET = re.compile(r"\\.|[()]")
_BETWEEN = ", "


class SyntaxFault(ValueError):
    """What is wrong with a prompt, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of text with one weight: what it says and where it begins in the text of the whole prompt."""

    text: str
    start: int
    weight: float


@dataclass(frozen=True, slots=True)
class Reading:
    """A prompt without its syntax.

    Attributes:
        text: all its fragments, one after another.
        parts: the prompts that are joined by ``.and()``, one where there is no such; of each those that are blended,
            one where nothing is; of each of these the fragments.
    """

    text: str
    parts: tuple[tuple[tuple[Fragment, ...], ...], ...]


def compel_is_here() -> bool:
    """Whether compel is installed."""
    return importlib.util.find_spec("compel") is not None


def plain_text(prompt: str, syntax: str) -> str:
    """What a prompt says, in which concepts are looked for. Of one that cannot be read it is the prompt itself.

    Args:
        prompt: a whole one.
        syntax: how it is written, ``plain`` or ``compel``.
    """
    if syntax == "plain":
        return prompt
    try:
        return read_prompt(prompt).text
    except (SyntaxFault, ImportError):
        return prompt


@lru_cache(maxsize=8192)
def read_prompt(prompt: str) -> Reading:
    """Takes a prompt apart.

    Raises:
        SyntaxFault: it cannot be read, or asks for what cannot be done.
        ImportError: compel is needed and not installed.
    """
    spaced = _COMMA.sub(r", \1", prompt)
    if _SYNTAX.search(spaced) is None:
        return _placed([[[(_BLANKS.sub(" ", spaced).strip(" "), 1.0)]]])
    _check_brackets(prompt)
    return _placed(list(_flattened(prompt, spaced)))


def _check_brackets(prompt: str) -> None:
    depth = 0
    for mark in _BRACKET.findall(prompt):
        depth += {"(": 1, ")": -1}.get(mark, 0)
        if depth < 0:
            raise SyntaxFault("a bracket is closed that was not opened: write \\) where it is text")
    if depth:
        raise SyntaxFault("a bracket is not closed: write \\( where it is text")


def _flattened(prompt: str, spaced: str) -> Iterator[list[list[tuple[str, float]]]]:
    """The parts of a prompt as compel's parser finds them: of each the blended ones, of these texts and weights."""
    parser, module = _parser()
    try:
        conjunction = parser.parse_conjunction(prompt)
        if _CONJUNCTION.search(prompt):  # the parser passes over what follows one
            parser.conjunction.parse_string(spaced, parse_all=True)
    except Exception as error:  # the parser's own errors, and those of numbers in it
        raise SyntaxFault(
            f"compel cannot read it: {' '.join(str(error).split())[:200] or type(error).__name__}"
        ) from error
    if conjunction.lora_weights:
        raise SyntaxFault("withLora loads nothing here: name LoRAs under loras")
    for part in conjunction.prompts:
        blended = part.prompts if isinstance(part, module.Blend) else [part]
        if isinstance(part, module.Blend) and part.normalize_weights and abs(sum(part.weights)) < 1e-6:
            raise SyntaxFault("the weights of a blend must not add up to 0")
        if not all(isinstance(one, module.FlattenedPrompt) for one in blended):
            raise SyntaxFault("blends and conjunctions cannot be put into each other")
        yield [[_checked(child, module) for child in one.children] for one in blended]


def _checked(child: Any, module: Any) -> tuple[str, float]:
    if not isinstance(child, module.Fragment):
        raise SyntaxFault(".swap() is not supported: write the words that are to be there")
    if found := _OPERATOR.search(child.text):
        raise SyntaxFault(
            f"{found.group()}) is read as text here: it must stand behind quotes or brackets, and blends and "
            "conjunctions must be the whole prompt, with what style and subject say inside"
        )
    if not math.isfinite(child.weight):
        raise SyntaxFault("a weight is not finite")
    return child.text, child.weight


def _placed(parts: list[list[list[tuple[str, float]]]]) -> Reading:
    """Fragments with their places in one text."""
    pieces: list[str] = []
    length = 0
    placed = []
    for part in parts:
        blended = []
        for fragments in part:
            if pieces:
                pieces.append(_BETWEEN)
                length += len(_BETWEEN)
            found = []
            for number, (text, weight) in enumerate(fragments):
                if number:
                    pieces.append(" ")
                    length += 1
                found.append(Fragment(text, length, weight))
                pieces.append(text)
                length += len(text)
            blended.append(tuple(found))
        placed.append(tuple(blended))
    return Reading("".join(pieces), tuple(placed))


@lru_cache(maxsize=1)
def _parser() -> tuple[Any, Any]:
    """A parser, and the module with the types of what it finds."""
    package = importlib.util.find_spec("compel")
    if package is None or package.origin is None:
        raise ImportError("compel is not installed")
    path = Path(package.origin).with_name("prompt_parser.py")
    spec = importlib.util.spec_from_file_location("consistory_ray.concepts._compel_prompt_parser", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"compel has no {path.name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PromptParser(), module
