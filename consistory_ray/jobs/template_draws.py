"""What dynamic prompts become: one text by chance, or every text that is possible.

Chance is a :class:`random.Random`, whose ``random()`` gives the same numbers for the same seed in every version.
"""

from __future__ import annotations

import heapq
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from random import Random

from consistory_ray.jobs.templates import (
    MAX_CHOSEN,
    Choice,
    Template,
    TemplateError,
    Wildcard,
    listed_by,
    parse_option,
    wildcards_in,
)

MAX_CHAIN = 10
"""How many wildcards may lead from one to the next."""
UNCOUNTED = 10**9
"""More variants than this are not told apart."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """How many texts something can become, at most :data:`UNCOUNTED`, and the characters of the longest."""

    variants: int
    longest: int


class Lists:
    """The lists of wildcards, each taken apart when it is first needed.

    Args:
        wildcards: by name, the lines.
    """

    def __init__(self, wildcards: Mapping[str, Sequence[str]]) -> None:
        self._lines = wildcards
        self._choices: dict[str, Choice] = {}
        self._broken: dict[str, TemplateError] = {}
        self._depths: dict[str, int] = {}
        self._measured: dict[str, _Measured] = {}

    def choice(self, name: str) -> Choice:
        """One line of a list.

        Raises:
            TemplateError: there is no such list, it is empty, or a line cannot be read.
        """
        if name in self._broken:
            raise self._broken[name]
        if name not in self._choices:
            try:
                self._choices[name] = self._read(name)
            except TemplateError as error:
                self._broken[name] = error
                raise
        return self._choices[name]

    def _read(self, name: str) -> Choice:
        if name not in self._lines:
            raise TemplateError(f"__{name}__", "there is no such wildcard: give its list, or write \\_ for a _")
        options = tuple(map(parse_option, self._lines[name]))
        if not any(option.weight for option in options):
            raise TemplateError(f"__{name}__", "its list has no line that can be taken: write at least one")
        return Choice(options)

    def draw(self, parts: Template, chance: Random) -> str:
        """One of the texts that a template can become, its blanks made single.

        Args:
            parts: what :meth:`check` finds nothing wrong with.
            chance: decides; the same seed gives the same text.
        """
        return _tidy(self._drawn(parts, chance))

    def every(self, parts: Template) -> list[str]:
        """All texts that a template can become, each once; :meth:`variants` says beforehand how many are made."""
        return list(dict.fromkeys(map(_tidy, self._every(parts))))

    def variants(self, parts: Template) -> int:
        """How many ways there are to draw from a template, at most :data:`UNCOUNTED`; some may give equal texts."""
        return self._measure(parts).variants

    def longest(self, parts: Template) -> int:
        """How many characters the longest text can have that a template becomes."""
        return self._measure(parts).longest

    def check(self, parts: Template) -> None:
        """Makes sure that everything can be drawn.

        Raises:
            TemplateError: a list is missing or cannot be read, leads back to itself, or has too few lines.
        """
        for name in dict.fromkeys(wildcards_in(parts)):
            self._depth(name, ())
        self._check_choices(parts)

    def _depth(self, name: str, chain: tuple[str, ...]) -> int:
        """How many lists lead from one to the next from this one on; each is checked once."""
        if name in chain:
            way = " → ".join([*chain, name])
            raise TemplateError(f"__{chain[0]}__", f"no list may lead back to itself: take one out of {way}")
        if name not in self._depths and len(chain) < MAX_CHAIN:
            options = self.choice(name).options
            inside = dict.fromkeys(other for option in options for other in wildcards_in(option.parts))
            depth = 1 + max((self._depth(other, (*chain, name)) for other in inside), default=0)
            for option in options:
                self._check_choices(option.parts)
            self._depths[name] = depth
        depth = self._depths.get(name, 1)
        if len(chain) + depth > MAX_CHAIN:
            raise TemplateError(f"__{(*chain, name)[0]}__", f"lists may lead to others {MAX_CHAIN} deep at most")
        return depth

    def _check_choices(self, parts: Template) -> None:
        for part in parts:
            if isinstance(part, Choice):
                self._check_choice(part)
                for option in part.options:
                    self._check_choices(option.parts)

    def _check_choice(self, choice: Choice) -> None:
        there = len(self._pool(choice).possible)
        wanted = max(choice.least, choice.most or 0)
        if wanted > there:
            told = f"{there} alternative{'s' if there != 1 else ''}"
            raise TemplateError(f"{{{wanted}$$", f"there are {told} to take {wanted} different ones of: take fewer")

    def _pool(self, choice: Choice) -> Choice:
        """The choice whose options are taken."""
        name = listed_by(choice)
        return choice if name is None else self.choice(name)

    def _most(self, choice: Choice, pool: Choice) -> int:
        return min(len(pool.possible), MAX_CHOSEN) if choice.most is None else choice.most

    def _drawn(self, parts: Template, chance: Random) -> str:
        return "".join([part if isinstance(part, str) else self._drawn_choice(part, chance) for part in parts])

    def _drawn_choice(self, part: Choice | Wildcard, chance: Random) -> str:
        choice = self.choice(part.name) if isinstance(part, Wildcard) else part
        pool = self._pool(choice)
        most = self._most(choice, pool)
        number = choice.least + int(chance.random() * (most - choice.least + 1)) if most > choice.least else most
        taken = _places(pool, number, chance)
        texts = [self._drawn(pool.options[place].parts, chance) for place in taken]
        return texts[0] if (choice.least, choice.most) == (1, 1) else choice.joiner.join(text.strip() for text in texts)

    def _every(self, parts: Template) -> Iterator[str]:
        sides = [[part] if isinstance(part, str) else list(self._every_choice(part)) for part in parts]
        return map("".join, product(*sides))

    def _every_choice(self, part: Choice | Wildcard) -> Iterator[str]:
        choice = self.choice(part.name) if isinstance(part, Wildcard) else part
        pool = self._pool(choice)
        texts = {place: list(self._every(pool.options[place].parts)) for place in pool.possible}
        if (choice.least, choice.most) == (1, 1):
            for place in pool.possible:
                yield from texts[place]
            return
        for number in range(choice.least, self._most(choice, pool) + 1):
            for places in combinations(pool.possible, number):
                for one in product(*(texts[place] for place in places)):
                    yield choice.joiner.join(text.strip() for text in one)

    def _measure(self, parts: Template) -> _Measured:
        variants, longest = 1, 0
        for part in parts:
            if isinstance(part, str):
                longest += len(part)
                continue
            found = self._measure_choice(part) if isinstance(part, Choice) else self._measure_list(part.name)
            variants, longest = min(variants * found.variants, UNCOUNTED), longest + found.longest
        return _Measured(variants, longest)

    def _measure_list(self, name: str) -> _Measured:
        if name not in self._measured:
            self._measured[name] = self._measure_choice(self.choice(name))
        return self._measured[name]

    def _measure_choice(self, choice: Choice) -> _Measured:
        pool = self._pool(choice)
        most = self._most(choice, pool)
        found = [self._measure(pool.options[place].parts) for place in pool.possible]
        longest = sum(heapq.nlargest(most, (one.longest for one in found))) + len(choice.joiner) * max(most - 1, 0)
        ways = [1] + [0] * most  # of taking so many of the options that were looked at
        for one in found:
            for number in range(most, 0, -1):
                ways[number] = min(ways[number] + ways[number - 1] * one.variants, UNCOUNTED)
        return _Measured(min(sum(ways[choice.least :]), UNCOUNTED), longest)


def _places(pool: Choice, number: int, chance: Random) -> Sequence[int]:
    """The places of so many different options, in their order."""
    total = pool.sums[-1]
    taken: list[int] = []
    for _ in range(number):
        point = min(int(chance.random() * total), total - 1)
        for place in taken:  # those that are gone take no room
            if point >= pool.sums[place] - pool.options[place].weight:
                point += pool.options[place].weight
        place = bisect_right(pool.sums, point)
        total -= pool.options[place].weight
        taken = sorted([*taken, place])
    return taken


def _tidy(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))
