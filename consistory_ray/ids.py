"""Ids that are safe file names everywhere: checked when written by hand, derived from text when not."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

MAX_ID = 80
_SLUG = 56
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WORDS = re.compile(r"[a-z0-9]+")
_DEVICES = frozenset(["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))])
_ARTICLES = ("a-", "an-", "the-")


def id_problem(value: str) -> str | None:
    """What to change about a hand-written id, or None if it can be a file name on every system.

    Allowed are 1 to 80 ASCII letters, digits, ``.``, ``_`` and ``-``, starting with a letter or digit, not ending with
    a dot, without ``..``, and not the name of a Windows device.
    """
    if len(value) <= MAX_ID and _SAFE.fullmatch(value) and ".." not in value and not value.endswith("."):
        if value.split(".", 1)[0].lower() not in _DEVICES:
            return None
        return f'choose another id, this one is reserved by Windows, for example "{slug(value)}"'
    return (
        f'use 1 to {MAX_ID} ASCII letters, digits, ".", "_" or "-", starting with a letter or digit and without "..", '
        f'for example "{slug(value[:400])}"'
    )


def slug(text: str, fallback: str = "id") -> str:
    """A safe lower-case ASCII id made of a text's words, the same for the same text.

    Compatibility forms and accents are folded (NFKD), a leading article is dropped. Where text is lost, because it is
    too long or has no ASCII letters, a short hash of the whole text keeps different texts apart.
    """
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKD", text).lower()
    words = _WORDS.findall(folded)
    joined = "-".join(words)
    for article in _ARTICLES:
        if joined.startswith(article):
            joined = joined[len(article) :]
            break
    if joined and len(joined) <= _SLUG:
        return f"{fallback}-{joined}" if joined in _DEVICES else joined
    mark = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    if not joined:
        return f"{fallback}-{mark}"
    return f"{joined[:_SLUG].rsplit('-', 1)[0]}-{mark}"


def numbered(base: str, count: int) -> list[str]:
    """``base`` itself for one, ``base-0``, ``base-1``, … for more."""
    return [base] if count == 1 else [f"{base}-{number}" for number in range(count)]


class Names:
    """Names that differ from each other even where capitals make no difference."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._last: dict[str, int] = {}

    def reserve(self, names: Iterable[str]) -> None:
        """Takes names that are given."""
        self._taken.update(name.lower() for name in names)

    def give(self, wanted: str, count: int = 1) -> list[str]:
        """``count`` names from ``wanted`` (lower case), or from ``wanted-2``, ``wanted-3``, … if any is taken."""
        number = self._last.get(wanted, 0) + 1
        names = numbered(wanted if number == 1 else f"{wanted}-{number}", count)
        while not self._taken.isdisjoint(names):
            number += 1
            names = numbered(f"{wanted}-{number}", count)
        self._last[wanted] = number
        self._taken.update(names)
        return names
