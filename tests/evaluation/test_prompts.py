"""The benchmarks' prompts: fixed, unseen, and silent about identity where they must be."""

from __future__ import annotations

from consistory_ray.evaluation.prompts import (
    CAPTIONED_PICTURES,
    consistency_subjects,
    held_out_prompts,
    training_captions,
)
from consistory_ray.miniature.individuals import ACCESSORIES, COLOURS, KINDS, PATTERNS
from consistory_ray.miniature.train import PICTURES
from consistory_ray.miniature.world import SCENES


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


def test_consistency_prompts_leave_the_individual_open() -> None:
    subjects = consistency_subjects(30)
    assert {subject.kind for subject in subjects} == set(KINDS)
    for subject in subjects:
        assert len(subject.anchors) == 2 and len(subject.prompts) == len(subject.scenes) == 6
        assert len({*subject.anchors, *subject.prompts}) == 8 and len({*subject.seeds, *subject.anchor_seeds}) == 8
        for text in (*subject.anchors, *subject.prompts):
            assert subject.kind in text.split()
            assert not {*COLOURS, *PATTERNS, *ACCESSORIES} & set(text.split())
    assert consistency_subjects(4) == subjects[:4]
