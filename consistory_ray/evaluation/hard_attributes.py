"""Is it the same individual, attribute by attribute? What the judge reads, equal or not, without degrees and weights.

The judge's cosine weighs colours most and lets them agree by degrees, so that pictures with the right colours and the
wrong pattern, hat and build come near to each other. Here each attribute counts alike, and only as equal or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

import numpy as np

from consistory_ray.miniature.judge import Portrait

HARD_ATTRIBUTES = ("body", "second", "pattern", "accessory", "accessory_colour", "variant")
UNCOLOURED = ("none", "crown")
"""What is worn without a colour of its own: nothing, and the crown, which is always golden."""

Look = Mapping[str, str]


def look(portrait: Portrait) -> Look | None:
    """The value of each of :data:`HARD_ATTRIBUTES`, the accessory's colour "none" where it has none of its own.

    None if the judge sees no subject.
    """
    if not portrait.embedding.any():
        return None
    found = {name: portrait.attributes[name] for name in HARD_ATTRIBUTES}
    if found["accessory"] in UNCOLOURED:
        found["accessory_colour"] = "none"
    return found


def disagreement(looks: Sequence[Look | None]) -> dict[str, float]:
    """Of each attribute, the share of pairs of pictures in which it differs; a picture without a subject differs.

    NaN with fewer than two pictures.
    """
    pairs = list(combinations(looks, 2))
    return {
        name: float(np.mean([_differs(a, b, name) for a, b in pairs])) if pairs else float("nan")
        for name in HARD_ATTRIBUTES
    }


def difference(some: Sequence[Look | None], others: Sequence[Look | None]) -> float:
    """How much one subject's pictures differ from another's: mean over pairs and attributes; NaN without pictures."""
    pairs = list(product(some, others))
    return float(np.mean([[_differs(a, b, name) for name in HARD_ATTRIBUTES] for a, b in pairs])) if pairs else np.nan


def _differs(a: Look | None, b: Look | None, name: str) -> bool:
    return a is None or b is None or a[name] != b[name]
