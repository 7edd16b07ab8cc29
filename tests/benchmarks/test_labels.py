"""The labelled pictures are there, in the world's words, and the command compares the judge with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.labels import COUNT, LABELLED, accuracy, labelled, read, sample
from consistory_ray.evaluation.bootstrap import share_interval
from consistory_ray.miniature.judge import ATTRIBUTES, Judge
from consistory_ray.miniature.vocabulary import SCENES


def test_labels_are_in_the_worlds_words() -> None:
    images, labels, _ = labelled()
    assert images.shape == (COUNT, 128, 128, 3) and len(labels) == COUNT
    values = {**ATTRIBUTES, "scene": SCENES, "accessory_colour": (*ATTRIBUTES["accessory_colour"], "none")}
    for label in labels:
        assert tuple(label) == LABELLED
        for name, told in label.items():
            assert told is None or set(told.split("|")) <= set(values[name]), (name, told)


def test_a_judge_who_sees_the_same_is_right_and_another_is_not() -> None:
    labels = labelled()[1]
    same = [{name: told and told.split("|")[-1] for name, told in label.items()} for label in labels]
    assert {found["accuracy"] for found in accuracy(labels, same).values()} == {1.0}
    shifted = same[1:] + same[:1]
    assert max(found["accuracy"] for found in accuracy(labels, shifted).values()) < 0.9
    assert accuracy(labels, same)["body"]["told"] == COUNT > accuracy(labels, same)["pattern"]["told"]


def test_the_judge_knows_kinds_and_scenes_of_sampled_pictures() -> None:
    images, labels, _ = labelled()
    found = accuracy(labels[:16], read(Judge.load(), images[:16]))
    assert found["kind"]["accuracy"] == found["scene"]["accuracy"] == 1 and found["body"]["accuracy"] > 0.6


def test_an_interval_of_a_share() -> None:
    assert share_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson's, in any table
    assert share_interval(48, 48)[1] == pytest.approx(1) and 0.9 < share_interval(48, 48)[0] < 0.95
    with pytest.raises(ValueError, match="at least one"):
        share_interval(0, 0)


def test_others_are_drawn_from_a_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "model"
    cache.mkdir(parents=True)
    for index in range(COUNT + 2):
        np.savez(cache / f"{index:03}.npz", image=np.full((128, 128, 3), 4 * (index - index // COUNT), np.uint8))
    sample(tmp_path / "cache", 1, tmp_path / "labels")
    images, labels, _ = labelled(tmp_path / "labels")
    assert len(labels) == COUNT and {*labels[0].values()} == {None}
    assert len({round(float(image.mean()) / 4) for image in images}) == COUNT, "each once"
    assert len(list((tmp_path / "labels").glob("to_label_*.png"))) == 4
    with pytest.raises(SystemExit, match="0 models"):
        sample(tmp_path / "labels", 1, tmp_path / "more")
