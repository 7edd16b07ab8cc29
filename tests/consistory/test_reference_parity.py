"""The method against an independent run's numbers (skipped where they are absent).

Half a minute to a minute for each case, so the default suite leaves them to the slow one and compares with
:mod:`tests.consistory.test_against_slow_reference` only, which does it for all parts of the method. The slow one takes
two anchors and a scene, and the other cases with ``--full``.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from consistory_ray.consistory import AnchorCache, ConsiStoryPipeline, Trace
from tests.consistory.published_numbers import OTHERS, REFERENCE, SAMPLE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (REFERENCE / "cases").is_dir(), reason=f"no reference numbers in {REFERENCE}"),
]
CASES = [*SAMPLE, *(pytest.param(name, marks=pytest.mark.full) for name in OTHERS)]
SWITCHES = ("num_inference_steps", "guidance_scale", "mask_dropout", "query_blending", "sdsa", "injection", "freeu")


class Case:
    """A reference case, and what we get for it."""

    def __init__(self, name: str) -> None:
        self.info: dict[str, Any] = json.loads((REFERENCE / "cases" / f"{name}.json").read_text())
        self.arrays = dict(np.load(REFERENCE / "cases" / f"{name}.npz"))
        self.trace = Trace()
        self.final = torch.empty(0)
        self.masks: dict[str, torch.Tensor] = {}
        self.cache: AnchorCache | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])


@pytest.fixture(scope="module")
def pipe() -> ConsiStoryPipeline:
    return ConsiStoryPipeline.from_pretrained(REFERENCE / "model", torch_dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def cases(pipe: ConsiStoryPipeline) -> dict[str, Case]:
    return {}


def rendered(name: str, pipe: ConsiStoryPipeline, cases: dict[str, Case]) -> Case:
    if name not in cases:
        case = Case(name)
        if case.info["subject"] is None:
            settings = {key: case.info[key] for key in SWITCHES}
            subject = pipe.create_subject(
                prompts=case.info["prompts"],
                concepts=case.info["concepts"],
                latents=case["init_latents"],
                output_type="latent",
                trace=case.trace,
                **settings,
            )
            case.final, case.masks, case.cache = subject.images, dict(subject.masks), subject.cache
        else:
            cache = rendered(case.info["subject"], pipe, cases).cache
            assert cache is not None
            result = pipe.render(
                case.info["prompts"], cache, latents=case["init_latents"], output_type="latent", trace=case.trace
            )
            case.final, case.masks = result.images, dict(result.masks)
        cases[name] = case
    return cases[name]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, pipe: ConsiStoryPipeline, cases: dict[str, Case]) -> Case:
    return rendered(request.param, pipe, cases)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, most: float, rms: float | None = None) -> None:
    difference = (ours.float() - theirs.float()).abs()
    found = f"max {difference.max():.2e}, rms {difference.square().mean().sqrt():.2e}"
    assert difference.max() < most, found
    assert rms is None or difference.square().mean().sqrt() < rms, found


def test_prompts_and_schedule(case: Case) -> None:
    assert case.trace.timesteps == case.info["timesteps"]
    assert case.trace.prompt_embeds is not None and case.trace.pooled is not None
    assert_close(case.trace.prompt_embeds, case["prompt_embeds"], 1e-5)
    assert_close(case.trace.pooled, case["pooled"], 1e-5)
    wanted = [[[token] if token >= 0 else [] for token in row] for row in case["token_indices"].T.tolist()]
    assert case.trace.token_positions == wanted


def test_pass_1_latents(case: Case) -> None:
    stride = case.info["latent_stride"]
    for name in (name for name in case.arrays if name.startswith("pass1_latents_")):
        step = int(name[-2:])
        assert_close(case.trace.latents[1, step][..., ::stride, ::stride], case[name], 1e-3)
    last = case.info["num_inference_steps"] - 1
    assert_close(case.trace.latents[1, last], case["pass1_final"], 1e-3)


def test_pass_2_latents(case: Case) -> None:
    stride = case.info["latent_stride"]
    for name in (name for name in case.arrays if name.startswith("pass2_latents_")):
        step = int(name[-2:])
        if (2, step) in case.trace.latents:  # earlier steps are pass 1's
            assert_close(case.trace.latents[2, step][..., ::stride, ::stride], case[name], 1e-2, 1e-3)
    assert_close(case.final, case["pass2_final"], 1e-2, 1e-3)


@pytest.mark.parametrize("level", ["coarse", "fine"])
@pytest.mark.parametrize("number", [1, 2])
def test_masks(case: Case, number: int, level: str) -> None:
    wanted = np.unpackbits(case.arrays[f"pass{number}_mask_{level}"], axis=-1).astype(bool)
    equal = [
        (masks[level].numpy() == wanted[step + 1]).mean()
        for (found_in, step), masks in case.trace.masks.items()
        if found_in == number
    ]
    assert np.mean(equal) >= 0.999 and min(equal) >= 0.99, equal
    if number == 1:
        assert (case.masks[level].flatten(1).numpy() == wanted[-1]).mean() >= 0.999


def test_maps(case: Case) -> None:
    present = (case["token_indices"].T >= 0).flatten()
    last = case.info["num_inference_steps"] - 1
    for number, step, name in ((1, 0, "pass1_map_first"), (1, last, "pass1_map_last"), (2, last, "pass2_map_last")):
        ours = case.trace.maps[number, step].flatten(0, 1)[present]
        assert_close(ours, case[name], 1e-4 if number == 1 else 1e-3)


def test_correspondences(case: Case) -> None:
    trace = case.trace
    assert trace.dift is not None and trace.source_anchor is not None
    assert trace.source_token is not None and trace.source_distance is not None
    assert_close(trace.dift[..., ::2, ::2], case["dift_stride2"], 1e-2)
    distance, index = case["source_distance_fine"], case["source_index_fine"].long()
    if case.info["subject"] is None:
        own = torch.eye(len(distance), dtype=torch.bool)
        distance = distance.masked_fill(own[..., None], torch.inf)
    best, anchor = distance.min(dim=1)
    token = index.gather(1, anchor[:, None])[:, 0]
    assert_close(trace.source_distance, best, 1e-4)
    same = (trace.source_anchor == anchor) & (trace.source_token == token)
    assert same.float().mean() >= 0.999
