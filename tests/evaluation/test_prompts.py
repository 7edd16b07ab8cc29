"""The prompts that consistency is measured with: fixed, and silent about identity."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.miniature.vocabulary import ACCESSORIES, COLOURS, KINDS, PATTERNS


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


def test_the_prompts_of_the_published_numbers_stay_what_they_are() -> None:
    text = json.dumps([dataclasses.asdict(subject) for subject in consistency_subjects(64)])
    assert hashlib.sha256(text.encode()).hexdigest().startswith("8a0e9c4f71fe8117f66a18da3ea8ee4c")
