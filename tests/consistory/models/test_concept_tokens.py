"""Tokens and characters agree about where a concept stands, whatever signs stand around it."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from consistory_ray.concepts.matching import find_concept, stands
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.consistory.models.prompts import bounded_tokenizers, concept_positions, concept_tokens, text_tokens
from consistory_ray.consistory.models.token_spans import token_spans
from consistory_ray.errors import InputError, PromptError
from tests.consistory.conftest import make_diffusers_pipeline

CONCEPTS = (
    *("hatsune miku (vocaloid)", "🐉", "🐉🐲", "dog...", "red_panda", "cat's eye", "éléphant", "e\u0301le\u0301phant"),
    *("龙", "東京 tower", "CAT", "fire  truck", "(cat)", "r2-d2", "Ångström", "İstanbul", "ΟΔΟΣ", "straße", "고양이"),
    *("❤️", "½ cup", "ﬁsh", "a.b", "{cat}", "cat/dog", "l'ours", "dog’s bone", "cat!!", "x_x", "loaf of bread"),
)
AROUND = (
    *("", " ", "  ", ",", ", ", ".", "...", "(", ")", "),", "_", "-", "'s ", "🐉", "🐲", "!", "\\(", "\\)", '"', "2"),
    *("s ", " é", "\t", "、", "。", "—", "a"),
)


def byte_marks() -> dict[int, str]:
    """How byte-level tokenizers write bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(others)}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """All bytes, some words, and signs that merge with their neighbours as in CLIP's vocabulary: ``),``, ``...,``."""
    marks = byte_marks()
    pieces = [*marks.values(), *(f"{mark}</w>" for mark in marks.values())]
    merges: list[tuple[str, str]] = []
    for word in ("cat", "dog", "miku", "),", "..", "...", "...,", "\\(", ").", '",', "🐉🐲", "🐉", "!!", "(("):
        letters = [marks[byte] for byte in word.encode()]
        parts = [*letters[:-1], f"{letters[-1]}</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
                pieces.append(parts[0] + parts[1])
            parts = [parts[0] + parts[1], *parts[2:]]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    made: Any = CLIPTokenizer(vocab=vocab, merges=merges)
    made.model_max_length = 400
    return made


def cases(count: int) -> list[tuple[str, str]]:
    rng = random.Random(7)
    made = []
    for _ in range(count):
        concept, other = rng.choice(CONCEPTS), rng.choice((*CONCEPTS, "nothing"))
        form = rng.choice(("NFC", "NFD", "NFKC"))
        inside = rng.choice((other, other.upper(), other.title(), unicodedata.normalize(form, other)))
        prompt = f"a {rng.choice(AROUND)}{inside}{rng.choice(AROUND)} x {rng.choice(AROUND)}"
        made.append((prompt + (concept + rng.choice(AROUND) if rng.random() < 0.4 else ""), concept))
    return made


def test_characters_and_tokens_never_disagree(tokenizer: Any) -> None:
    found = 0
    for prompt, concept in cases(1500):
        match = find_concept(prompt, concept)
        assert stands(prompt, concept) == (match is not None)
        try:
            positions = concept_tokens(tokenizer, [prompt], [concept])[0][0]
        except PromptError:
            positions = []
        assert bool(positions) == (match is not None), (prompt, concept)
        if match is None:
            continue
        found += 1
        spans = token_spans(tokenizer, prompt)
        letters = {index for place in match.places for start, end in place for index in range(start, end)}
        covered = {index for position in positions for index in range(*spans[position - 1])}
        needed = {i for i in letters if not prompt[i].isspace() and not unicodedata.combining(prompt[i])}
        assert needed <= covered, (prompt, concept)
        assert all(letters.intersection(range(*spans[position - 1])) for position in positions), (prompt, concept)
    assert 300 < found < 1450


def test_a_sign_that_merges_with_its_neighbour_belongs_to_the_concept(tokenizer: Any) -> None:
    prompt = "hatsune miku (vocaloid), in the forest"
    assert "),</w>" in tokenizer.tokenize(prompt)
    positions = concept_tokens(tokenizer, [prompt], ["hatsune miku (vocaloid)"])[0][0]
    ids = tokenizer(prompt)["input_ids"]
    assert tokenizer.convert_ids_to_tokens([ids[position] for position in positions])[-1] == "),</w>"
    assert positions == list(range(1, len(positions) + 1))


class SlowTokenizer:
    """What transformers 4 has: tokens without offsets."""

    is_fast = False

    def __init__(self, fast: Any) -> None:
        self._fast = fast
        self.model_max_length = fast.model_max_length
        self.byte_decoder = {mark: byte for byte, mark in byte_marks().items()}

    def __call__(self, text: str, **options: Any) -> Any:
        assert "return_offsets_mapping" not in options
        return self._fast(text, **options)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return list(self._fast.convert_ids_to_tokens(ids))

    def get_added_vocab(self) -> dict[str, int]:
        return {}


def test_a_tokenizer_without_offsets_gives_the_same(tokenizer: Any) -> None:
    slow = SlowTokenizer(tokenizer)
    for prompt, concept in cases(300):
        if find_concept(prompt, concept) is not None:
            assert concept_tokens(slow, [prompt], [concept]) == concept_tokens(tokenizer, [prompt], [concept])


def test_a_tokenizer_that_rewrites_the_text_is_refused(tokenizer: Any) -> None:
    slow = SlowTokenizer(tokenizer)
    slow.byte_decoder = dict.fromkeys(slow.byte_decoder, 0)
    with pytest.raises(PromptError, match="fast tokenizer"):
        concept_tokens(slow, ["a cat"], ["cat"])


def test_words_that_stand_apart_may_be_cut_off_in_part(tokenizer: Any) -> None:
    prompt = "loaf of fresh bread"
    whole = concept_tokens(tokenizer, [prompt], ["loaf of bread"])[0][0]
    first_word = [position for position in whole if token_spans(tokenizer, prompt)[position - 1][1] <= 4]
    assert concept_tokens(tokenizer, [prompt], ["loaf of bread"], limit=2 + 10) == [[first_word]]
    with pytest.raises(PromptError, match="reads only the first 2 tokens"):
        concept_tokens(tokenizer, [prompt], ["loaf of bread"], limit=4)


@pytest.fixture
def own_pipe(tmp_path: Path) -> StableDiffusionXLPipeline:
    """The tiny model, to be changed."""
    return make_diffusers_pipeline(tmp_path)


def test_positions_are_those_after_a_textual_inversion_of_several_vectors(own_pipe: Any) -> None:
    prompt = "a photo of <moss> cat"
    before = concept_positions(own_pipe, [prompt], ["cat"])
    own_pipe.tokenizer.add_tokens(["<moss>", "<moss>_1", "<moss>_2"])
    expanded = own_pipe.maybe_convert_prompt(prompt, own_pipe.tokenizer)
    assert expanded == "a photo of <moss> <moss>_1 <moss>_2 cat"
    ids = own_pipe.tokenizer(expanded)["input_ids"]
    cat = own_pipe.tokenizer.convert_ids_to_tokens(ids).index("cat</w>")
    assert concept_positions(own_pipe, [prompt], ["cat"]) == [[[cat]]] != before
    vectors = own_pipe.tokenizer.convert_tokens_to_ids(["<moss>", "<moss>_1", "<moss>_2"])
    expected = [ids.index(vector) for vector in vectors]
    assert concept_positions(own_pipe, [prompt], ["<moss>"]) == [[expected]]
    assert concept_positions(own_pipe, [prompt], ["<moss> cat"]) == [[[*expected, cat]]]


def test_both_encoders_prompts_are_looked_at(own_pipe: Any, tokenizer: Any) -> None:
    own_pipe.tokenizer_2 = tokenizer
    words = concept_tokens(own_pipe.tokenizer, ["zebra cat"], ["cat"])
    marks = concept_tokens(tokenizer, ["zebra cat"], ["cat"])
    assert concept_positions(own_pipe, ["zebra cat"], ["cat"]) == [[sorted({*words[0][0], *marks[0][0]})]]
    own_pipe.tokenizer = None
    assert concept_positions(own_pipe, ["zebra cat"], ["cat"]) == marks


def test_a_tokenizer_without_a_limit_is_bounded_by_its_text_encoder(own_pipe: Any) -> None:
    seeds, prompts = [1, 2], ["a cat in snow", "a cat at night"]
    steps = {"num_inference_steps": 1}
    before = ConsiStoryPipeline(own_pipe).create_subject(prompts, "cat", seeds, output_type="latent", **steps)
    own_pipe.tokenizer.model_max_length = int(1e30)
    assert text_tokens(own_pipe) == 16
    after = ConsiStoryPipeline(own_pipe).create_subject(prompts, "cat", seeds, output_type="latent", **steps)
    assert own_pipe.tokenizer.model_max_length == int(1e30), "left as found"
    assert bool((before.images == after.images).all())
    with pytest.raises(RuntimeError), bounded_tokenizers(own_pipe):
        raise RuntimeError
    assert own_pipe.tokenizer.model_max_length == int(1e30)


def test_scenes_of_a_subject_that_was_found_as_written_are_masked_as_ever(pipe: ConsiStoryPipeline) -> None:
    def tokens(anchors: list[str]) -> list[list[int]]:
        made = pipe.create_subject(anchors, ["cat", "dog"], [1, 2], num_inference_steps=1, output_type="latent")
        trace = Trace()
        pipe.render(["a cat with dogs"], made.cache, [3], output_type="latent", trace=trace)
        return trace.token_positions[0]

    assert tokens(["a cat a dog", "the cat the dog"]) == [[2], []]
    cat, dogs = tokens(["a cat a dog", "the cat the dogs"])
    assert cat == [2] and dogs


@pytest.mark.parametrize("seeds", [[1.5, 2], ["1", 2], [True, 2], [None, 2], 7])
def test_seeds_that_are_no_whole_numbers_are_named(pipe: ConsiStoryPipeline, seeds: Any) -> None:
    with pytest.raises(InputError, match="seeds"):
        pipe.create_subject(["a cat", "a cat here"], "cat", seeds)


def test_seeds_of_numpy_and_whole_floats_are_taken(pipe: ConsiStoryPipeline) -> None:
    import numpy as np
    import torch

    def latents(seeds: Any) -> Any:
        made = pipe.create_subject(
            ["a cat", "a cat in snow"], "cat", seeds, num_inference_steps=1, output_type="latent"
        )
        assert made.cache.seeds == (1, 2) and all(type(seed) is int for seed in made.cache.seeds)
        return made.images

    expected = latents([1, 2])
    for seeds in (
        np.array([1, 2]),
        [np.int64(1), np.uint8(2)],
        [1.0, np.float32(2)],
        torch.tensor([1, 2]),
        range(1, 3),
    ):
        assert torch.equal(latents(seeds), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_unet_is_refused_in_plain_words(own_pipe: Any) -> None:
    import torch

    from consistory_ray.errors import CheckpointError

    plain = own_pipe.unet
    own_pipe.unet = torch.compile(plain)
    with pytest.raises(CheckpointError, match=r"torch\.compile") as caught:
        ConsiStoryPipeline(own_pipe)
    assert caught.value.problems[0].fix == "put the original back, pipe.unet = pipe.unet._orig_mod"
    own_pipe.unet = plain
    plain.up_blocks[0] = torch.compile(plain.up_blocks[0])
    with pytest.raises(CheckpointError, match=r"up_blocks\.0"):
        ConsiStoryPipeline(own_pipe)
