"""Rendering pictures that do not depend on each other, scenes and vanilla ones, in batches."""

from __future__ import annotations

from collections.abc import Callable

import torch

from consistory_ray.consistory.inputs import make_request
from consistory_ray.consistory.method.backbone import Backbone, OutputType
from consistory_ray.consistory.method.companions import Companions
from consistory_ray.consistory.method.denoiser import PassResult
from consistory_ray.consistory.method.request import Batch, Request
from consistory_ray.consistory.method.sampler import Sampler
from consistory_ray.consistory.method.steps import StepPlan
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.consistory.results import Progress, RenderResult, shaped, ticker
from consistory_ray.errors import AssetError, InputError, PictureError, Problem
from consistory_ray.settings import MethodSettings


def render_scenes(
    backbone: Backbone,
    batch: Batch,
    settings: MethodSettings,
    companions: Callable[[Request], Companions],
    batch_size: int | None,
    output_type: OutputType,
    progress: Progress | None,
    trace: Trace | None,
) -> RenderResult:
    """Sample a batch in parts.

    Args:
        backbone: the model.
        batch: the pictures.
        settings: complete ones.
        companions: whom the pictures of a part see.
        batch_size: of a part; None for all at once.
        output_type, progress, trace: see :meth:`~consistory_ray.consistory.pipeline.ConsiStoryPipeline.render`.

    Raises:
        InputError: the batch size cannot be one.
        PictureError: some pictures have numbers that are not finite, or one colour. Its ``result`` has the others.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError("the batch size is wrong", [Problem("batch_size", str(batch_size), "must be 1 or more")])
    size = batch_size or len(batch.prompts)
    starts = range(0, len(batch.prompts), size)
    grids, plan = backbone.grids(*batch.latents.shape[-2:]), StepPlan.from_settings(settings)
    tick = ticker(progress, plan.ticks * len(starts))
    results = []
    with backbone.in_use():
        with backbone.installed(settings.freeu) as network:
            for start in starts:
                part = batch.part(start, start + size)
                try:
                    request = make_request(backbone, part, settings)
                    schedule = backbone.schedule(plan.steps)
                    results.append(Sampler(network, schedule, request, companions(request), tick, trace).sample())
                except AssetError:  # this part only
                    results.append(PassResult.given_up(part.latents, grids, masked=part.columns is not None))
        latents = torch.cat([result.latents.cpu() for result in results])
        images, faults = backbone.decode(latents.to(backbone.device), output_type)
    found = [result.masks for result in results if result.masks is not None]
    masks = {level: torch.cat([part[level].cpu() for part in found]) for level in grids} if found else {}
    rendered = RenderResult(images, shaped(masks, grids))
    if faults:
        raise PictureError.of(faults, len(batch.prompts), rendered)
    return rendered
