"""A file in the layout and size of ConsiStory+, in words of our own: 192 subjects, 1,100 prompts.

The published file (of 1Prompt1Story, arXiv 2501.13554) is not part of this repository; ``--file`` of
``benchmarks/paper.py plus`` takes it. Ours has what makes it hard to read, too: a style that is the empty text,
concepts of several words, capitals, apostrophes and accents, plurals, a subject that occurs twice with the very same
words, and two whose concept is not in their words as it is written.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from consistory_ray.jobs.ids import slug
from consistory_ray.miniature.vocabulary import KINDS, SCENES, STYLES, NamedAttributes, describe, words

SUBJECTS, PROMPTS = 192, 1100
FEWEST, MOST = 5, 8
SLICE = 16
"""Subjects whose words the bundled model knows."""
CATEGORIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "animals": (
        ("otter", "badger", "tapir", "heron", "lynx", "pony", "mole", "toad", "snow hare", "barn owl"),
        ("A curious {} with a torn ear", "An old {}", "A {} with a striped tail", "A very small {}"),
        (
            "asleep under a wheelbarrow",
            "crossing a frozen pond",
            "looking out of a letterbox",
            "eating a plum",
            "on a kitchen scale",
            "in a rowing boat",
            "behind a waterfall",
            "on the roof of a tram",
            "in tall nettles",
        ),
    ),
    "people": (
        ("baker", "diver", "clockmaker", "goalkeeper", "beekeeper", "violinist", "bus driver", "stonemason"),
        ("A tall {} with a red beard", "A {} in a yellow raincoat", "A young {} with round glasses"),
        (
            "waiting at a level crossing",
            "peeling an orange",
            "feeding pigeons",
            "on a spiral staircase",
            "at a café",
            "in front of a chess board",
            "mending a bicycle",
            "at the neighbour's door",
            "in a lift",
        ),
    ),
    "things": (
        ("teapot", "lantern", "suitcase", "kite", "accordion", "paper boat", "rocking chair", "alarm clock"),
        ("A dented {}", "A {} made of blue glass", "A {} with a brass handle", "A sticker of a {}"),
        (
            "on a window sill",
            "half buried in sand",
            "hanging from a branch",
            "in a shop window",
            "on a piano",
            "floating in a canal",
            "under a street lamp",
            "on a pile of newspapers",
            "in a child's hand",
        ),
    ),
    "tales": (
        ("giant", "mermaid", "gnome", "sea serpent", "moth queen", "stone golem", "river spirit", "fox prince"),
        ("A shy {} with moss on its shoulders", "A {} in a cloak of feathers", "An ancient {}"),
        (
            "counting stars",
            "in a bathtub",
            "under a bridge",
            "reading a map upside down",
            "at the edge of a cliff",
            "asleep in a hayloft",
            "among lighthouses",
            "on a swing",
            "in a market at dusk",
        ),
    ),
}
LOOKS = ("A woodcut of", "A photo of", "A pastel drawing of", "An oil painting of", "A clay model of", "")
ODD: tuple[dict[str, Any], ...] = (
    {"concept_token": "pot of soup", "style": "A still life of", "subject": "A steaming pot of thick soup"},
    {"concept_token": "harbour fog", "style": "A charcoal drawing of", "subject": "Fog from a harbour"},
    {"concept_token": "dumpling", "style": "A photo of", "subject": "A plate of small dumplings"},
)
"""Two whose concept is not in their words as it is written, and one in the plural."""


def plus_document(seed: int = 2026) -> dict[str, list[dict[str, Any]]]:
    """Category -> subjects, as the published file has them: concept_token, settings, style, subject."""
    rng = random.Random(f"plus/{seed}")
    document = {"miniature": [_of_the_bundled_world(rng, number) for number in range(SLICE)]}
    names = list(CATEGORIES)
    for number in range(SUBJECTS - SLICE - len(ODD) - 1):
        document.setdefault(names[number % len(names)], []).append(_subject(rng, names[number % len(names)]))
    for odd in ODD:
        document["things"].append({**odd, "settings": rng.sample(CATEGORIES["things"][2], FEWEST)})
    document["tales"].append(dict(document["tales"][3]))
    _fill_up(rng, document)
    return document


def _of_the_bundled_world(rng: random.Random, number: int) -> dict[str, Any]:
    kind = KINDS[number % len(KINDS)]
    settings = rng.sample(SCENES, FEWEST)
    named = describe(kind, NamedAttributes())
    return {"concept_token": kind, "settings": settings, "style": STYLES[number % len(STYLES)], "subject": named}


def _subject(rng: random.Random, category: str) -> dict[str, Any]:
    nouns, looks, places = CATEGORIES[category]
    noun = rng.choice(nouns)
    settings = rng.sample(places, FEWEST)
    style = rng.choice(LOOKS)
    return {"concept_token": noun, "settings": settings, "style": style, "subject": rng.choice(looks).format(noun)}


def _fill_up(rng: random.Random, document: Mapping[str, list[dict[str, Any]]]) -> None:
    """Give subjects further settings until there are :data:`PROMPTS`; the one that occurs twice stays equal."""
    places = {"miniature": SCENES, **{name: places for name, (_, _, places) in CATEGORIES.items()}}
    twice = document["tales"][-1]
    open_ones = [
        (name, one) for name, items in document.items() for one in items if one["settings"] != twice["settings"]
    ]
    missing = PROMPTS - sum(len(one["settings"]) for items in document.values() for one in items)
    while missing:
        name, one = rng.choice(open_ones)
        if len(one["settings"]) < MOST:
            one["settings"].append(rng.choice([place for place in places[name] if place not in one["settings"]]))
            missing -= 1


def mended(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The file with an ``id`` for each subject that has the words and anchors of an earlier one.

    That would be the same individual twice, which jobs may not ask for; with an id of its own it is another one.

    Returns:
        The file, and whose subjects were given one.
    """
    changed: list[str] = []
    seen: Counter[str] = Counter()

    def one(item: Mapping[str, Any]) -> Mapping[str, Any]:
        alike = json.dumps([item["subject"], item.get("style"), item["settings"][:2], item.get("id")])
        seen[alike] += 1
        if seen[alike] == 1:
            return item
        changed.append(item["subject"])
        return {**item, "id": f"{slug(item['subject'], 'subject')}-again-{seen[alike]}"}

    return {**document, **{key: [one(item) for item in items] for key, items in _lists(document)}}, changed


def known_slice(document: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The subjects whose every word the bundled model knows."""
    known = set(words())

    def is_known(item: Mapping[str, Any]) -> bool:
        texts = (item.get("style", ""), item["subject"], *item["settings"])
        return all(word in known for text in texts for word in text.lower().replace(",", " ").split())

    kept = {key: [item for item in value if is_known(item)] for key, value in _lists(document)}
    return {key: value for key, value in kept.items() if value}


def _lists(document: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    return ((key, value) for key, value in document.items() if isinstance(value, list))
