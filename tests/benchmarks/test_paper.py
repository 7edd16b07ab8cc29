"""The paper's figures: what they are drawn from, and the ConsiStory+ layout from end to end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.paper.baselines import _first_as_good
from benchmarks.paper.components import everything_is_subject
from benchmarks.paper.consistory_plus import run_through
from benchmarks.paper.ip_adapter import ImagePrompts
from benchmarks.paper.plus_file import (
    FEWEST,
    MOST,
    PROMPTS,
    SLICE,
    SUBJECTS,
    known_slice,
    mended,
    plus_document,
)
from benchmarks.paper.seeds import reseeded
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.method.layout import Grid
from consistory_ray.consistory.method.masks import AttentionMaps
from consistory_ray.errors import InputError
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.jobs.job import load_job
from consistory_ray.miniature.vocabulary import words
from consistory_ray.plan.plan import make_plan
from training.ip_adapter import FEATURES
from training.train import IP_ADAPTER


@given(st.integers(0, 50))
def test_our_file_has_the_size_and_the_oddities_of_the_published_one(seed: int) -> None:
    document = plus_document(seed)
    assert document == plus_document(seed)
    items = [one for category in document.values() for one in category]
    assert (len(items), sum(len(one["settings"]) for one in items)) == (SUBJECTS, PROMPTS) == (192, 1100)
    for one in items:
        assert set(one) == {"concept_token", "settings", "style", "subject"}
        assert FEWEST <= len(one["settings"]) <= MOST and len(set(one["settings"])) == len(one["settings"])
    assert max(Counter(map(str, items)).values()) == 2, "one subject occurs twice with the very same words"
    assert {"", "A photo of"} < {one["style"] for one in items}
    assert any(" " in one["concept_token"] for one in items)


def test_a_subject_that_occurs_twice_is_refused_or_gets_an_id(tmp_path: Path) -> None:
    path = tmp_path / "plus.yaml"
    path.write_text(yaml.safe_dump(plus_document()))
    with pytest.raises(InputError) as caught:
        make_plan(load_job(str(path)))
    assert len(caught.value.problems) == 1 and "the same individual" in str(caught.value.problems[0])
    document, repeated = mended(plus_document())
    assert repeated == [plus_document()["tales"][-1]["subject"]] and mended(document) == (document, [])
    path.write_text(yaml.safe_dump(document))
    plan = make_plan(load_job(str(path)))
    assert (len(plan.subjects), plan.anchor_count + plan.scene_count) == (SUBJECTS, PROMPTS)
    assert len({asset.path for asset in plan.assets()}) == len({asset.asset_id for asset in plan.assets()}) == PROMPTS


def test_the_slice_is_what_the_bundled_model_knows() -> None:
    slice_ = known_slice(plus_document())
    assert list(slice_) == ["miniature"] and len(slice_["miniature"]) == SLICE
    said = {word for one in slice_["miniature"] for text in (one["subject"], *one["settings"]) for word in text.split()}
    assert said <= set(words())


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_every_prompt_of_the_file_is_rendered_and_evaluated(tmp_path: Path) -> None:
    document, _ = mended(plus_document())
    found = run_through(document, tmp_path)
    counts = dict.fromkeys(("prompts", "pictures", "files", "evaluated"), PROMPTS)
    assert found == {"subjects": SUBJECTS, **counts, "not_evaluated": 0}


def test_masks_that_cover_everything_are_gone_afterwards() -> None:
    maps = AttentionMaps(torch.ones(2, 3, 1), 1, "coarse")
    maps.add(torch.rand(2, 16, 1, generator=torch.Generator().manual_seed(0)))
    maps.end_step()
    grids = {"coarse": Grid(4, 4), "fine": Grid(8, 8)}
    before = maps.masks(grids)
    with everything_is_subject():
        covered = maps.masks(grids)
    assert {level: (mask.shape, bool(mask.all())) for level, mask in covered.items()} == {
        "coarse": ((2, 16), True),
        "fine": ((2, 64), True),
    }
    assert not before["fine"].all() and torch.equal(maps.masks(grids)["fine"], before["fine"])


def test_other_seeds_change_the_anchors_alone() -> None:
    (subject,) = consistency_subjects(1)
    others = [reseeded(subject, number) for number in range(4)]
    assert others[0] == subject and len({one.anchor_seeds for one in others}) == 4
    assert {(one.prompts, one.seeds, one.anchors) for one in others} == {
        (subject.prompts, subject.seeds, subject.anchors)
    }


def test_the_time_to_a_consistent_subject_is_that_of_the_smallest_budget_that_gets_there() -> None:
    found = _first_as_good(
        {
            "vanilla": {"to_anchors": 0.2},
            "consistory": {"to_anchors": 0.8, "seconds": 9.0},
            "word, 50 steps": {"to_anchors": 0.5, "seconds": 50.0},
            "ip adapter, scale 1": {"to_anchors": 0.8, "seconds": 0.1},
            "lora, 50 steps": {"to_anchors": 0.7, "seconds": 60.0},
            "word, 200 steps": {"to_anchors": 0.6, "seconds": 200.0},
            "lora, 200 steps": {"to_anchors": 0.85, "seconds": 240.0},
        }
    )
    assert found == {"consistory": 9.0, "word": None, "ip adapter": 0.1, "lora": 240.0}


@pytest.fixture(scope="module")
def adapter() -> ImagePrompts:
    """The committed IP-Adapter on the bundled model."""
    return ImagePrompts()


def test_at_scale_zero_the_ip_adapter_draws_the_vanilla_pictures(adapter: ImagePrompts) -> None:
    (subject,) = consistency_subjects(1, scenes=2)
    pipeline = ConsiStoryPipeline.from_pretrained("miniature", device="cpu")
    settings = pipeline.default_settings.replace(num_inference_steps=6)
    plain = pipeline.render_vanilla(subject.prompts, subject.seeds, concepts=[subject.kind], settings=settings).images
    shown = adapter.embedded(plain)
    assert shown.shape == (2, 2, FEATURES) and not shown[0].any() and shown[1].any(1).all()
    drawn = {scale: adapter.render(subject.prompts, subject.seeds, shown, scale, settings) for scale in (0.0, 1.0)}

    def apart(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> float:
        pixels = [np.stack([np.asarray(picture, dtype=float) for picture in pictures]) for pictures in (one, other)]
        return float(np.abs(pixels[0] - pixels[1]).max())

    assert apart(drawn[0.0], plain) <= 1, "scale 0 is vanilla up to rounding"
    assert apart(drawn[1.0], plain) > 30, "the adapter does something"


def test_an_ip_adapter_of_other_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    with safe_open(IP_ADAPTER, "pt") as file:
        notes = dict(file.metadata()) | {"base_revision": "of another model"}
    save_file(load_file(IP_ADAPTER), path, notes)
    with pytest.raises(InputError, match="of another model") as caught:
        ImagePrompts(path)
    assert len(caught.value.problems) == 1
