"""Compiled pictures: no graph breaks in a block, few graphs serve all layers and steps, and the numbers stay."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from consistory_ray.consistory import ConsiStoryPipeline, SubjectResult
from consistory_ray.consistory.method.attention_kernel import shared_lengths
from consistory_ray.consistory.method.compiling import check_compiler
from consistory_ray.errors import InputError
from tests.consistory.second_backbone import SecondBackbone

ANCHORS, SCENES = ["a photo of a cat in the garden", "a cat on the beach"], ["a cat in space", "a cat with a hat"]
FEW_STEPS: dict[str, Any] = {"num_inference_steps": 8, "query_blend_until": 0.25, "injection_window": (0.25, 0.6)}
FAST: dict[str, Any] = {"first_pass": "lookahead", "reuse_deep": (0.4, 2), "shared_every": 2}
GRAPHS = 16
"""What a block may have to do for scenes: of either level plain, to be shared, blended, injected, with maps, and so on;
28 blocks of either pass and 8 steps would be hundreds."""


@pytest.fixture
def own() -> Iterator[ConsiStoryPipeline]:
    """The bundled model, which nobody else has: compiled models stay compiled."""
    torch._dynamo.reset()
    counters.clear()
    yield ConsiStoryPipeline.from_pretrained("miniature", device="cpu", dtype=torch.float32)
    torch._dynamo.reset()


def made(pipe: ConsiStoryPipeline) -> SubjectResult:
    return pipe.create_subject(ANCHORS, ["cat"], [1, 2], output_type="latent", **FEW_STEPS)


def rendered(pipe: ConsiStoryPipeline, subject: SubjectResult, **changes: Any) -> Tensor:
    found: Tensor = pipe.render(SCENES, subject, [3, 4], output_type="latent", **changes).images
    return found


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def test_a_scene_takes_few_graphs_and_no_graph_breaks(own: ConsiStoryPipeline) -> None:
    subject = made(own)
    exact, fast = rendered(own, subject), rendered(own, subject, **FAST)
    own.compile(backend="eager")
    assert torch.equal(rendered(own, subject), exact)
    assert 8 <= graphs() <= GRAPHS and not counters["graph_break"]
    before = graphs()
    assert torch.equal(rendered(own, subject), exact)
    assert graphs() == before, "another batch of the same size takes no further graph"
    assert torch.equal(rendered(own, subject, **FAST), fast)
    assert graphs() <= before + 2 and not counters["graph_break"]
    assert torch.equal(made(own).images, subject.images), "anchors are not compiled"
    assert graphs() <= before + 2
    with shared_lengths("bucketed"):
        near = rendered(own, subject)
        assert 0 < (near - exact).abs().max() < 1e-3
    assert graphs() <= before + 2 + GRAPHS and not counters["graph_break"]


def test_a_vanilla_picture_compiles_too(own: ConsiStoryPipeline) -> None:
    settings = own.default_settings.replace(num_inference_steps=3)
    expected = own.render_vanilla(SCENES, [3, 4], settings=settings, output_type="latent").images
    own.compile(backend="eager")
    found = own.render_vanilla(SCENES, [3, 4], settings=settings, output_type="latent").images
    assert torch.equal(found, expected) and 0 < graphs() <= 4 and not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_inductors_pictures_are_those_of_eager_mode(own: ConsiStoryPipeline) -> None:
    subject = made(own)
    expected = rendered(own, subject)
    own.compile()
    found = rendered(own, subject)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)
    assert (found - expected).square().mean().sqrt() < 1e-3
    assert graphs() <= GRAPHS and not counters["graph_break"]


def test_what_cannot_be_compiled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot be compiled"):
        ConsiStoryPipeline(SecondBackbone()).compile()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"install g\+\+"):
        check_compiler("inductor")
    check_compiler("eager")
