"""What the judge is trained towards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from consistory_ray.miniature.judge import ATTRIBUTES, IDENTITY_WEIGHTS
from consistory_ray.miniature.vocabulary import KINDS
from training.individuals import Identity
from training.judge import SECOND_SEED, identity_agreement, identity_targets, judge_specs, label_map


def test_agreement_is_the_share_of_the_identity_in_common() -> None:
    assert sum(IDENTITY_WEIGHTS.values()) == pytest.approx(1) and IDENTITY_WEIGHTS.keys() == ATTRIBUTES.keys()
    one = Identity("cat", "red", "blue", "striped", "hat", "yellow", 1)
    plain = Identity("cat", "red", "blue", "plain", "hat", "yellow", 1)
    other_hat = Identity("cat", "red", "blue", "striped", "hat", "purple", 1)
    crowns = [Identity("cat", "red", "blue", "striped", "crown", colour, 1) for colour in ("red", "teal")]
    table = identity_agreement(identity_targets([one, one, plain, other_hat, *crowns]))
    assert table[0, 1] == pytest.approx(1) and torch.allclose(table, table.T)
    assert table[0, 2] == pytest.approx(1 - IDENTITY_WEIGHTS["pattern"])
    assert table[0, 3] == pytest.approx(1 - IDENTITY_WEIGHTS["accessory_colour"])
    assert table[4, 5] == pytest.approx(1), "a crown is golden whatever its gems"
    assert torch.linalg.eigvalsh(table).min() > -1e-5, "cosines can have these values"


def test_labels_and_specs() -> None:
    masks = np.zeros((2, 4, 4), np.float32)
    masks[0, :2], masks[1, 2:] = 0.9, 0.4
    assert label_map(masks, ["cat", "robot"]).tolist() == [[1 + KINDS.index("cat")] * 4] * 2 + [[0] * 4] * 2
    specs = judge_specs()
    assert specs[0].subjects == specs[1].subjects and specs[0].scene != specs[1].scene
    assert len(specs[-1].subjects) == 2
    second = judge_specs(SECOND_SEED)
    assert len(second) == len(specs) and second[0] != specs[0], "the second judge learns from others"
