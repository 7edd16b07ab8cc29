"""Drawn data sets: seeded, resumable, and told apart by their seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from consistory_ray.evaluation.prompts import training_captions
from consistory_ray.miniature.architecture import TEXT_LENGTH, build_tokenizer
from consistory_ray.miniature.dataset import (
    HELD_OUT_SEED,
    MASK_SIZE,
    TRAIN_SEED,
    _draw_block,
    draw_pictures,
    kind_positions,
    open_pictures,
)
from consistory_ray.miniature.individuals import KINDS
from consistory_ray.miniature.world import PICTURE_SIZE, random_caption, random_spec, words

COUNT = 6


def drawn(folder: Path, seed: int, pairs: float = 0.12) -> Path:
    """A data set drawn in this process."""
    folder.mkdir(parents=True)
    size = (PICTURE_SIZE, PICTURE_SIZE, 3)
    np.lib.format.open_memmap(f"{folder}/images.npy", mode="w+", dtype="uint8", shape=(COUNT, *size)).flush()
    shape = (COUNT, 2, MASK_SIZE, MASK_SIZE)
    np.lib.format.open_memmap(f"{folder}/coverage.npy", mode="w+", dtype="float16", shape=shape).flush()
    _draw_block((str(folder), seed, 0, COUNT, pairs))
    return folder


def test_a_seed_always_draws_the_same_pictures(tmp_path: Path) -> None:
    first, again = (open_pictures(drawn(tmp_path / name, TRAIN_SEED)) for name in ("first", "again"))
    other = open_pictures(drawn(tmp_path / "other", HELD_OUT_SEED))
    assert (
        np.array_equal(first.images, again.images) and first.captions == again.captions and first.specs == again.specs
    )
    assert first.specs != other.specs


def test_training_captions_are_known_without_drawing(tmp_path: Path) -> None:
    pictures = open_pictures(drawn(tmp_path / "run", TRAIN_SEED))
    assert {caption for row in pictures.captions for caption in row} == training_captions(COUNT)


def test_coverage_tells_where_the_subjects_are(tmp_path: Path) -> None:
    pictures = open_pictures(drawn(tmp_path / "run", 5, pairs=1.0))
    assert pictures.coverage.min() >= 0 and pictures.coverage.max() <= 1
    assert (pictures.coverage.astype(float).mean((2, 3)) > 0.03).all()
    assert [len(pictures.kinds(index)) for index in range(COUNT)] == [2] * COUNT


def test_a_finished_folder_is_opened_not_drawn_again(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "run", TRAIN_SEED)
    (folder / "done").touch()
    before = (folder / "images.npy").stat().st_mtime_ns
    assert len(draw_pictures(folder, COUNT, TRAIN_SEED).images) == COUNT
    assert (folder / "images.npy").stat().st_mtime_ns == before


def test_every_word_of_the_world_is_one_token(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tmp_path)
    for word in words():
        assert len(tokenizer(word).input_ids) == 3, word  # start, the word, end
    assert len({tokenizer(word).input_ids[1] for word in words()}) == len(words())


def test_captions_fit_the_text_encoder_and_survive_it(tmp_path: Path) -> None:
    import random

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


def test_kinds_are_found_in_captions(tmp_path: Path) -> None:
    pictures = open_pictures(drawn(tmp_path / "run", 5, pairs=1.0))
    tokenizer = build_tokenizer(tmp_path / "tokenizer")
    ids = {kind: tokenizer.convert_tokens_to_ids(f"{kind}</w>") for kind in KINDS}
    for index, captions in enumerate(pictures.captions):
        tokens = np.array(tokenizer(captions[0]).input_ids)
        found = [
            tokenizer.decode(tokens[position]).strip() for position in kind_positions(pictures, tokens, ids, index)
        ]
        assert found == pictures.kinds(index)
