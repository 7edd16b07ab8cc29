"""Which takes are to be made, from their scores alone: a state machine without clocks, files or pictures.

A *picture* is what a scene of the plan stands for, called by the id of its first take. It passes once one of its takes
has a score that reaches the *bar*: a number, or the median of its subject's first takes less a number. While it does
not, it is asked for one further take at a time, the lowest number that is not there, up to a budget.

What is promised, whatever the order in which takes come, and however often a run is begun again:

* no take is asked for that is there, or was asked for already;
* with a threshold, what is asked for a picture depends on its own takes alone;
* with a median, nothing is asked for before every first take of the subject has come or was given up, so that the order
  does not matter; a scene that is added to a job later may move the bar, and never a picture that is there;
* the best take is the one with the highest score, the lower number of equals;
* where takes are made in any case (they are *due*), none is asked for before all of them have come;
* pictures that people have settled are asked for no more, and never fall short; their scores still move a median.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Bar:
    """What passes, and how often it may be tried.

    Attributes:
        threshold: the score that passes; None where ``within`` says it.
        within: how far below the median of the subject's first takes a score may be.
        max_takes: takes of a picture, the first one included.
    """

    threshold: float | None = None
    within: float | None = None
    max_takes: int = 3


class Wanted(NamedTuple):
    """A take to make: of which picture, and which number, from 2."""

    picture: str
    take: int


class Verdict(Enum):
    """What is known of a picture."""

    OPEN = "open"
    """Takes are still to come, or were given up."""
    PASSED = "passed"
    SHORT = "short"
    """None of its takes passes, and the budget is spent."""
    SETTLED = "settled"
    """People have decided about it."""


class Gate:
    """The takes of all pictures of a plan.

    Args:
        bar: what passes.
        subjects: ids of each subject's pictures.
        only: the pictures that further takes may be asked for; None is all.
        due: the takes that are made in any case, from 2, by their picture.
        settled: the pictures that people have decided about.
    """

    def __init__(
        self,
        bar: Bar,
        subjects: Mapping[str, Sequence[str]],
        only: Collection[str] | None = None,
        *,
        due: Mapping[str, Collection[int]] = MappingProxyType({}),
        settled: Collection[str] = (),
    ) -> None:
        self._bar = bar
        self._only = only
        self._due = {picture: set(numbers) for picture, numbers in due.items()}
        self._settled = frozenset(settled)
        self._subjects = subjects
        self._subject_of = {picture: subject for subject, pictures in subjects.items() for picture in pictures}
        self._takes: dict[str, dict[int, float | None]] = {picture: {} for picture in self._subject_of}
        self._asked: dict[str, int] = {}
        self._missing = {subject: set(pictures) for subject, pictures in subjects.items()}
        self._bars: dict[str, float] = {}

    def __contains__(self, picture: str) -> bool:
        return picture in self._takes

    def known(self, picture: str, take: int, score: float) -> None:
        """A take was there before; nothing is asked for yet."""
        self._takes[picture][take] = score
        if take == 1:
            self._missing[self._subject_of[picture]].discard(picture)

    def coming(self, picture: str, take: int) -> None:
        """A take was there before and will be looked at: it is due."""
        self._due.setdefault(picture, set()).add(take)

    def refused(self, picture: str, take: int) -> None:
        """A take was rejected before, and is not to be made again."""
        self._takes[picture][take] = None
        if take == 1:
            self._missing[self._subject_of[picture]].discard(picture)

    def begin(self) -> list[Wanted]:
        """What is to be made by now; to be called once, after everything that is :meth:`known`."""
        return [wanted for subject in self._subjects for wanted in self._ask_subject(subject)]

    def came(self, picture: str, take: int, score: float) -> list[Wanted]:
        """A take was made; what is to be made now because of it."""
        return self._take(picture, take, score)

    def failed(self, picture: str, take: int) -> list[Wanted]:
        """A take was given up: its picture gets no further ones for now. What is to be made now because of it."""
        return self._take(picture, take, None)

    def bar_of(self, picture: str) -> float | None:
        """The score that passes; None while it is not known."""
        if self._bar.threshold is not None:
            return self._bar.threshold
        subject = self._subject_of[picture]
        if subject not in self._bars and not self._missing[subject]:
            firsts = (self._takes[one][1] for one in self._subjects[subject])
            scores = [score for score in firsts if score is not None]
            if scores:
                self._bars[subject] = statistics.median(scores) - (self._bar.within or 0.0)
        return self._bars.get(subject)

    def best(self, picture: str) -> tuple[int, float] | None:
        """Number and score of the best take; None before the first."""
        scored = [(score, -take) for take, score in self._takes[picture].items() if score is not None]
        if not scored:
            return None
        score, take = max(scored)
        return -take, score

    def takes(self, picture: str) -> int:
        """How many takes there are."""
        return sum(score is not None for score in self._takes[picture].values())

    def verdict(self, picture: str) -> Verdict:
        """Where a picture stands."""
        if picture in self._settled:
            return Verdict.SETTLED
        bar, best = self.bar_of(picture), self.best(picture)
        if bar is None or best is None:
            return Verdict.OPEN
        if best[1] >= bar:
            return Verdict.PASSED
        takes = self._takes[picture]
        spent = self._next(picture) is None and None not in takes.values() and not self._is_due(picture)
        return Verdict.SHORT if spent else Verdict.OPEN

    def short(self) -> Iterator[str]:
        """The pictures that fall short for good."""
        return (picture for picture in self._takes if self.verdict(picture) is Verdict.SHORT)

    def _take(self, picture: str, take: int, score: float | None) -> list[Wanted]:
        subject, takes = self._subject_of[picture], self._takes[picture]
        known = take in takes
        takes[take] = score
        if self._asked.get(picture) == take:
            del self._asked[picture]
        if take == 1 and not known:
            self._missing[subject].discard(picture)
            if self._bar.threshold is None:  # it may have been the last one that the median waits for
                return list(self._ask_subject(subject)) if not self._missing[subject] else []
        return list(self._ask(picture))

    def _ask_subject(self, subject: str) -> Iterator[Wanted]:
        for picture in self._subjects[subject]:
            yield from self._ask(picture)

    def _ask(self, picture: str) -> Iterator[Wanted]:
        """The picture's next take, if there is to be one now."""
        takes = self._takes[picture]
        if picture in self._asked or 1 not in takes or None in takes.values():
            return
        if self._is_due(picture) or (self._only is not None and picture not in self._only):
            return
        if self.verdict(picture) is Verdict.OPEN and self.bar_of(picture) is not None:
            number = self._next(picture)
            if number is not None:
                self._asked[picture] = number
                yield Wanted(picture, number)

    def _is_due(self, picture: str) -> bool:
        """Whether takes of it are still to come in any case."""
        return any(number not in self._takes[picture] for number in self._due.get(picture, ()))

    def _next(self, picture: str) -> int | None:
        """The lowest number of a take that is not there; None once the budget is spent."""
        takes = self._takes[picture]
        return next((number for number in range(2, self._bar.max_takes + 1) if number not in takes), None)
