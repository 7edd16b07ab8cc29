"""What people are asked: two of the same, in random order and on random sides.

``consistency`` shows several scenes of one subject by two runs: which set shows the same individual? ``prompt`` shows
one scene by two runs: which picture fits the text better? These are the two questions of the paper's user study, each
with a third answer, that there is no difference.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

from consistory_ray.errors import InputError, Problem
from consistory_ray.study.runs import Picture, Place, Run, common_places

Ask = Literal["consistency", "prompt"]
ASKS: tuple[Ask, ...] = get_args(Ask)
SET_SIZE = 5
"""Scenes in a set, at most, as in the paper."""


@dataclass(frozen=True)
class Question:
    """One question of a page.

    Attributes:
        id: tells nothing.
        asks: which of the two questions.
        subject: the subject's id.
        prompts: one for each picture of a side.
        left, right: names of the runs.
        left_pictures, right_pictures: what is shown of them.
    """

    id: str
    asks: Ask
    subject: str
    prompts: tuple[str, ...]
    left: str
    right: str
    left_pictures: tuple[Picture, ...]
    right_pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Study:
    """The questions of one page, in order.

    Attributes:
        id: of the page; answers name it.
        seed: of order and sides.
        runs: names of what is compared.
        questions: in the order in which they are asked.
    """

    id: str
    seed: int
    runs: tuple[str, ...]
    questions: tuple[Question, ...]


def make_study(runs: Sequence[Run], asks: Sequence[Ask] = ASKS, seed: int = 0, most: int = 60) -> Study:
    """Choose questions about runs.

    Every pair of runs is asked about every subject, as long as there are at most so many; beyond that an even share of
    each kind and pair is drawn. Each kind and pair has either run as often on the left as on the right, or once more.

    Args:
        runs: what is compared.
        asks: the kinds of questions.
        seed: the same seed and pictures make the same page.
        most: questions, at most.

    Raises:
        InputError: the runs have no scene in common, or not one question can be made of them.
    """
    rng = random.Random(f"study/{seed}")
    subjects: dict[str, list[Place]] = {}
    for place in common_places(runs):
        subjects.setdefault(place[0], []).append(place)
    groups = [
        [sides for places in subjects.values() if (sides := _sides(asked, places, pair, rng)) is not None]
        for asked in asks
        for pair in combinations(runs, 2)
    ]
    groups = [group for group in groups if group]
    if not groups or most < len(groups):
        fix = f"allow at least {len(groups)} questions" if groups else "a set needs two scenes of a subject; ask prompt"
        raise InputError("there is nothing to ask", [Problem("--questions" if groups else "--ask", str(most), fix)])
    chosen = [question for group in _shared_out(groups, most, rng) for question in _placed(group, rng)]
    rng.shuffle(chosen)
    told = [[q.asks, q.left, q.right, [p.sha256 for p in (*q.left_pictures, *q.right_pictures)]] for q in chosen]
    study = hashlib.sha256(json.dumps([seed, told]).encode()).hexdigest()[:16]
    named = [_renamed(question, f"{study}/{number}") for number, question in enumerate(chosen)]
    return Study(study, seed, tuple(run.name for run in runs), tuple(named))


def _sides(asked: Ask, places: Sequence[Place], pair: tuple[Run, Run], rng: random.Random) -> Question | None:
    """One subject by two runs, the first on the left; None where it has too few scenes for a set."""
    if asked == "consistency" and len(places) < 2:
        return None
    drawn = rng.sample(range(len(places)), min(SET_SIZE, len(places)) if asked == "consistency" else 1)
    shown = [places[number] for number in sorted(drawn)]
    first, second = (tuple(run.scenes[place] for place in shown) for run in pair)
    prompts = tuple(prompt for _, _, prompt in shown)
    return Question("", asked, shown[0][0], prompts, pair[0].name, pair[1].name, first, second)


def _shared_out(groups: Sequence[list[Question]], most: int, rng: random.Random) -> list[list[Question]]:
    """Up to ``most`` questions, an even share of each group; what small groups leave goes to the others."""
    found: dict[int, list[Question]] = {}
    left = most
    for done, number in enumerate(sorted(range(len(groups)), key=lambda number: len(groups[number]))):
        share = min(len(groups[number]), left // (len(groups) - done))
        found[number] = rng.sample(groups[number], share)
        left -= share
    return [found[number] for number in range(len(groups))]


def _placed(group: Sequence[Question], rng: random.Random) -> list[Question]:
    """Either run on the left in half of the questions."""
    start = rng.randrange(2)
    swapped = [(start + number) % 2 == 1 for number in range(len(group))]
    rng.shuffle(swapped)
    return [_swapped(question) if swap else question for question, swap in zip(group, swapped, strict=True)]


def _swapped(question: Question) -> Question:
    left, right = (question.left, question.left_pictures), (question.right, question.right_pictures)
    (name, pictures), (other, others) = right, left
    return Question("", question.asks, question.subject, question.prompts, name, other, pictures, others)


def _renamed(question: Question, origin: str) -> Question:
    name = hashlib.sha256(origin.encode()).hexdigest()[:12]
    return Question(name, *(getattr(question, key) for key in list(Question.__dataclass_fields__)[1:]))
