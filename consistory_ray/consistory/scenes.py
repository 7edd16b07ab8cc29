"""Rendering pictures that do not depend on each other, scenes and vanilla ones, in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from consistory_ray.consistory.inputs import make_request
from consistory_ray.consistory.method.backbone import Backbone
from consistory_ray.consistory.method.companions import Companions
from consistory_ray.consistory.method.denoiser import PassResult
from consistory_ray.consistory.method.request import Batch, Request
from consistory_ray.consistory.method.sampler import Sampler
from consistory_ray.consistory.method.steps import StepPlan
from consistory_ray.consistory.results import RenderResult, shaped, ticker
from consistory_ray.consistory.step_callbacks import Interrupted
from consistory_ray.consistory.watching import Watch
from consistory_ray.errors import AssetError, InputError, PictureError, Problem
from consistory_ray.settings import MethodSettings


def render_scenes(
    backbone: Backbone,
    batch: Batch,
    settings: MethodSettings,
    companions: Callable[[Request], Companions],
    batch_size: int | None,
    pad_to: int | None,
    watch: Watch,
) -> RenderResult:
    """Sample a batch in parts.

    Args:
        backbone: the model.
        batch: the pictures.
        settings: complete ones.
        companions: whom the pictures of a part see.
        batch_size: of a part; None for ``pad_to``, or all at once.
        pad_to: how many pictures each part is made of, copies that are dropped included; None adds none.
        watch: what the caller wants to see.

    Raises:
        InputError: the batch size cannot be one, or not be padded to this.
        PictureError: some pictures have numbers that are not finite, or one colour, or the caller's callback
            has stopped before they were done. Its ``result`` has the others.
    """
    size = _part_size(len(batch.prompts), batch_size, pad_to)
    parts = batch.parts(size)
    grids, levels = backbone.grids(*batch.latents.shape[-2:]), backbone.schedule(settings).levels
    tick = ticker(watch.progress, StepPlan.from_settings(settings, levels).ticks * len(parts))
    results: list[PassResult] = []
    stopped: dict[int, str] = {}
    with backbone.in_use(), watch.following(settings) as after_step:
        with backbone.installed(settings.freeu) as network:
            for number, images_of_part in enumerate(parts):
                part = batch.part(images_of_part)
                count = len(part.prompts)
                part = part if pad_to is None else part.padded(pad_to)
                try:
                    request = make_request(backbone, part, settings)
                    schedule = backbone.schedule(settings)
                    result = Sampler(
                        network, schedule, request, companions(request), tick, watch.trace, after_step(count)
                    ).sample()
                except Interrupted as stop:
                    left = [image for later in parts[number:] for image in later]
                    rest = batch.part(left)
                    results.append(PassResult.given_up(rest.latents, grids, masked=rest.columns is not None))
                    stopped = dict.fromkeys(left, str(stop))
                    break
                except AssetError:  # this part only
                    result = PassResult.given_up(part.latents, grids, masked=part.columns is not None)
                results.append(result.first(count))
        rows = _places(parts)
        latents = torch.cat([result.latents.cpu() for result in results])[rows]
        images, faults = watch.decoded(backbone, latents.to(backbone.device))
    found = [result.masks for result in results if result.masks is not None]
    masks = {level: torch.cat([part[level].cpu() for part in found])[rows] for level in grids} if found else {}
    rendered = RenderResult(images, shaped(masks, grids))
    if faults := faults | stopped:
        raise PictureError.of(faults, len(batch.prompts), rendered)
    return rendered


def _places(parts: Sequence[Sequence[int]]) -> list[int]:
    """Where each picture is among those of all parts."""
    order = [image for part in parts for image in part]
    return sorted(range(len(order)), key=order.__getitem__)


def _part_size(count: int, batch_size: int | None, pad_to: int | None) -> int:
    """Pictures in a part, of so many."""
    problems = [
        Problem(name, str(value), "must be 1 or more")
        for name, value in (("batch_size", batch_size), ("pad_to", pad_to))
        if value is not None and value < 1
    ]
    size = batch_size or pad_to or count
    if not problems and pad_to is not None and pad_to < size:
        problems.append(Problem("pad_to", str(pad_to), f"must be at least batch_size, {size}"))
    if problems:
        raise InputError("the batch size is wrong", problems)
    return size
