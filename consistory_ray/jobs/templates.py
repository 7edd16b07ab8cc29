"""Dynamic prompts: text with alternatives and wildcards in it, taken apart.

    {red|green|blue}            one of them; any may be empty, and may have choices and wildcards in it
    {3::red|1::green|blue}      weights: red three times as often as either of the others
    {2$$red|green|blue}         two different ones, in the order in which they are written, with ", " between them
    {1-2$$ and $$red|green}     one or two, with " and " between them; also {1-$$…} and {-2$$…}
    __animals/birds__           a line of a list; {2$$__animals/birds__} two different ones
    \\{ \\} \\| \\$ \\: \\_ \\\\       the character itself

What else a prompt has is text. Pure: nothing is drawn or opened here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TypeAlias

MAX_DEPTH = 10
"""How deep choices may stand in choices."""
MAX_CHOSEN = 32
"""How many alternatives one choice may take together."""

_BOUNDS = re.compile(r"\s*(?:(\d+)|(\d+)-(\d*)|-(\d+))\s*\$\$")
_JOINER = re.compile(r"((?:[^{}|$\\]|\$(?!\$))*)\$\$")
_WEIGHT = re.compile(r"\s*(-?(?:\d+\.?\d*|\.\d+))::")
_WILDCARD = re.compile(r"__(?!_)([^\s{}|\\$](?:(?:(?!__)[^{}|\\$])*?[^\s{}|\\$_])??)__")
_TEXT = re.compile(r"[^{}|\\_$]+")
_ESCAPED = "{}|$:_\\"
_PER_UNIT = 1000
_MAX_WEIGHT = 1e6
_DYNAMIC = re.compile(r"[{}\\]|__|\$")


class TemplateError(ValueError):
    """A dynamic prompt that cannot be read.

    Attributes:
        found: the part of it that is wrong.
        fix: what to do about it.
    """

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(f"{found}: {fix}")
        self.found = found
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Wildcard:
    """One line of the list of that name."""

    name: str


@dataclass(frozen=True)
class Option:
    """An alternative; its weight counts in thousandths."""

    parts: Template
    weight: int = _PER_UNIT


@dataclass(frozen=True)
class Choice:
    """Some of the alternatives, each at most once.

    Attributes:
        least, most: how many; None for as many as there are.
        joiner: what comes between them.
    """

    options: tuple[Option, ...]
    least: int = 1
    most: int | None = 1
    joiner: str = ", "

    @cached_property
    def sums(self) -> list[int]:
        """The weights added up, option by option."""
        return list(accumulate(option.weight for option in self.options))

    @cached_property
    def possible(self) -> list[int]:
        """The places of the options that are ever taken."""
        return [place for place, option in enumerate(self.options) if option.weight]


Template: TypeAlias = tuple[str | Choice | Wildcard, ...]
"""A prompt: texts, none of them empty or beside another, choices and wildcards."""


def parse(text: str) -> Template:
    """A dynamic prompt.

    Raises:
        TemplateError: its braces do not match, or a number, a weight or a name in it cannot be used.
    """
    if not _DYNAMIC.search(text):
        return (text,) if text else ()
    parser = _Parser(text)
    parts = parser.parts(within=False)
    if parser.place < len(text):
        raise TemplateError(parser.excerpt(), "this brace closes nothing: open it before, or write \\} for a brace")
    return parts


def parse_option(text: str) -> Option:
    """A line of a wildcard, which may have a weight like any alternative.

    Raises:
        TemplateError: see :func:`parse`.
    """
    weight, end = _weight(text, 0)
    return Option(parse(text[end:]), weight)


def wildcards_in(parts: Template) -> Iterator[str]:
    """The names of all wildcards, as often as they stand there."""
    for part in parts:
        if isinstance(part, Wildcard):
            yield part.name
        elif isinstance(part, Choice):
            for option in part.options:
                yield from wildcards_in(option.parts)


class _Parser:
    """Reads one text from its beginning to its end.

    Attributes:
        place: the next character.
    """

    def __init__(self, text: str) -> None:
        self.place = 0
        self._text = text
        self._depth = 0

    def excerpt(self, start: int | None = None) -> str:
        """The text from a place on, a little of it."""
        begin = self.place if start is None else start
        return self._text[begin : begin + 40]

    def parts(self, *, within: bool) -> Template:
        """Everything up to the end, or within a choice to the end of an alternative."""
        found: list[str | Choice | Wildcard] = []
        while self.place < len(self._text):
            character = self._text[self.place]
            if character == "}" or (character == "|" and within):
                break
            part = self._choice() if character == "{" else self._wildcard() or self._literal()
            if isinstance(part, str) and found and isinstance(found[-1], str):
                found[-1] += part
            else:
                found.append(part)
        return tuple(found)

    def _literal(self) -> str:
        """Text up to the next character that may mean something, one at least."""
        if run := _TEXT.match(self._text, self.place):
            self.place = run.end()
            return run.group()
        character, following = self._text[self.place], self._text[self.place + 1 : self.place + 2]
        if character == "$" and following == "{":
            fix = "there are no variables: write the choice where it is needed, or \\$ for a dollar sign"
            raise TemplateError(self.excerpt(), fix)
        if character == "\\" and following and following in _ESCAPED:
            self.place += 2
            return following
        self.place += 1
        return character

    def _wildcard(self) -> Wildcard | None:
        match = _WILDCARD.match(self._text, self.place)
        if match is None:
            return None
        if fix := name_problem(match.group(1)):
            raise TemplateError(match.group(), fix)
        self.place = match.end()
        return Wildcard(match.group(1))

    def _choice(self) -> Choice:
        start = self.place
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TemplateError(self.excerpt(), f"choices may stand in each other {MAX_DEPTH} deep at most")
        self.place += 1
        least, most, joiner = self._bounds()
        options = [self._option()]
        while self.place < len(self._text) and self._text[self.place] == "|":
            self.place += 1
            options.append(self._option())
        if self.place >= len(self._text):
            raise TemplateError(self.excerpt(start), "this brace is never closed: close it, or write \\{ for a brace")
        self.place += 1
        self._depth -= 1
        choice = Choice(tuple(options), least, most, joiner)
        if fix := _choice_problem(choice):
            raise TemplateError(self._text[start : min(self.place, start + 40)], fix)
        return choice

    def _bounds(self) -> tuple[int, int | None, str]:
        match = _BOUNDS.match(self._text, self.place)
        if match is None:
            return 1, 1, ", "
        exactly, least, most, up_to = match.groups()
        self.place = match.end()
        if any(len(number or "") > 4 for number in match.groups()):
            raise TemplateError(match.group().strip(), f"take {MAX_CHOSEN} alternatives at most")
        joiner = _JOINER.match(self._text, self.place)
        if joiner is not None:
            self.place = joiner.end()
        between = joiner.group(1) if joiner is not None else ", "
        if exactly is not None:
            return int(exactly), int(exactly), between
        if up_to is not None:
            return min(1, int(up_to)), int(up_to), between
        return int(least), int(most) if most else None, between

    def _option(self) -> Option:
        weight, self.place = _weight(self._text, self.place)
        return Option(self.parts(within=True), weight)


def _weight(text: str, place: int) -> tuple[int, int]:
    """The weight that stands at a place, and where what it weighs begins."""
    match = _WEIGHT.match(text, place)
    if match is None:
        return _PER_UNIT, place
    value = float(match.group(1))
    if not 0 <= value <= _MAX_WEIGHT:
        raise TemplateError(match.group().strip()[:40], f"weights are numbers from 0 to {_MAX_WEIGHT:.0f}")
    return math.ceil(round(value * _PER_UNIT, 6)), match.end()


def _choice_problem(choice: Choice) -> str | None:
    """What to change about a choice, as far as that is known without the lists of wildcards."""
    if choice.options == (Option(()),):
        return "write alternatives such as {a|b}, or \\{ and \\} for braces"
    if choice.most is not None and choice.least > choice.most:
        return "write the smaller number first, such as {1-2$$a|b|c}"
    if max(choice.least, choice.most or 0) > MAX_CHOSEN:
        return f"take {MAX_CHOSEN} alternatives at most"
    if not choice.possible:
        return "leave one of the weights above 0"
    return None


def listed_by(choice: Choice) -> str | None:
    """The wildcard whose lines are the alternatives of a choice that takes several of nothing else."""
    if len(choice.options) > 1 or (choice.least, choice.most) == (1, 1):
        return None
    parts = [part for part in choice.options[0].parts if not isinstance(part, str) or part.strip()]
    return parts[0].name if len(parts) == 1 and isinstance(parts[0], Wildcard) else None


def name_problem(name: str) -> str | None:
    """What to change about the name of a wildcard; None if it can be the name of a file below a folder."""
    if any(character in name for character in '*?"<>:\\|[]') or not name.isprintable():
        return "name one list by letters, digits, - and _, such as __animals/birds__"
    if any(not part.strip() or part.startswith(".") or part.strip() != part for part in name.split("/")):
        return "name a list below the folder of wildcards, such as __animals/birds__"
    return None
