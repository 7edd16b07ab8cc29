"""Where a concept stands in a prompt: one rule on characters, for whoever checks a job and whoever masks its tokens.

A concept stands *exactly* where its words stand as they are written, as whole words, capitals aside. Where it does so
nowhere, its words may stand apart, in another order, in the singular or plural, with or without accents, hyphens and
blanks between them: "loaf of bread" in "a crusty loaf of freshly baked bread". If not all of them stand there, those
that do count, words such as "of" aside. Pure: no tokenizer; a token belongs to a concept if it overlaps its characters.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise

from consistory_ray.concepts.word_forms import surfaces

Span = tuple[int, int]

_STOP_WORDS = frozenset(
    (
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "with",
        "and",
        "or",
        "for",
        "to",
        "at",
        "by",
        "from",
        "de",
        "la",
        "le",
        "du",
        "s",
    )
)
_LETTERS = r"[^\W\d_]"
_WORD = re.compile(r"[^\W_]+")
_BETWEEN = r"[\s_\-\u2010-\u2015]?"
# Scripts that are written without blanks between words, or with endings joined to them.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_SHORTEST_COMPOUND = 6
_MOST_WORDS = 16
_MOST_PLACES = 100


@dataclass(frozen=True, slots=True)
class Match:
    """A concept in a prompt.

    Attributes:
        places: for each time that it stands there, the spans of characters that it is made of.
        exact: whether its words stand there as they are written.
        lacking: its words that do not stand there.
    """

    places: tuple[tuple[Span, ...], ...]
    exact: bool
    lacking: tuple[str, ...] = ()

    def shown(self, prompt: str) -> str:
        """What it was matched by, words between left out: ``loaf … bread``."""
        place = self.places[0]
        text = prompt[slice(*place[0])]
        for before, span in pairwise(place):
            gap = prompt[before[1] : span[0]]
            text += (gap if len(gap) == 1 else " … ") + prompt[slice(*span)]
        return text


def mentions(prompt: str, concept: str) -> bool:
    """Whether a concept stands in a prompt exactly: "cat" is in "the CAT's hat", not in "cats"."""
    first, pattern = _exact(concept)
    folded = _fold(prompt)
    return first in folded and pattern.search(folded) is not None


def stands(prompt: str, concept: str) -> bool:
    """Whether :func:`find_concept` finds anything, at less cost."""
    if mentions(prompt, concept):
        return True
    wanted, text = content_words(concept), _bare(prompt)[0]
    return any(_loose(word, text) for word in wanted) or bool(_compound(wanted, text))


def find_concept(prompt: str, concept: str, taken: Sequence[Span] = (), *, partly: bool = True) -> Match | None:
    """Where a concept stands in a prompt: exactly if it does so anywhere, else loosely.

    Args:
        prompt, concept: texts.
        taken: characters that other concepts have, which do not count for one of which not all words are there.
        partly: whether some of its words are enough.
    """
    return _find_exact(prompt, concept) or _find_loose(prompt, concept, taken, partly=partly)


def find_concepts(
    prompt: str, concepts: Sequence[str], *, every: bool = False, exact_suffices: bool = False
) -> list[Match | None]:
    """Where a subject's concepts stand in a prompt, None for those that it lacks.

    Args:
        prompt, concepts: texts.
        every: all are wanted, as in an anchor: any may be matched by some of its words, as long as no other has them.
            Otherwise some of a concept's words count only where no concept stands there as a whole.
        exact_suffices: where one stands there exactly the others are not looked for loosely.
    """
    found = [_find_exact(prompt, concept) for concept in concepts]
    if all(found) or (exact_suffices and any(found)):
        return found
    found = [
        match or _find_loose(prompt, concept, partly=False) for match, concept in zip(found, concepts, strict=True)
    ]
    if all(found) or (any(found) and not every):
        return found
    taken = [span for match in found if match for place in match.places for span in place]
    for index, concept in enumerate(concepts):
        if found[index] is None:
            found[index] = match = _find_loose(prompt, concept, taken)
            taken += [span for place in match.places for span in place] if match else []
    return found


def all_exact(prompts: Sequence[str], concepts: Sequence[str]) -> bool:
    """Whether every concept stands exactly in every prompt.

    Of a subject whose anchors do so, scenes with one exact concept are masked by exact ones alone.
    """
    return all(mentions(prompt, concept) for prompt in prompts for concept in concepts)


@lru_cache(maxsize=1024)
def content_words(concept: str) -> tuple[str, ...]:
    """The words that make a concept, without "of" and the like (unless there is nothing else), as they are compared."""
    words = _WORD.findall(_bare(concept)[0])
    return tuple(dict.fromkeys([word for word in words if word not in _STOP_WORDS] or words))[:_MOST_WORDS]


def _find_exact(prompt: str, concept: str) -> Match | None:
    first, pattern = _exact(concept)
    folded, places = _folded(prompt)
    if first not in folded:
        return None
    hits = islice(pattern.finditer(folded), _MOST_PLACES)
    spans = tuple((_original(places, hit.start(1), hit.end(1)),) for hit in hits)
    return Match(spans, exact=True) if spans else None


@lru_cache(maxsize=1024)
def _exact(concept: str) -> tuple[str, re.Pattern[str]]:
    """The first word of a concept, and what finds all of its words, also where they overlap themselves."""
    words = _fold(concept).split()
    if not words:
        return "", re.compile(r"(?!)()")
    pattern = r"\s+".join(re.escape(word) for word in words)
    before = rf"(?<!{_LETTERS})" if _ends_a_word(words[0][0]) else ""
    after = rf"(?!{_LETTERS})" if _ends_a_word(words[-1][-1]) else ""
    return words[0], re.compile(rf"{before}(?=({pattern}){after})")


def _ends_a_word(character: str) -> bool:
    """Whether a letter beside this one would make it another word."""
    return character.isalnum() and not _UNSPACED.match(character)


def _find_loose(prompt: str, concept: str, taken: Sequence[Span] = (), *, partly: bool = True) -> Match | None:
    wanted = content_words(concept)
    if not wanted:
        return None
    text, origins = _bare(prompt)
    hits = [(hit.start(), hit.end(), number) for number, word in enumerate(wanted) for hit in _loose(word, text)]
    found = {number for _, _, number in hits}
    if len(found) < len(wanted) and (joined := _compound(wanted, text)):
        return Match(tuple((_original(origins, *span),) for span in joined), exact=False)
    if len(found) < len(wanted):
        if not partly:
            return None
        hits = [hit for hit in hits if not _overlaps(_original(origins, hit[0], hit[1]), taken)]
        found = {number for _, _, number in hits}
    if not found:
        return None
    places = tuple(
        tuple(_original(origins, start, end) for start, end, _ in window) for window in _windows(text, hits, len(found))
    )
    lacking = tuple(word for number, word in enumerate(wanted) if number not in found)
    return Match(places, exact=False, lacking=lacking)


def _loose(word: str, text: str) -> list[re.Match[str]]:
    return list(_forms(word).finditer(text))


@lru_cache(maxsize=4096)
def _forms(word: str) -> re.Pattern[str]:
    """What finds a word in singular and plural, as a whole word."""
    choice = "|".join(re.escape(form) for form in sorted(surfaces(word), key=len, reverse=True))
    before, after = (r"" if _UNSPACED.match(edge) else _LETTERS for edge in (word[0], word[-1]))
    left, right = f"(?<!{before})" if before else "", f"(?!{after})" if after else ""
    return re.compile(f"{left}(?:{choice}){right}")


def _compound(words: Sequence[str], text: str) -> list[Span]:
    """Words written as one ("firetruck" for "fire truck"), or one word written as two."""
    whole = "".join(words)
    if not words or len(whole) < _SHORTEST_COMPOUND or not whole.isascii() or not whole.isalpha():
        return []
    return [hit.span() for hit in _spelled(whole).finditer(text)]


@lru_cache(maxsize=1024)
def _spelled(word: str) -> re.Pattern[str]:
    forms = (_BETWEEN.join(form) for form in sorted(surfaces(word), key=len, reverse=True))
    return re.compile(rf"(?<!{_LETTERS})(?:{'|'.join(forms)})(?!{_LETTERS})")


def _windows(text: str, hits: list[tuple[int, int, int]], count: int) -> list[list[tuple[int, int, int]]]:
    """The places where the words stand closest together, from left to right; none shares a word with another."""
    starts = [word.start() for word in _WORD.finditer(text)] if count > 1 else []
    hits = sorted(hits)
    last: dict[int, tuple[int, int, int]] = {}
    found = []
    for hit in hits:
        last[hit[2]] = hit
        if len(last) == count:
            window = sorted(last.values())
            width = bisect_left(starts, window[-1][0]) - bisect_left(starts, window[0][0])
            found.append((width, window))
    least = min(width for width, _ in found)
    chosen: list[list[tuple[int, int, int]]] = []
    for width, window in found:
        if width == least and (not chosen or window[0][0] >= chosen[-1][-1][1]):
            chosen.append(window)
    return chosen


def _overlaps(span: Span, others: Sequence[Span]) -> bool:
    return any(span[0] < end and start < span[1] for start, end in others)


def _original(origins: Sequence[Span] | None, start: int, end: int) -> Span:
    """A span of folded text in the text it was made of."""
    return (start, end) if origins is None else (origins[start][0], origins[end - 1][1])


def _fold(text: str) -> str:
    return text.lower() if text.isascii() else _folded(text)[0]


@lru_cache(maxsize=256)
def _folded(text: str) -> tuple[str, list[Span] | None]:
    """A text in NFC without capitals, and where each of its characters comes from; None where nothing has moved."""
    lower = text.lower()
    if text.isascii():
        return lower, None
    if len(lower) == len(text) and unicodedata.is_normalized("NFC", text):
        return lower.replace("ς", "σ"), None
    return _mapped(text, lambda piece: unicodedata.normalize("NFC", piece).lower().replace("ς", "σ"))


@lru_cache(maxsize=256)
def _bare(text: str) -> tuple[str, list[Span] | None]:
    """A text without capitals, accents and compatibility forms, and where each of its characters comes from."""
    if text.isascii():
        return text.lower(), None
    return _mapped(text, _without_accents)


def _without_accents(piece: str) -> str:
    return "".join(mark for mark in unicodedata.normalize("NFKD", piece.casefold()) if not _is_accent(mark))


def _is_accent(mark: str) -> bool:
    return "\u0300" <= mark <= "\u036f"


def _mapped(text: str, change: Callable[[str], str]) -> tuple[str, list[Span]]:
    pieces: list[str] = []
    origins: list[Span] = []
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and _continues(text[end]):
            end += 1
        piece = change(text[start:end])
        pieces.append(piece)
        origins += [(start, end)] * len(piece)
        start = end
    return "".join(pieces), origins


def _continues(character: str) -> bool:
    """Whether a character may make one with those before it: accents, and the parts of a Korean syllable."""
    return bool(unicodedata.combining(character)) or "\u1160" <= character <= "\u11ff"
