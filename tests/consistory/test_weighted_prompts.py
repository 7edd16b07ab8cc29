"""Prompts with weights and of any length: encoded as compel does it, concepts found, no picture hangs on another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compel import CompelForSDXL

from consistory_ray.concepts.compel_syntax import plain_text
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.method.conditioning import Conditioning
from consistory_ray.consistory.models.prompts import bounded_tokenizers
from consistory_ray.consistory.models.weighted import Weights
from consistory_ray.errors import InputError, PromptError
from consistory_ray.settings import MethodSettings
from tests.consistory.conftest import MAX_LENGTH, make_diffusers_pipeline

SETTINGS = MethodSettings(
    num_inference_steps=1, map_steps=1, height=32, width=32, injection=False, query_blending=False
)
SETTINGS = SETTINGS.replace(prompt_syntax="compel")
LONG = "a photo of a red cat with a hat in the garden at night. the red fire truck on the beach, a dog in snow, a cat"
WRITTEN = [
    "a cat in snow",
    "a (red cat)1.3 at night",
    "a cat++ in the (garden)0.5 with a hat",
    '("a cat in snow", "a dog at night").blend(0.7, 0.3)',
    '("a cat in snow", "a hat").and(1, 0.5)',
    LONG,
    f"a (red hat)1.4 with {LONG}",
]


def encoded(
    pipe: ConsiStoryPipeline, prompts: list[str], settings: MethodSettings = SETTINGS, **words: Any
) -> Conditioning:
    with torch.no_grad():
        return pipe.backbone.encode(prompts, settings, **words)


@pytest.mark.parametrize("prompt", WRITTEN)
def test_texts_are_encoded_as_compel_does_it(pipe: ConsiStoryPipeline, prompt: str) -> None:
    settings = SETTINGS.replace(negative_prompt=f"a dog, {LONG}")
    found = encoded(pipe, [prompt], settings)
    with torch.no_grad(), bounded_tokenizers(pipe.pipe):
        theirs = CompelForSDXL(pipe.pipe)
        if ".and" in prompt:  # weights of conjunctions crash where compel pools
            theirs.compel_2.requires_pooled = False
            theirs.compel_1.requires_pooled = False
            halves = [one([prompt, settings.negative_prompt]) for one in (theirs.compel_1, theirs.compel_2)]
            text, negative = torch.cat(halves, dim=-1).split(1)
        else:
            made = theirs(prompt, negative_prompt=settings.negative_prompt)
            text, negative = made.embeds, made.negative_embeds
            assert torch.equal(found.pooled, torch.cat([made.negative_pooled_embeds, made.pooled_embeds]))
    torch.testing.assert_close(found.text, torch.cat([negative, text]), rtol=0, atol=1e-6)
    assert found.text.shape[1] % MAX_LENGTH == 0


def test_plain_words_are_what_plain_syntax_makes_of_them(pipe: ConsiStoryPipeline) -> None:
    for changes in (
        {},
        {"negative_prompt": "a dog"},
        {"clip_skip": 1, "negative_prompt": "a dog", "negative_prompt_2": "a hat"},
    ):
        settings = SETTINGS.replace(**changes)
        words = {"prompts_2": ["a hat in snow"]}
        ours = encoded(pipe, ["a cat, at night"], settings, **words)
        plain = encoded(pipe, ["a cat, at night"], settings.replace(prompt_syntax="plain"), **words)
        torch.testing.assert_close(ours.text, plain.text, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.pooled, plain.pooled, rtol=0, atol=1e-5)


def test_a_weight_counts(pipe: ConsiStoryPipeline) -> None:
    texts = [encoded(pipe, [prompt]).text for prompt in ("a red cat", "a (red)1.5 cat", "a (red)0.5 cat")]
    assert not any(torch.equal(texts[0], text) for text in texts[1:])


@pytest.mark.parametrize(
    ("prompt", "concept", "occurrences"),
    [
        ("a cat in snow", "cat", 1),
        ("a (red)1.3 cat in snow", "red cat", 1),
        ("a (red cat)1.3++ in snow", "red cat", 1),
        (LONG, "cat", 2),  # in the first chunk and in the last one
        (LONG, "fire truck", 1),
        (f"{LONG}, {LONG}", "fire truck", 2),
        ('("a dog in snow", "a cat at night").blend(1, 1)', "cat", 1),
        (f'("a dog, {LONG}", "a cat").and()', "cat", 3),
    ],
)
def test_a_concept_is_found_through_chunks_and_weights(
    pipe: ConsiStoryPipeline, prompt: str, concept: str, occurrences: int
) -> None:
    ((positions,),) = pipe.backbone.weighted_positions([prompt], [concept])
    tokenizer = pipe.pipe.tokenizer
    wanted = tokenizer(concept, add_special_tokens=False).input_ids
    assert len(positions) == occurrences * len(wanted)
    (length,) = pipe.backbone.text_lengths([prompt], SETTINGS)
    assert max(positions) < length
    if "blend" in prompt:
        assert positions == [2]
        return
    with bounded_tokenizers(pipe.pipe), torch.no_grad():
        theirs = CompelForSDXL(pipe.pipe)
        theirs.compel_1.requires_pooled = False
        tokens = theirs.compel_1(prompt, return_tokenization=True)[1][0].flatten().tolist()
    assert len(tokens) == length
    assert [tokens[position] for position in positions] == wanted * occurrences


def test_a_textual_inversion_of_several_vectors_is_several_tokens(tmp_path: Path) -> None:
    pipe = make_diffusers_pipeline(tmp_path)
    pipe.tokenizer.add_tokens(["<moss>", "<moss>_1", "<moss>_2"])
    weights = Weights(pipe)
    assert weights.positions(["a (<moss>)1.2 in snow"], ["<moss>"], every=True, exact_suffices=False) == [[[2, 3, 4]]]


def test_no_picture_hangs_on_the_lengths_of_others(pipe: ConsiStoryPipeline) -> None:
    subject = pipe.create_subject(
        [f"a cat, {LONG}", "a (red)1.2 cat"], "cat", [1, 2], settings=SETTINGS, output_type="latent"
    )
    scenes = ["a cat in snow", f"a (cat)1.2 at night, {LONG}", "a red cat on the beach"]
    lengths = pipe.backbone.text_lengths(scenes, SETTINGS)
    assert lengths[0] == lengths[2] < lengths[1]
    assert pipe.backbone.text_lengths(["a cat"], SETTINGS, negatives=[LONG]) == pipe.backbone.text_lengths(
        [LONG], SETTINGS
    )

    def render(*chosen: int) -> Any:
        seeds = [5 + i for i in chosen]
        return pipe.render([scenes[i] for i in chosen], subject, seeds, pad_to=2, output_type="latent")

    together, backwards = render(0, 1, 2), render(2, 1, 0)
    assert torch.equal(backwards.images, together.images.flip(0))
    assert all(torch.equal(mask.flip(0), together.masks[level]) for level, mask in backwards.masks.items())
    assert torch.equal(render(2).images[0], together.images[2])


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("a (cat in snow", "a bracket is not closed"),
        ("a cat) in snow", "a bracket is closed that was not opened"),
        ("a cat.swap(dog) in snow", "swap"),
        ("a cat withLora(moss, 1)", "name LoRAs under loras"),
        ('("a cat", "a dog").blend(1)', "mismatched prompts/weights"),
        ('a photo of ("a cat", "a dog").blend(1, 1)', "must be the whole prompt"),
        ('("a cat", "a dog").and() in snow', "compel cannot read it"),
        ("a dog in snow", "must contain 'cat'"),
    ],
)
def test_what_cannot_be_read_is_refused_by_prompt(pipe: ConsiStoryPipeline, prompt: str, what: str) -> None:
    with pytest.raises(PromptError, match="prompts\\[1\\]") as caught:
        pipe.create_subject(["a cat", prompt], "cat", [1, 2], settings=SETTINGS)
    assert what in str(caught.value)


def test_without_compel_one_error_names_the_extra(pipe: ConsiStoryPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consistory_ray.consistory.models.weighted.compel_is_here", lambda: False)
    with pytest.raises(InputError, match=r"consistory-ray\[compel\]"):
        pipe.create_subject(["a cat"], "cat", [1], settings=SETTINGS)


def test_concepts_are_looked_for_in_what_prompts_say() -> None:
    assert plain_text("a (moss-green)1.3 dragon", "compel") == "a moss-green dragon"
    assert plain_text("a (moss-green)1.3 dragon", "plain") == "a (moss-green)1.3 dragon"
