"""How sure is a number? Percentile bootstrap intervals, and one for shares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES = 10_000


def interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    units: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of a statistic when its units (subjects, pictures) are drawn again with replacement.

    Args:
        statistic: from indices of the drawn units, int ``[resamples, units]``, to its values ``[resamples]``.
        units: how many there are.
        confidence: share of resamples inside the interval.
        resamples: how often to draw.
        seed: of the draws.

    Raises:
        ValueError: there is no unit.
    """
    if units < 1:
        raise ValueError("a bootstrap needs at least one unit")
    rows = np.random.default_rng(seed).integers(0, units, (resamples, units))
    low, high = np.quantile(statistic(rows), ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def crossed_weights(people: np.ndarray, questions: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each answer counts when people and questions are both drawn again with replacement (Owen 2007).

    Args:
        people, questions: whose answer to which question each is, numbers from 0, int ``[answers]``. A single person
            is not drawn again, nor is a single question.
        resamples: how often to draw.
        seed: of the draws.

    Returns:
        int ``[resamples, answers]``.
    """
    rng = np.random.default_rng(seed)
    weights = np.ones((resamples, len(people)), dtype=np.int64)
    for units in (people, questions):
        count = int(units.max()) + 1
        if count > 1:
            weights *= rng.multinomial(count, np.full(count, 1 / count), resamples)[:, units]
    return weights


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean."""
    return interval(lambda rows: values[rows].mean(1), len(values))


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of mean(numerators) / mean(denominators), units drawn in pairs."""
    return interval(lambda rows: numerators[rows].mean(1) / denominators[rows].mean(1), len(numerators))


def difference_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of mean(first) - mean(second), units drawn in pairs."""
    return interval(lambda rows: (first - second)[rows].mean(1), len(first))


def share_interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share that is seen ``right`` times of ``count``, Wilson's; 1.0 of few is not certain.

    Raises:
        ValueError: there is nothing to count.
    """
    if count < 1:
        raise ValueError("a share needs at least one case")
    z, share = 1.959964, right / count
    centre, reach = share + z**2 / (2 * count), z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return float((centre - reach) / (1 + z**2 / count)), float((centre + reach) / (1 + z**2 / count))
