"""What pictures are told besides their prompts: other words for the second encoder, negative prompts, sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.method.conditioning import Conditioning
from consistory_ray.errors import InputError
from consistory_ray.settings import MethodSettings

SETTINGS = MethodSettings(num_inference_steps=4, map_steps=2, height=32, width=32)
PROMPTS = ["a cat in snow", "a red cat at night"]


def encoded(pipe: ConsiStoryPipeline, settings: MethodSettings, **words: Any) -> Conditioning:
    with torch.no_grad():
        return pipe.backbone.encode(PROMPTS, settings, **words)


def by_diffusers(pipe: StableDiffusionXLPipeline, **options: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        text, negative, pooled, negative_pooled = pipe.encode_prompt(PROMPTS, device="cpu", **options)
    return torch.cat([negative, text]), torch.cat([negative_pooled, pooled])


@pytest.mark.parametrize(
    ("changes", "words", "options"),
    [
        ({}, {}, {}),
        ({"negative_prompt": "a dog"}, {}, {"negative_prompt": "a dog"}),
        ({}, {"negatives": ["a dog", "a hat"]}, {"negative_prompt": ["a dog", "a hat"]}),
        ({"clip_skip": 1}, {}, {"clip_skip": 1}),
        ({}, {"prompts_2": ["a dog", "a hat"]}, {"prompt_2": ["a dog", "a hat"]}),
        (
            {"negative_prompt": "a dog", "negative_prompt_2": "a hat"},
            {},
            {"negative_prompt": "a dog", "negative_prompt_2": "a hat"},
        ),
    ],
)
def test_texts_are_encoded_as_diffusers_does_it(
    pipe: ConsiStoryPipeline, diffusers_pipe: StableDiffusionXLPipeline, changes: Any, words: Any, options: Any
) -> None:
    found = encoded(pipe, SETTINGS.replace(**changes), **words)
    text, pooled = by_diffusers(diffusers_pipe, **options)
    assert torch.equal(found.text, text) and torch.equal(found.pooled, pooled)
    if changes or words:
        assert not torch.equal(found.text, encoded(pipe, SETTINGS).text)


def test_without_a_negative_prompt_a_picture_has_the_zero_embedding_beside_others_that_have_one(
    pipe: ConsiStoryPipeline,
) -> None:
    found = encoded(pipe, SETTINGS, negatives=["a dog", None])
    alone = encoded(pipe, SETTINGS, negatives=["a dog", "a dog"])
    assert torch.equal(found.text[0], alone.text[0]) and torch.equal(found.text[2:], alone.text[2:])
    assert not found.text[1].any() and not found.pooled[1].any() and found.text[0].any()


def test_a_second_negative_prompt_alone_leaves_the_empty_text_to_the_first_encoder(pipe: ConsiStoryPipeline) -> None:
    alone = encoded(pipe, SETTINGS.replace(negative_prompt_2="a hat"))
    both = encoded(pipe, SETTINGS.replace(negative_prompt="", negative_prompt_2="a hat"))
    empty = encoded(pipe, SETTINGS.replace(negative_prompt="a hat", negative_prompt_2=""))
    assert torch.equal(alone.text, both.text) and not torch.equal(alone.text, empty.text)
    assert torch.equal(empty.text[2:], both.text[2:])


def test_sizes_are_told_in_the_order_of_sdxl(pipe: ConsiStoryPipeline) -> None:
    assert encoded(pipe, SETTINGS).extra["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 4
    told = SETTINGS.replace(original_size=(512, 768), crops_coords_top_left=(4, 8), target_size=(64, 96))
    assert encoded(pipe, told).extra["time_ids"].tolist() == [[512, 768, 4, 8, 64, 96]] * 4


def test_each_picture_has_its_own_words_whatever_its_company(pipe: ConsiStoryPipeline) -> None:
    few = SETTINGS.replace(num_inference_steps=2, map_steps=1, injection=False, query_blending=False)
    subject = pipe.create_subject(PROMPTS[:1], "cat", [1], settings=few, output_type="latent")
    scenes = ["a cat in space", "a cat in the garden", "a cat with a hat"]
    negatives, seconds = ["a dog", None, None], [None, None, "snow"]

    def render(*chosen: int, **changes: Any) -> Any:
        words = {"negative_prompts": [negatives[i] for i in chosen], "prompts_2": [seconds[i] for i in chosen]}
        prompts, seeds = [scenes[i] for i in chosen], [5 + i for i in chosen]
        return pipe.render(prompts, subject, seeds, pad_to=3, output_type="latent", **(words | changes)).images

    together, without = render(0, 1, 2), render(0, 1, 2, negative_prompts=None, prompts_2=None)
    assert [torch.equal(together[i], without[i]) for i in range(3)] == [False, True, False]
    assert torch.equal(render(2, 0), together[[2, 0]])


def test_anchors_have_words_of_their_own_too(pipe: ConsiStoryPipeline) -> None:
    few = SETTINGS.replace(num_inference_steps=1, map_steps=1, injection=False, query_blending=False)

    def anchors(settings: MethodSettings = few, **words: Any) -> Any:
        made = pipe.create_subject(PROMPTS, "cat", [1, 2], settings=settings, output_type="latent", **words)
        return made.images

    assert torch.equal(anchors(negative_prompts="a dog"), anchors(few.replace(negative_prompt="a dog")))
    assert not torch.equal(anchors(negative_prompts=[None, "a dog"])[1], anchors(negative_prompts=[None, None])[1])


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ({"negative_prompts": ["a dog"]}, "negative_prompts"),
        ({"prompts_2": ["a dog"] * 3}, "prompts_2"),
        ({"negative_prompts": ["a dog", 3]}, "negative_prompts[1]"),
        ({"clip_skip": -1}, "clip_skip"),
        ({"clip_skip": 2}, "clip_skip"),  # its encoders have two layers
        ({"crops_coords_top_left": (-1, 0)}, "crops_coords_top_left"),
        ({"original_size": (0, 8)}, "original_size"),
        ({"target_size": (8,)}, "target_size"),
        ({"prompt_syntax": "a1111"}, "prompt_syntax"),
        ({"negative_prompt_2": 3}, "negative_prompt_2"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(pipe: ConsiStoryPipeline, words: dict[str, Any], path: str) -> None:
    with pytest.raises(InputError) as caught:
        pipe.create_subject(PROMPTS, "cat", [1, 2], settings=SETTINGS, **words)
    assert [problem.path for problem in caught.value.problems] == [path]
