"""``callback_on_step_end``: which steps it sees, what it may change, how it stops a call, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDXLCFGCutoffCallback
from torch import Tensor

from consistory_ray.consistory import ConsiStoryPipeline, SubjectResult
from consistory_ray.consistory.method.steps import StepPlan
from consistory_ray.consistory.step_callbacks import Interrupted
from consistory_ray.errors import AssetError, InputError, PictureError
from consistory_ray.settings import MethodSettings

ANCHORS = ["a cat in the garden", "a cat on the beach"]
SCENES = ["a cat in space", "a cat with a hat"]
STEPS = 4
SETTINGS = MethodSettings(num_inference_steps=STEPS, injection_window=(0.3, 0.8), freeu=None)
FORK = StepPlan.from_settings(SETTINGS).fork or 0


class Seen:
    """A callback that keeps what it is shown and changes nothing."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.timesteps: list[float] = []
        self.latents: list[Tensor] = []
        self.pipes: list[Any] = []

    def __call__(self, pipe: Any, step: int, timestep: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        self.pipes.append(pipe)
        self.steps.append(step)
        self.timesteps.append(float(timestep))
        self.latents.append(kwargs["latents"].clone())
        return kwargs


@pytest.fixture(scope="module")
def subject(pipe: ConsiStoryPipeline) -> SubjectResult:
    return pipe.create_subject(ANCHORS, "cat", [1, 2], settings=SETTINGS, output_type="latent")


@pytest.fixture(scope="module")
def plain(pipe: ConsiStoryPipeline, subject: SubjectResult) -> Tensor:
    """The scenes, of which nothing was changed."""
    return rendered(pipe, subject)


@pytest.fixture(scope="module")
def singly(pipe: ConsiStoryPipeline, subject: SubjectResult) -> Tensor:
    """The same, one by one."""
    return rendered(pipe, subject, batch_size=1)


def rendered(pipe: ConsiStoryPipeline, subject: SubjectResult, callback: Any = None, **more: Any) -> Tensor:
    given = {"output_type": "latent", "callback_on_step_end": callback, **more}
    images: Tensor = pipe.render(SCENES, subject, [3, 4], **given).images
    return images


def test_it_sees_the_steps_that_lead_to_the_pictures(pipe: ConsiStoryPipeline, subject: SubjectResult) -> None:
    seen, ticks = Seen(), list[int]()
    made = pipe.create_subject(
        ANCHORS,
        "cat",
        [1, 2],
        settings=SETTINGS,
        output_type="latent",
        callback_on_step_end=seen,
        progress=lambda done, total: ticks.append(done),
    )
    assert 0 < FORK < STEPS, "there are two passes, of which one is not seen to its end"
    assert len(ticks) == 2 * STEPS - FORK
    assert seen.steps == list(range(STEPS))
    assert seen.timesteps == [float(t) for t in pipe.backbone.schedule(SETTINGS).timesteps]
    assert all(shown is pipe.pipe for shown in seen.pipes)
    assert torch.equal(seen.latents[-1], subject.images) and torch.equal(made.images, subject.images)
    assert all(latents.shape == (2, 4, 16, 16) for latents in seen.latents)


@pytest.mark.parametrize("changes", [{}, {"first_pass": "live"}, {"first_pass": "lookahead"}])
def test_scenes_are_seen_batch_by_batch_and_no_copies(
    pipe: ConsiStoryPipeline, subject: SubjectResult, changes: dict[str, Any]
) -> None:
    seen = Seen()
    made = pipe.create_subject(ANCHORS, "cat", [1, 2], settings=SETTINGS, output_type="latent", **changes)
    images = rendered(pipe, made, seen, batch_size=1, pad_to=2, **changes)
    assert seen.steps == [*range(STEPS)] * 2
    assert {len(latents) for latents in seen.latents} == {1}
    assert torch.equal(torch.cat([seen.latents[STEPS - 1], seen.latents[-1]]), images)


def test_vanilla_pictures_are_seen_too(pipe: ConsiStoryPipeline) -> None:
    seen = Seen()
    images = pipe.render_vanilla(
        SCENES[:1], [3], settings=SETTINGS, output_type="latent", callback_on_step_end=seen
    ).images
    assert seen.steps == list(range(STEPS))
    assert torch.equal(seen.latents[-1], images)


def changing(step: int, change: Callable[[Tensor], Tensor], batch: int = 0) -> Any:
    """A callback that changes the latents at a step of one batch."""
    calls: list[int] = []

    def callback(pipe: Any, at: int, timestep: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        calls.append(at)
        if at == step and len(calls) // (STEPS + 1) == batch:
            kwargs["latents"] = change(kwargs["latents"])
        return kwargs

    return callback


@pytest.mark.parametrize("step", [0, STEPS - 1])
def test_what_it_returns_is_gone_on_from(
    pipe: ConsiStoryPipeline, subject: SubjectResult, plain: Tensor, step: int
) -> None:
    changed = rendered(pipe, subject, changing(step, lambda latents: latents + 0.5))
    assert not torch.allclose(changed, plain, atol=0.05)
    if step == STEPS - 1:
        assert torch.equal(changed, plain + 0.5)


def test_it_may_change_them_in_place_and_in_another_dtype(
    pipe: ConsiStoryPipeline, subject: SubjectResult, plain: Tensor
) -> None:
    changed = rendered(pipe, subject, changing(STEPS - 1, lambda latents: latents.add_(1).half()))
    assert changed.dtype == torch.float32 and torch.equal(changed, (plain + 1).half().float())


def test_nothing_returned_is_what_was_shown(pipe: ConsiStoryPipeline, subject: SubjectResult, plain: Tensor) -> None:
    """As in diffusers: also where it was changed in place."""

    def callback(pipe: Any, step: int, timestep: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == STEPS - 1:
            kwargs["latents"].add_(1)
        return {}

    assert torch.equal(rendered(pipe, subject, callback), plain + 1)


def test_one_batchs_changes_stay_in_it(pipe: ConsiStoryPipeline, subject: SubjectResult, singly: Tensor) -> None:

    def first_of_all(latents: Tensor) -> Tensor:
        return latents.mul_(0).add_(3)

    changed = rendered(pipe, subject, changing(0, first_of_all), batch_size=1)
    assert not torch.equal(changed[0], singly[0])
    assert torch.equal(changed[1:], singly[1:])
    assert torch.equal(rendered(pipe, subject, batch_size=1), singly), "and nothing stays for the next call"


def test_a_changed_picture_leaves_its_neighbours(
    pipe: ConsiStoryPipeline, subject: SubjectResult, plain: Tensor
) -> None:

    def spoil(latents: Tensor) -> Tensor:
        latents[1] = torch.nan
        return latents

    with pytest.raises(PictureError, match=r"picture 1: .* not finite") as caught:
        rendered(pipe, subject, changing(FORK, spoil))
    found = caught.value.result.images
    assert torch.equal(found[0], plain[0])


# Stopping -------------------------------------------------------------------------------------------------------------


def interrupting(after: int) -> Any:
    """As diffusers' guide has it, at its so manieth call."""
    calls: list[int] = []

    def callback(pipe: Any, step: int, timestep: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        calls.append(step)
        if len(calls) == after:
            pipe._interrupt = True
        return kwargs

    callback.calls = calls  # type: ignore[attr-defined]
    return callback


def attributes(model: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(model).items() if not name.startswith("__")}


def test_an_interrupted_call_has_what_was_finished(
    pipe: ConsiStoryPipeline, subject: SubjectResult, singly: Tensor
) -> None:
    before = attributes(pipe.pipe)
    stop = interrupting(STEPS + 2)
    with pytest.raises(PictureError) as caught:
        rendered(pipe, subject, stop, batch_size=1)
    assert len(stop.calls) == STEPS + 2
    assert caught.value.failures == {1: "callback_on_step_end stopped the call after step 1"}
    assert torch.equal(caught.value.result.images[0], singly[0])
    assert caught.value.result.images[1:].isnan().all()
    assert caught.value.result.masks["fine"].shape == (2, 8, 8)
    assert attributes(pipe.pipe) == before


def test_an_interrupted_subject_is_none(pipe: ConsiStoryPipeline) -> None:
    with pytest.raises(Interrupted, match="after step 2"):
        pipe.create_subject(ANCHORS, "cat", [1, 2], settings=SETTINGS, callback_on_step_end=interrupting(3))
    assert issubclass(Interrupted, AssetError)


def test_exceptions_come_through_and_leave_the_model_as_found(
    pipe: ConsiStoryPipeline, subject: SubjectResult, plain: Tensor
) -> None:
    before = attributes(pipe.pipe)

    class Cancelled(Exception):
        pass

    def cancel(pipe: Any, step: int, timestep: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        raise Cancelled

    with pytest.raises(Cancelled):
        rendered(pipe, subject, cancel)
    assert attributes(pipe.pipe) == before
    assert torch.equal(rendered(pipe, subject), plain)


# What callbacks of diffusers expect -----------------------------------------------------------------------------------


def test_the_pipeline_tells_what_diffusers_own_tells(
    pipe: ConsiStoryPipeline, subject: SubjectResult, diffusers_pipe: StableDiffusionXLPipeline
) -> None:
    """The same callback sees the same in both; and what had been on the pipeline comes back."""
    told: list[tuple[Any, ...]] = []

    def callback(model: Any, step: int, timestep: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        told.append((step, int(timestep), model.num_timesteps, model.guidance_scale, model.interrupt, *kwargs))
        return kwargs

    off = SETTINGS.replace(sdsa=False, query_blending=False, injection=False, guidance_scale=4.0)
    diffusers_pipe.set_progress_bar_config(disable=True)
    diffusers_pipe(
        "a cat",
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        output_type="latent",
        height=32,
        width=32,
        callback_on_step_end=callback,
    )
    theirs, told[:] = list(told), []
    diffusers_pipe._guidance_scale = 99.0
    pipe.render_vanilla(["a cat"], [1], settings=off, output_type="latent", callback_on_step_end=callback)
    assert told == theirs and len(told) == STEPS
    assert diffusers_pipe._guidance_scale == 99.0


class Nudge(PipelineCallback):
    """One of diffusers' own kind."""

    tensor_inputs = ["latents"]  # noqa: RUF012

    def callback_fn(self, pipeline: Any, step_index: int, timestep: Any, callback_kwargs: Any) -> Any:
        if step_index == int(pipeline.num_timesteps * self.config.cutoff_step_ratio) - 1:
            callback_kwargs["latents"] = callback_kwargs["latents"] + 1
        return callback_kwargs


def test_callbacks_of_diffusers_kind_are_taken(pipe: ConsiStoryPipeline, subject: SubjectResult, plain: Tensor) -> None:
    assert torch.equal(rendered(pipe, subject, MultiPipelineCallbacks([Nudge(), Nudge()])), plain + 1 + 1)
    given: dict[str, Any] = {"seeds": [3], "settings": SETTINGS.replace(num_inference_steps=1), "output_type": "latent"}
    vanilla, nudged = (
        pipe.render_vanilla(SCENES[:1], callback_on_step_end=callback, **given).images for callback in (None, Nudge())
    )
    assert torch.equal(nudged, vanilla + 1)


def returning(value: Any) -> Any:
    return lambda *_: value


def unguided(model: Any, step: int, timestep: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
    model._guidance_scale = 0.0
    return kwargs


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"callback_on_step_end": 3}, "callback_on_step_end: give a function"),
        ({"callback_on_step_end": SDXLCFGCutoffCallback(0.4)}, "SDXLCFGCutoffCallback: .* guidance_interval"),
        (
            {"callback_on_step_end": MultiPipelineCallbacks([Nudge(), SDXLCFGCutoffCallback(0.4)])},
            "Nudge, SDXLCFGCutoffCallback: .* guidance_interval",
        ),
        (
            {
                "callback_on_step_end": returning({}),
                "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
            },
            "callback_on_step_end_tensor_inputs: only latents .* prompt_embeds",
        ),
        (
            {"callback_on_step_end": returning({}), "callback_on_step_end_tensor_inputs": "latents"},
            r"give a list: \['latents'\]",
        ),
        ({"callback_on_step_end": returning(None)}, "return callback_kwargs, a dict .got NoneType"),
        ({"callback_on_step_end": returning({"prompt_embeds": 1})}, "only latents can be changed .got prompt_embeds"),
        ({"callback_on_step_end": returning({"latents": np.zeros(3)})}, "return a tensor .* .got ndarray"),
        (
            {"callback_on_step_end": returning({"latents": torch.zeros(1)})},
            r"shape \(2, 4, 16, 16\) .got \(1,\)",
        ),
        ({"callback_on_step_end": unguided}, "guidance_interval"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    pipe: ConsiStoryPipeline, subject: SubjectResult, given: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        pipe.render(SCENES, subject, [3, 4], output_type="latent", **given)


def test_given_pictures_have_no_steps_of_their_own(pipe: ConsiStoryPipeline) -> None:
    pictures = [np.zeros((32, 32, 3), np.uint8)] * 2
    with pytest.raises(InputError, match="callback_on_step_end: leave it out"):
        pipe.create_subject(ANCHORS, "cat", images=pictures, callback_on_step_end=returning({}))
