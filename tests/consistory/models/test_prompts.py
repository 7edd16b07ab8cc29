"""Concepts are found as words, wherever the text encoder can see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from consistory_ray.consistory.inputs import concept_columns
from consistory_ray.consistory.models.prompts import concept_tokens
from consistory_ray.errors import PromptError
from tests.consistory.conftest import MAX_LENGTH, write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    ("prompt", "concepts", "positions"),
    [
        ("a photo of a cat", ["cat"], [[5]]),
        ("A CAT, in space", ["Cat"], [[2]]),
        ("a cat with a cat", ["cat"], [[2, 5]]),
        ("a red fire truck in snow", ["fire truck"], [[3, 4]]),
        ("a cat with a red hat", ["cat", "red hat"], [[2], [5, 6]]),
        ("a cat at night", ["cat", "hat"], [[2], []]),
        ("a zebra", ["zebra"], [[2, 3, 4, 5, 6]]),  # a word of five tokens
        ("a bacat, a cat", ["cat"], [[7]]),  # only as a word of its own
    ],
)
def test_positions(tokenizer: Any, prompt: str, concepts: list[str], positions: list[list[int]]) -> None:
    assert concept_tokens(tokenizer, [prompt], concepts) == [positions]


def test_every_bad_prompt_is_named_at_once(tokenizer: Any) -> None:
    long = " ".join(["a"] * (MAX_LENGTH - 2)) + " cat"
    with pytest.raises(PromptError) as caught:
        concept_tokens(tokenizer, ["a dog", "a cat", "the catfish", long], ["cat"])
    assert [problem.path for problem in caught.value.problems] == ["prompts[0]", "prompts[2]", "prompts[3]"]
    assert "must contain 'cat' as a word of its own" in str(caught.value)
    assert f"reads only the first {MAX_LENGTH - 2} tokens" in str(caught.value)


def test_a_second_occurrence_may_be_cut_off(tokenizer: Any) -> None:
    prompt = "cat " + " ".join(["a"] * (MAX_LENGTH - 3)) + " cat"
    assert concept_tokens(tokenizer, [prompt], ["cat"]) == [[[1]]]


@pytest.mark.parametrize("concepts", [[], [""], ["cat", " "]])
def test_empty_concepts_are_refused(tokenizer: Any, concepts: list[str]) -> None:
    with pytest.raises(PromptError, match="concepts cannot be used"):
        concept_tokens(tokenizer, ["a cat"], concepts)


def test_columns_average_over_a_concepts_tokens() -> None:
    columns = concept_columns([[[1, 3], [2]], [[4], []]], 5)
    expected = torch.zeros(2, 5, 2)
    expected[0, [1, 3], 0] = 0.5
    expected[0, 2, 1] = expected[1, 4, 0] = 1
    assert torch.equal(columns, expected)


def test_the_tokenizer_of_these_tests_reads_whole_words(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer("fire truck").input_ids)[1:-1] == ["fire</w>", "truck</w>"]
