"""Drawn data sets: seeded, resumable, and told apart by their seed."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from consistory_ray.miniature.architecture import TEXT_LENGTH, build_tokenizer
from consistory_ray.miniature.vocabulary import words
from training.dataset import HELD_OUT_SEED, TRAIN_SEED, Pictures, draw_pictures
from training.held_out import training_captions
from training.world import random_caption, random_spec

COUNT = 6


def drawn(folder: Path, seed: int, pairs: float = 0.12) -> Pictures:
    """A data set drawn in this process."""
    return draw_pictures(folder, COUNT, seed, processes=1, two_subjects=pairs)


def test_a_seed_always_draws_the_same_pictures(tmp_path: Path) -> None:
    first, again = (drawn(tmp_path / name, TRAIN_SEED) for name in ("first", "again"))
    other = drawn(tmp_path / "other", HELD_OUT_SEED)
    assert (
        np.array_equal(first.images, again.images) and first.captions == again.captions and first.specs == again.specs
    )
    assert first.specs != other.specs


def test_training_captions_are_known_without_drawing(tmp_path: Path) -> None:
    pictures = drawn(tmp_path / "run", TRAIN_SEED)
    assert {caption for row in pictures.captions for caption in row} == training_captions(COUNT)


def test_coverage_tells_where_the_subjects_are(tmp_path: Path) -> None:
    pictures = drawn(tmp_path / "run", 5, pairs=1.0)
    assert pictures.coverage.min() >= 0 and pictures.coverage.max() <= 1
    assert (pictures.coverage.astype(float).mean((2, 3)) > 0.03).all()
    assert [len(pictures.kinds(index)) for index in range(COUNT)] == [2] * COUNT


def test_a_finished_folder_is_opened_not_drawn_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    drawn(folder, TRAIN_SEED)
    before = (folder / "images.npy").stat().st_mtime_ns
    assert len(draw_pictures(folder, COUNT, TRAIN_SEED).images) == COUNT
    assert (folder / "images.npy").stat().st_mtime_ns == before


def test_every_word_of_the_world_is_one_token(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    for word in words():
        assert len(tokenizer(word).input_ids) == 3, word  # start, the word, end
    assert len({tokenizer(word).input_ids[1] for word in words()}) == len(words())


def test_captions_fit_the_text_encoder_and_survive_it(tmp_path: Path) -> None:
    tokenizer, rng = build_tokenizer(tmp_path), random.Random(0)
    for _ in range(100):
        text = random_caption(rng, random_spec(rng, 0.5))
        ids = tokenizer(text).input_ids
        assert len(ids) <= TEXT_LENGTH
        assert tokenizer.decode(ids, skip_special_tokens=True).split() == text.split()


@pytest.mark.parametrize("word", ["unicorn", "x", "2026"])
def test_unknown_words_fall_apart_but_are_not_lost(tmp_path: Path, word: str) -> None:
    tokenizer = build_tokenizer(tmp_path)
    assert tokenizer.unk_token_id not in tokenizer(word).input_ids[1:-1]
