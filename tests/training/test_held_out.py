"""Prompts that the model has not seen: fixed, of the whole world, and none of them a caption."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from consistory_ray.miniature.vocabulary import KINDS, SCENES
from training.held_out import CAPTIONED_PICTURES, held_out_prompts, training_captions
from training.train import PICTURES


def test_held_out_prompts_were_never_captions() -> None:
    assert CAPTIONED_PICTURES >= PICTURES
    prompts = held_out_prompts(120)
    texts = [prompt.text for prompt in prompts]
    assert len(set(texts)) == 120 and not set(texts) & training_captions()
    assert len({prompt.seed for prompt in prompts}) == 120
    assert {kind for prompt in prompts for kind in prompt.kinds} == set(KINDS)
    assert {prompt.scene for prompt in prompts} == set(SCENES)
    named = {name for prompt in prompts for subject in prompt.subjects for name in subject.attributes}
    assert named == {"body", "pattern", "accessory"}
    for prompt in prompts:
        words = prompt.text.split()
        assert prompt.text.endswith(prompt.scene) and set(prompt.kinds) <= set(words)
        for subject in prompt.subjects:
            assert set(subject.attributes.values()) <= set(words)
    assert held_out_prompts(10) == prompts[:10]


def test_the_prompts_of_the_published_numbers_stay_what_they_are() -> None:
    text = json.dumps([dataclasses.asdict(prompt) for prompt in held_out_prompts(500)])
    assert hashlib.sha256(text.encode()).hexdigest().startswith("cd4aa3371d2fb7ce445d3f9c8f11f9a4")
    captions = "\n".join(sorted(training_captions()))
    assert hashlib.sha256(captions.encode()).hexdigest().startswith("8a7b6d18dcd49543349b6aeb5889506b")
