"""Names of arguments that there are not: what is meant by them, where it can be told."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from consistory_ray.errors import Problem

ARGUMENTS = (
    *("prompts", "concepts", "subject", "seeds", "generator", "latents", "images", "masks", "controls", "settings"),
    *("prompts_2", "negative_prompts", "batch_size", "pad_to", "output_type", "progress", "trace"),
    *("strength", "profile"),
    *("callback_on_step_end", "callback_on_step_end_tensor_inputs"),
)
"""Of the pipeline's calls, besides settings."""

_TEXTS = "give the text instead: concepts are found in its words"
_ELSEWHERE = {
    "prompt": "give prompts, a list",
    "prompt_2": "give prompts_2",
    "num_images_per_prompt": "repeat the prompt instead, prompts=[prompt] * 4, with a seed for each",
    "seed": "give seeds, a list with one per prompt",
    "callback": "give callback_on_step_end instead",
    "callback_steps": "give callback_on_step_end instead, which is called after each step",
    **dict.fromkeys(("prompt_embeds", "pooled_prompt_embeds"), _TEXTS),
    **dict.fromkeys(("negative_prompt_embeds", "negative_pooled_prompt_embeds"), _TEXTS),
    "image": "give images, to create_subject: pictures of the subject that there are",
    "mask_image": "give masks, to create_subject: where the subject is in its images",
    "ip_adapter_image": "give images, to create_subject: pictures of the subject that there are",
    "ip_adapter_image_embeds": "give images, to create_subject: pictures of the subject that there are",
    "control_image": "give controls, a ControlHint for each prompt",
    "controlnet_conditioning_scale": "give controls: each ControlHint has its scale",
    "control_guidance_start": "give controls: each ControlHint has its start",
    "control_guidance_end": "give controls: each ControlHint has its end",
    "cross_attention_kwargs": "leave it out; pipe.pipe.set_adapters sets the weights of LoRAs",
    "return_dict": "leave it out: results have images, masks and, of a subject, its cache",
    "denoising_end": "leave it out: there is no refiner",
    "denoising_start": "leave it out: there is no refiner",
    "steps": "give num_inference_steps",
    "cfg_scale": "give guidance_scale",
    "cfg": "give guidance_scale",
}


def unknown_name(name: str, value: Any, settings: Collection[str]) -> Problem:
    """What to do about an argument of a name that is neither a setting's nor an argument's."""
    fix = _ELSEWHERE.get(name)
    if fix is None:
        near = difflib.get_close_matches(name, (*settings, *ARGUMENTS), 1, cutoff=0.4)
        fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(settings)}"
    return Problem(name, repr(value)[:100], fix)
