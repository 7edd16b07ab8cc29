"""Equal or not: each attribute by itself, whatever the embeddings say."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consistory_ray.evaluation.hard_attributes import HARD_ATTRIBUTES, Look, disagreement, look
from consistory_ray.miniature.judge import ATTRIBUTES, Portrait

LOOKS = st.fixed_dictionaries({name: st.sampled_from(ATTRIBUTES[name]) for name in HARD_ATTRIBUTES})
CAT = {"body": "red", "second": "blue", "pattern": "plain", "accessory": "hat", "accessory_colour": "teal"}
SOMEBODY = np.ones(64, np.float32) / 8


def portrait(embedding: np.ndarray = SOMEBODY, **changes: str) -> Portrait:
    return Portrait({"kind": "cat", **CAT, "variant": "cat-0", **changes}, embedding)


def test_what_is_not_worn_has_no_colour() -> None:
    assert look(portrait()) == {**CAT, "variant": "cat-0"}
    for worn in ("none", "crown"):
        seen = look(portrait(accessory=worn))
        assert seen is not None and seen["accessory_colour"] == "none"
    assert look(portrait(np.zeros(64, np.float32))) is None, "nobody is seen"


@settings(max_examples=40)
@given(st.lists(st.none() | LOOKS, min_size=2, max_size=6))
def test_each_attribute_counts_its_own_pairs(looks: list[Look | None]) -> None:
    found, pairs = disagreement(looks), list(combinations(looks, 2))
    for name in HARD_ATTRIBUTES:
        equal = sum(a is not None and b is not None and a[name] == b[name] for a, b in pairs)
        assert found[name] == pytest.approx(1 - equal / len(pairs))
    assert disagreement([looks[0], None]) == dict.fromkeys(HARD_ATTRIBUTES, 1.0)


def test_one_picture_says_nothing() -> None:
    assert np.isnan(list(disagreement([look(portrait())]).values())).all()
