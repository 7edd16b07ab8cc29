"""The method on a model of another kind, through the same code: what holds of SDXL holds of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, SubjectResult, Trace
from consistory_ray.consistory.method.attention import AttentionCall, Sharing
from consistory_ray.consistory.method.backbone import Backbone
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.errors import PromptError
from consistory_ray.settings import MethodSettings
from tests.consistory.second_backbone import BLOCKS, PatchTransformer, SecondBackbone

ANCHORS, SCENES = ["a cat in the garden", "the cat at sea"], ["a cat in snow", "my cat in space", "cat at night"]
SETTINGS = MethodSettings(num_inference_steps=10, freeu=None, guidance_scale=3.0)


@pytest.fixture(scope="module")
def pipe() -> ConsiStoryPipeline:
    backbone = SecondBackbone()
    assert isinstance(backbone, Backbone)
    return ConsiStoryPipeline(backbone, SETTINGS)


@pytest.fixture(scope="module")
def subject(pipe: ConsiStoryPipeline) -> SubjectResult:
    return pipe.create_subject(ANCHORS, "cat", [1, 2], output_type="latent")


def far(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def test_a_cache_has_the_models_own_level(subject: SubjectResult) -> None:
    cache = AnchorCache.from_buffer(subject.cache.to_buffer())
    assert cache.feature_level == "patches" and list(cache.grids) == ["patches"]
    assert cache.masks()["patches"].shape == (2, 8, 8) and 0 < cache.masks()["patches"].float().mean() < 1
    assert cache.shared(Pass(1, 4))["patches"].shape[:2] == (BLOCKS - 1, 2)
    assert cache.injected(2).shape[:2] == (BLOCKS - 1, int(cache.masks()["patches"].sum()))


def test_scenes_do_not_depend_on_their_batch(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    together = pipe.render(SCENES, subject, [3, 4, 5], output_type="latent")
    for index, scene in enumerate(SCENES):
        alone = pipe.render([scene], subject, [3 + index], output_type="latent")
        assert far(alone.images[0], together.images[index]) < 1e-4
        assert torch.equal(alone.masks["patches"][0], together.masks["patches"][index])


@pytest.mark.parametrize("part", ["sdsa", "query_blending", "injection"])
def test_each_part_of_the_method_moves_its_pictures(
    pipe: ConsiStoryPipeline, subject: SubjectResult, part: str
) -> None:
    without = pipe.create_subject(ANCHORS, "cat", [1, 2], output_type="latent", **{part: False})
    assert far(without.images, subject.images) > 1e-3


def deep_calls(pipe: ConsiStoryPipeline, subject: SubjectResult, **changes: Any) -> tuple[Tensor, int, int]:
    """One scene's latents, and how many rows its last block and its outermost layer have seen."""
    network: Any = pipe.backbone.network  # type: ignore[attr-defined]
    rows = {"deep": 0, "out": 0}
    parts = ((network.blocks[-1].mlp, "deep"), (network.out, "out"))
    hooks = [
        part.register_forward_pre_hook(lambda _, inputs, what=what: rows.update({what: rows[what] + len(inputs[0])}))
        for part, what in parts
    ]
    try:
        images = pipe.render(SCENES[:1], subject, [3], output_type="latent", **changes).images
    finally:
        for hook in hooks:
            hook.remove()
    return images, rows["deep"], rows["out"]


