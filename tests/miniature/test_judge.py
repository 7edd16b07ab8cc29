"""The bundled judge is right about drawings, and its networks do what they say."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from consistory_ray.errors import CheckpointError
from consistory_ray.evaluation.measures import overlap
from consistory_ray.miniature.judge import (
    CROP_SIZE,
    WEIGHTS,
    Identifier,
    Judge,
    Segmenter,
    boxes,
    cut_out,
)
from consistory_ray.miniature.vocabulary import KINDS, SCENES
from training.individuals import random_identity, random_placement
from training.world import PictureSpec, draw

HELD_OUT = "judge test"


@pytest.fixture(scope="module")
def judge() -> Judge:
    """The bundled judge."""
    return Judge.load()


def individuals(count: int, pictures: int) -> list[PictureSpec]:
    """Individuals of all kinds in turn, each in several scenes."""
    rng = random.Random(HELD_OUT)
    specs = []
    for index in range(count):
        who = random_identity(rng, KINDS[index % len(KINDS)])
        for scene in rng.sample(SCENES, pictures):
            specs.append(PictureSpec((who,), (random_placement(rng),), scene, rng.randrange(2**31)))
    return specs


def test_the_judge_is_small() -> None:
    assert WEIGHTS.stat().st_size <= 5e6


def test_the_judge_reads_drawings(judge: Judge) -> None:
    specs = individuals(24, 2)
    drawings = [draw(spec) for spec in specs]
    images = np.stack([np.asarray(drawing.image) for drawing in drawings])
    readings = judge.read(images)
    assert np.mean([r.scene == spec.scene for r, spec in zip(readings, specs, strict=True)]) >= 0.95
    assert np.mean([r.kinds() == [spec.subjects[0].kind] for r, spec in zip(readings, specs, strict=True)]) >= 0.95
    truths = [drawing.masks[0] >= 0.5 for drawing in drawings]
    assert np.mean([overlap(r.foreground, truth) for r, truth in zip(readings, truths, strict=True)]) >= 0.9
    portraits = judge.portray(images, [reading.foreground for reading in readings])
    for name in ("kind", "body", "pattern", "accessory"):
        right = [p.attributes[name] == getattr(s.subjects[0], name) for p, s in zip(portraits, specs, strict=True)]
        assert np.mean(right) >= 0.85, name
    embeddings = np.stack([portrait.embedding for portrait in portraits])
    similar = embeddings @ embeddings.T
    same = similar[np.arange(0, 48, 2), np.arange(1, 48, 2)]
    strangers = similar[np.arange(0, 32, 2), np.arange(16, 48, 2)]  # of the same kind
    assert same.mean() >= 0.85 and strangers.mean() <= 0.6 and same.mean() - strangers.mean() >= 0.3


def test_pairs_are_told_apart(judge: Judge) -> None:
    rng = random.Random(HELD_OUT)
    for _ in range(3):
        kinds = rng.sample(KINDS, 2)
        who = tuple(random_identity(rng, kind) for kind in kinds)
        places = tuple(random_placement(rng, slot, 2) for slot in range(2))
        drawing = draw(PictureSpec(who, places, "on the beach", 3))
        (reading,) = judge.read([drawing.image])
        assert set(reading.kinds(2)) == set(kinds)
        for kind, mask in zip(kinds, drawing.masks, strict=True):
            assert overlap(reading.region(kind), mask >= 0.5) > 0.7


def test_a_picture_without_subject_resembles_nothing(judge: Judge) -> None:
    images = np.zeros((2, 128, 128, 3), np.uint8)
    empty = [np.zeros((128, 128), bool)] * 2
    first, second = judge.portray(images, empty)
    assert float(first.embedding @ second.embedding) == 0


def test_missing_or_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"training\.train judge"):
        Judge.load(tmp_path / "none.safetensors")
    Judge(Segmenter((16, 24, 32)), Identifier()).save(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors"):
        Judge.load(tmp_path / "other.safetensors")


def test_saved_and_loaded_is_the_same_judge(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh = Judge(Segmenter(), Identifier())
    fresh.save(tmp_path / "judge.safetensors")
    loaded = Judge.load(tmp_path / "judge.safetensors")
    picture = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), np.uint8)
    whole = [np.ones((128, 128), bool)]
    a, b = (judge.portray(picture, whole)[0].embedding for judge in (fresh, loaded))
    assert np.abs(a - b).max() < 1e-2
    assert np.linalg.norm(a) == pytest.approx(1, abs=1e-4)


def test_cut_outs_do_not_depend_on_where_the_subject_stands() -> None:
    pictures, masks = torch.zeros(2, 3, 128, 128), torch.zeros(2, 128, 128, dtype=torch.bool)
    pattern = torch.rand(3, 40, 40)
    for row, (y, x) in enumerate(((10, 20), (70, 60))):
        pictures[row] = torch.rand(3, 128, 128)
        pictures[row, :, y : y + 40, x : x + 40] = pattern
        masks[row, y : y + 40, x : x + 40] = True
    crops = cut_out(pictures, masks)
    assert crops.shape == (2, 3, CROP_SIZE, CROP_SIZE)
    assert (crops[0] - crops[1]).abs().max() < 1e-4
    assert crops[:, :, :2].abs().max() == 0, "the surroundings are gray"
    where = boxes(masks, margin=0.0)
    assert where[0].tolist() == pytest.approx([2 * 40 / 128 - 1, 2 * 30 / 128 - 1, 40 / 128])
