"""Ids that are safe file names everywhere: checked when written by hand, derived from text when not."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

MAX_ID = 80
_SLUG = 56
_SHORT_SLUG = 40
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WORDS = re.compile(r"[a-z0-9]+")
_DEVICES = frozenset(["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))])
_ARTICLES = ("a-", "an-", "the-")
_LETTERS = str.maketrans(
    {"æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "ł": "l", "ħ": "h", "ı": "i", "ŋ": "n"}
)
"""Letters of the Latin script that Unicode does not take apart."""


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

    Letters keep their base: accents are dropped (``Köln`` is ``koln``), ligatures and compatibility forms taken apart
    (``straße`` is ``strasse``); a leading article is dropped. Where text is lost, because it is too long or has letters
    or digits without an ASCII form, a short hash of the whole text keeps different texts apart.
    """
    folded = text.lower() if text.isascii() else _folded(text)
    joined = "-".join(_WORDS.findall(folded))
    is_lossy = not joined or (not folded.isascii() and any(not c.isascii() and c.isalnum() for c in folded))
    return _shaped(joined, text, fallback, is_lossy=is_lossy)


def seed_scope(text: str, fallback: str = "id") -> str:
    """What the seeds of a subject without an id are derived from: its slug as the first version made it.

    Frozen, lost letters and all: another scope would be another individual, and stored outputs would be made again.
    """
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKD", text).lower()
    joined = "-".join(_WORDS.findall(folded))
    return _shaped(joined, text, fallback, is_lossy=not joined)


def _folded(text: str) -> str:
    taken_apart = unicodedata.normalize("NFKD", text).casefold().translate(_LETTERS)
    return "".join(c for c in unicodedata.normalize("NFKD", taken_apart) if not unicodedata.combining(c))


def _shaped(joined: str, text: str, fallback: str, *, is_lossy: bool) -> str:
    for article in _ARTICLES:
        if joined.startswith(article):
            joined = joined[len(article) :]
            break
    if joined and len(joined) <= _SLUG and not is_lossy:
        return f"{fallback}-{joined}" if joined in _DEVICES else joined
    mark = short_hash(text)
    if not joined:
        return f"{fallback}-{mark}"
    return f"{joined if len(joined) <= _SLUG else joined[:_SLUG].rsplit('-', 1)[0]}-{mark}"


def short_hash(text: str, digits: int = 8) -> str:
    """Hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:digits]


def numbered(base: str, count: int) -> list[str]:
    """``base`` itself for one, ``base-0``, ``base-1``, … for more."""
    return [base] if count == 1 else [f"{base}-{number}" for number in range(count)]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Something that needs names.

    Attributes:
        base: what it would be called if nothing else were.
        words: all that tells it from others; equal words are told apart by their order.
        count: how many names it needs.
    """

    base: str
    words: str
    count: int = 1


def distinct_names(wanted: Sequence[Wanted], taken: Collection[str] = ()) -> list[list[str]]:
    """Names that differ from each other, and from those that are taken, even where capitals make no difference.

    Each is its base; where names would be equal, all that are concerned get a short hash of their own words. So a name
    depends on its own words and on whether others would have the same one, never on an order. Only of equal words the
    second is called ``base-2``, and so on.

    Args:
        wanted: in the order of the names that are returned.
        taken: names that were given by hand.
    """
    reserved = {name.lower() for name in taken}
    levels: Counter[str] = Counter()
    while True:
        names = list(_proposed(wanted, levels))
        times = Counter(name for group in names for name in group)
        if len(times) == sum(map(len, names)) and times.keys().isdisjoint(reserved):
            return names
        levels.update(
            {
                one.words
                for one, group in zip(wanted, names, strict=True)
                if any(times[name] > 1 or name in reserved for name in group)
            }
        )


def _proposed(wanted: Sequence[Wanted], levels: Mapping[str, int]) -> Iterator[list[str]]:
    """What each would be called at its level: 0 is without a hash, from 1 on each level has another hash."""
    times = Counter(one.words for one in wanted)
    of_equal_words: dict[str, set[str]] = {words: set() for words, count in times.items() if count > 1}
    seen: Counter[str] = Counter()
    for one in wanted:
        base, level = one.base, levels.get(one.words, 0)
        if level:
            mark = short_hash(one.words) if level == 1 else short_hash(f"{level} {one.words}", 16)
            base = f"{base[:_SHORT_SLUG].rstrip('-')}-{mark}"
        names = numbered(base, one.count)
        if (others := of_equal_words.get(one.words)) is not None:
            seen[one.words] += 1
            number = seen[one.words]
            names = numbered(f"{base}-{number}", one.count) if number > 1 else names
            while not others.isdisjoint(names):
                number += 1
                names = numbered(f"{base}-{number}", one.count)
            others.update(names)
        yield names