@pytest.mark.parametrize(
    ("changes", "deep", "out"),
    [  # of 10 steps two rows each, the fork is at step 1; pass 1 in full has 10 calls and pass 2 has 9
        ({}, 38, 38),
        ({"first_pass": "lookahead"}, 2 * (10 + 3), 2 * (10 + 3)),
        ({"first_pass": "live"}, 20, 20),
        ({"reuse_deep": (0.4, 2)}, 38 - 2 * 6, 38),
        ({"first_pass": "live", "reuse_deep": (0.4, 2), "guidance_interval": (0.0, 0.7)}, 20 - 6 - 1, 20 - 3),
    ],
)
def test_what_is_saved_on_scenes_is_saved_here_too(
    pipe: ConsiStoryPipeline, subject: SubjectResult, changes: dict[str, Any], deep: int, out: int
) -> None:
    made = pipe.create_subject(ANCHORS, "cat", [1, 2], output_type="latent", **changes)
    images, *rows = deep_calls(pipe, made)
    assert rows == [deep, out]
    exact, *_ = deep_calls(pipe, subject)
    vanilla = pipe.render_vanilla(SCENES[:1], [3], output_type="latent").images
    assert not changes or 1e-4 < far(images, exact) < 2 * far(vanilla, exact)
    together = pipe.render(SCENES, made, [3, 4, 5], output_type="latent").images
    assert far(together[0], images[0]) < 1e-4


def test_a_prompt_without_the_concept_is_refused(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    with pytest.raises(PromptError, match="no concept"):
        pipe.render(["a dog"], subject, [3])


class Joint:
    """One scene and its anchors in one batch: the scene attends to what the anchors' live layers hold.

    The anchors' kept tokens are those of a trace. Their attention, which is theirs alone, is left to a subject's own
    latents: at every step the anchors' rows are computed again from these.
    """

    def __init__(self, network: PatchTransformer, trace: Trace, settings: MethodSettings) -> None:
        self.network, self.trace, self.settings = network, trace, settings
        self.shares, self.injects, self.compiles, self.step = False, False, False, 0

    def sharing(self, layer: object) -> Sharing:
        return self.attend

    def injection(self, layer: object) -> None:
        """No injection."""

    def attend(self, attn: object, hidden: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Rows: two anchors and a scene, unconditional half first. Written out, row by row."""
        heads, outputs = 2, []
        kept = self.trace.masks[1, self.step - 1]["patches"] if self.step else None
        for row in range(6):
            half, image = divmod(row, 3)
            keys, values = [key[row]], [value[row]]
            for anchor in range(2):
                if kept is not None and anchor != image:
                    keys.append(key[3 * half + anchor][kept[anchor]])
                    values.append(value[3 * half + anchor][kept[anchor]])
            q, k, v = (
                t.unflatten(-1, (heads, -1)).transpose(0, 1) for t in (query[row], torch.cat(keys), torch.cat(values))
            )
            weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
            outputs.append((weights @ v).transpose(0, 1).flatten(1))
        return torch.stack(outputs)


@torch.no_grad()
def test_a_scene_from_the_cache_is_the_one_rendered_jointly_with_its_anchors(pipe: ConsiStoryPipeline) -> None:
    settings = SETTINGS.replace(mask_dropout=0.0, query_blending=False, injection=False)
    trace, seeds = Trace(), [1, 2, 3]
    subject = pipe.create_subject(ANCHORS, "cat", seeds[:2], settings=settings, output_type="latent", trace=trace)
    cached = pipe.render(SCENES[:1], subject, seeds[2:], output_type="latent").images

    backbone = pipe.backbone
    conditioning, schedule = (
        backbone.encode([*ANCHORS, SCENES[0]], settings),
        backbone.schedule(MethodSettings(num_inference_steps=10)),
    )
    latents = torch.stack([torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    with backbone.installed(None) as network:
        assert isinstance(network, PatchTransformer)
        joint = Joint(network, trace, settings)
        for joint.step in range(10):
            sample, timestep = schedule.model_input(latents, joint.step)
            call = AttentionCall(exchange=joint)
            rows = network.finish(network.begin(torch.cat([sample] * 2), timestep, conditioning, call), call)
            free, bound = rows.chunk(2)
            latents = schedule.advance(free + 3.0 * (bound - free), latents, joint.step, lambda step: torch.empty(0))

    assert far(latents[:2], subject.images) < 1e-4
    assert far(latents[2:], cached) < 1e-4
    vanilla = pipe.render_vanilla(SCENES[:1], seeds[2:], output_type="latent").images
    assert far(vanilla, cached) > 1e-2
