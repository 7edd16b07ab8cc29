"""English words in singular and plural, well enough to recognise one by the other."""

from __future__ import annotations

from functools import lru_cache

_IRREGULAR = {
    "child": "children",
    "die": "dice",
    "foot": "feet",
    "goose": "geese",
    "louse": "lice",
    "mouse": "mice",
    "ox": "oxen",
    "penny": "pence",
    "person": "people",
    "tooth": "teeth",
    "staff": "staves",
    "cello": "celli",
    "phenomenon": "phenomena",
    "criterion": "criteria",
    "aquarium": "aquaria",
    "stadium": "stadia",
    "bureau": "bureaux",
    "chateau": "chateaux",
    "gateau": "gateaux",
    "tableau": "tableaux",
}
_IRREGULAR_SINGULARS = {plural: singular for singular, plural in _IRREGULAR.items()}
_SHORTEST = 3


@lru_cache(maxsize=4096)
def surfaces(word: str) -> frozenset[str]:
    """A word in lower case with its plural and its singular forms, as far as rules go; too many rather than too few.

    Words with other than ASCII letters, and very short ones, are only themselves.
    """
    if not (word.isascii() and word.isalpha()) or (len(word) < _SHORTEST and word not in _IRREGULAR):
        return frozenset((word,))
    bases = {word, *_singulars(word)}
    return frozenset(bases.union(*(_plurals(base) for base in bases)))


def _plurals(word: str) -> set[str]:
    found = {word + "s"}
    for singular, plural in _IRREGULAR.items():
        if word == singular or (word.endswith(singular) and len(singular) > _SHORTEST):  # grandchild, eyetooth
            found.add(word[: -len(singular)] + plural)
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        found.add(word + "es")
    if word.endswith(("s", "z")) and word[-2:-1] in tuple("aeiou"):
        found.add(word + word[-1] + "es")
    if word.endswith("y") and word[-2:-1] not in tuple("aeo"):
        found.add(word[:-1] + "ies")
    if word.endswith("f") and not word.endswith("ff"):
        found.add(word[:-1] + "ves")
    if word.endswith("fe"):
        found.add(word[:-2] + "ves")
    if word.endswith("man"):
        found.add(word[:-3] + "men")
    if word.endswith("us") and len(word) > _SHORTEST + 1:
        found.add(word[:-2] + "i")
    if word.endswith("is") and len(word) > _SHORTEST + 1:
        found.add(word[:-2] + "es")
    if word.endswith(("ex", "ix")) and len(word) > _SHORTEST + 1:
        found.add(word[:-2] + "ices")
    return found


def _singulars(word: str) -> set[str]:
    found = set()
    for plural, singular in _IRREGULAR_SINGULARS.items():
        if word == plural or (word.endswith(plural) and len(plural) > _SHORTEST + 1):
            found.add(word[: -len(plural)] + singular)
    if word.endswith("men") and len(word) >= _SHORTEST:
        found.add(word[:-3] + "man")
    if word.endswith("i") and len(word) > _SHORTEST + 1:
        found.add(word[:-1] + "us")
    if len(word) <= _SHORTEST or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return found
    found.add(word[:-1])
    if word.endswith("ies") and len(word) > _SHORTEST + 1:
        found.add(word[:-3] + "y")
    if word.endswith("ves"):
        found |= {word[:-3] + "f", word[:-3] + "fe"}
    if word.endswith("ices") and len(word) > _SHORTEST + 3:
        found |= {word[:-4] + "ex", word[:-4] + "ix"}
    if word.endswith("es") and word[:-2].endswith(("s", "x", "z", "ch", "sh", "o")):
        found.add(word[:-2])
        if word[-4:-3] == word[-3:-2] and word[-3] in "sz":
            found.add(word[:-3])
    if word.endswith("ses") or word.endswith("xes"):
        found.add(word[:-2] + "is")
    return found
