"""Failures that have one cause are told once for each subject, whatever number of its pictures they cost."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_CONSEQUENCE = re.compile(r"^(?:the anchors of \S+ could not be made|not tried, other scenes of \S+ failed [a-z ]+): ")


@dataclass(frozen=True, slots=True)
class FailureGroup:
    """Failures of one subject for one cause: the first one's text, and how many there are."""

    text: str
    count: int

    def __str__(self) -> str:
        return self.text if self.count == 1 else f"{self.text} (and {self.count - 1} more pictures of this subject)"


def cause_of(error: str) -> str:
    """What failures of one cause have in common: the first line, without what it only is a consequence of."""
    return _CONSEQUENCE.sub("", error).partition("\n")[0]


def grouped(failures: Iterable[tuple[str, str, str]]) -> list[FailureGroup]:
    """Failures by cause.

    Args:
        failures: for each its path in the output, its error, and what is to be shown.
    """
    first: dict[tuple[str, str], str] = {}
    counts: dict[tuple[str, str], int] = {}
    for path, error, text in failures:
        key = (path.split("/")[1] if path.count("/") > 1 else path, cause_of(error))
        first.setdefault(key, text)
        counts[key] = counts.get(key, 0) + 1
    return [FailureGroup(text, counts[key]) for key, text in first.items()]
