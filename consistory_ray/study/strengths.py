"""How strongly is each run preferred? Bradley-Terry strengths by ``choix``, with bootstrap intervals.

The model: run i is preferred to run j with probability 1 / (1 + exp(s_j - s_i)). An answer "no difference" is half a
win for either side. Every pair gets half a win each way beside its answers, so that a run that never loses has a
strength that can be told. Strengths have the mean 0. Intervals draw people and questions again, both with replacement:
answers of one person resemble each other, and so do those to one question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from consistory_ray.errors import InputError, Problem
from consistory_ray.evaluation.bootstrap import crossed_weights
from consistory_ray.study.answers import Answer
from consistory_ray.study.questions import ASKS, Ask

RESAMPLES = 1000
PRIOR = 0.5
"""Wins each way that every pair has before any answer."""
_BOUNDS = (0.025, 0.975)

Estimate = tuple[float, float, float]
"""A value and its 95 % interval."""


@dataclass(frozen=True)
class Preferences:
    """What the answers to one kind of question say.

    Attributes:
        asks: the kind.
        people, questions, answers, ties: how many there are.
        left_share: share of answers for the left side, of those for a side; 0.5 without a habit.
        strengths: of each run, strongest first.
        preferred: for each pair of runs, the probability that the first is preferred to the second.
    """

    asks: Ask
    people: int
    questions: int
    answers: int
    ties: int
    left_share: float | None
    strengths: dict[str, Estimate]
    preferred: dict[tuple[str, str], Estimate]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        pairs = [{"run": a, "to": b, "probability": list(found)} for (a, b), found in self.preferred.items()]
        values = {name: list(found) for name, found in self.strengths.items()}
        plain = {key: getattr(self, key) for key in ("people", "questions", "answers", "ties", "left_share")}
        return {"asks": self.asks, **plain, "strengths": values, "preferred": pairs}


def preferences(answers: Sequence[Answer], runs: Sequence[str], resamples: int = RESAMPLES) -> list[Preferences]:
    """Strengths by each kind of question that was answered.

    Args:
        answers: of one study.
        runs: names of all that was compared.
        resamples: of the bootstrap.

    Raises:
        InputError: ``choix`` is not installed.
    """
    groups = {asks: [answer for answer in answers if answer.question.asks == asks] for asks in ASKS}
    return [_of_one_kind(asks, group, runs, resamples) for asks, group in groups.items() if group]


def _of_one_kind(asks: Ask, answers: Sequence[Answer], runs: Sequence[str], resamples: int) -> Preferences:
    people, questions = ([answer.person for answer in answers], [answer.question.id for answer in answers])
    wins = _wins(answers, runs)
    numbers = [np.unique(units, return_inverse=True)[1] for units in (people, questions)]
    weights = crossed_weights(numbers[0], numbers[1], resamples)
    value = _fit(wins.sum(0))
    drawn = np.stack([_fit(np.tensordot(row, wins, 1)) for row in weights])
    low, high = np.quantile(drawn, _BOUNDS, axis=0)
    order = np.argsort(-value, kind="stable")
    sides = [answer.choice for answer in answers if answer.choice != "tie"]
    preferred = {}
    for i, j in combinations(order, 2):
        bounds = np.quantile(drawn[:, i] - drawn[:, j], _BOUNDS)
        chances = [float(1 / (1 + np.exp(-x))) for x in (value[i] - value[j], *bounds)]
        preferred[runs[i], runs[j]] = (chances[0], chances[1], chances[2])
    return Preferences(
        asks,
        len(set(people)),
        len(set(questions)),
        len(answers),
        len(answers) - len(sides),
        sides.count("left") / len(sides) if sides else None,
        {runs[i]: (float(value[i]), float(low[i]), float(high[i])) for i in order},
        preferred,
    )


def _wins(answers: Sequence[Answer], runs: Sequence[str]) -> np.ndarray:
    """What each answer adds to the wins of run i over run j, float ``[answers, runs, runs]``."""
    place = {name: number for number, name in enumerate(runs)}
    wins = np.zeros((len(answers), len(runs), len(runs)))
    for row, answer in enumerate(answers):
        left, right = place[answer.question.left], place[answer.question.right]
        share = {"left": 1.0, "tie": 0.5, "right": 0.0}[answer.choice]
        wins[row, left, right] += share
        wins[row, right, left] += 1 - share
    return wins


def _fit(wins: np.ndarray) -> np.ndarray:
    """Maximum-likelihood strengths, mean 0, of wins ``[runs, runs]`` and :data:`PRIOR`."""
    try:
        import choix
    except ImportError as error:
        fix = "install it: pip install 'consistory-ray[study]'"
        raise InputError("strengths need the package choix", [Problem("choix", "not installed", fix)]) from error
    found = choix.ilsr_pairwise_dense(wins + PRIOR * (1 - np.eye(len(wins))), max_iter=1000)
    return np.asarray(found - found.mean())
