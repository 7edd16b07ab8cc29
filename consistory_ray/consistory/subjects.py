"""Making subjects: their anchors, and the cache that scenes are rendered with."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from consistory_ray.consistory.cache.anchor_cache import AnchorCache
from consistory_ray.consistory.given_pictures import GivenPictures
from consistory_ray.consistory.inputs import make_request
from consistory_ray.consistory.method.backbone import Backbone
from consistory_ray.consistory.method.companions import LiveAnchors
from consistory_ray.consistory.method.given import (
    LIGHT,
    GivenAnchors,
    NoisedPath,
    light_masks,
    sweep,
    token_masks,
)
from consistory_ray.consistory.method.layout import Level
from consistory_ray.consistory.method.masks import Masks, overlap
from consistory_ray.consistory.method.request import Batch, Request
from consistory_ray.consistory.method.sampler import Sampler
from consistory_ray.consistory.results import RenderResult, SubjectResult, shaped, ticker
from consistory_ray.consistory.watching import Watch
from consistory_ray.errors import AssetError, PictureError
from consistory_ray.guards.numerics import NOT_FINITE
from consistory_ray.settings import MethodSettings

LEAST_AGREEMENT = 0.85
"""Below it the masks of single calls differ so much that a picture probably does not show the subject. Of the bundled
model's drawings (chosen on 24, tried on 40) 33 of 40 scenes without a subject lie below it, and none of 40 with one."""
LEAST_OVERLAP = 0.3
"""Intersection over union of a given and a found mask below which one of them is probably wrong."""
_NAME_IT = "let its prompt say what it shows and the concept name it, or give a mask"


def make_subject(
    backbone: Backbone,
    batch: Batch,
    concepts: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    settings: MethodSettings,
    watch: Watch,
) -> SubjectResult:
    """Sample a subject's anchors together.

    Args:
        backbone: the model.
        batch: the anchors, with columns for the concepts.
        concepts: the words that name the subject.
        seeds: as they were given, None where latents were.
        settings: complete ones.
        watch: what the caller wants to see.

    Raises:
        AssetError: the model produced numbers that are not finite, or an anchor of one colour.
    """
    with backbone.in_use(), watch.following(settings) as after_step:
        with backbone.installed(settings.freeu) as network:
            request = make_request(backbone, batch, settings, anchors=True)
            anchors, tick = LiveAnchors(request), ticker(watch.progress, request.plan.ticks)
            schedule = backbone.schedule(settings)
            step_end = after_step(len(batch.prompts))
            result = Sampler(network, schedule, request, anchors, tick, watch.trace, step_end).sample()
        images, faults = watch.decoded(backbone, result.latents)
    if faults:  # scenes cannot do without any of them
        raise AssetError(PictureError.of(faults, len(batch.prompts)).message)
    assert result.masks is not None  # every subject has concepts, hence masks
    cache = _cache(backbone, request, concepts, seeds, anchors.recorded(result.masks, backbone.dtype))
    return SubjectResult(images, shaped(result.masks, request.grids), cache)


def given_subject(
    backbone: Backbone,
    batch: Batch,
    concepts: tuple[str, ...],
    pictures: GivenPictures,
    settings: MethodSettings,
    watch: Watch,
) -> SubjectResult:
    """Make a subject of given pictures: they are its anchors, with noise instead of being sampled.

    Args:
        pictures: of the size that the settings have.
        backbone, batch, concepts, settings, watch: as for :func:`make_subject`.

    Raises:
        AssetError: the model produced numbers that are not finite.
        PictureError: it finds no subject in a picture without a mask; the result has the masks that were found.
    """
    with backbone.in_use():
        clean = backbone.encode_pictures(pictures.pixels)
        if not bool(clean.isfinite().all()):
            raise AssetError(NOT_FINITE)
        with backbone.installed(settings.freeu) as network:
            request = make_request(backbone, batch, settings, anchors=True)
            tick = ticker(watch.progress, len(LIGHT) + request.plan.steps)
            light = NoisedPath(
                backbone.schedule(MethodSettings(num_inference_steps=backbone.max_steps)), clean, batch.noise
            )
            found, agreement = light_masks(network, light, request, tick)
            notices = [list(sentences) for sentences in pictures.notices]
            masks, faults = _masks(found, agreement, pictures, request, notices)
            if faults:
                result = RenderResult(list(pictures.images), shaped(masks, request.grids))
                raise PictureError.of(faults, len(batch.prompts), result)
            anchors = GivenAnchors(request, masks)
            path = NoisedPath(backbone.schedule(settings), clean, batch.noise)
            sweep(network, path, request, anchors, tick, watch.trace)
    images = watch.chosen({"pil": list(pictures.images), "pt": pictures.pixels, "latent": clean.cpu()})
    cache = _cache(backbone, request, concepts, batch.seeds, anchors.recorded(masks, backbone.dtype))
    cache = replace(cache, pictures=pictures.digests)
    told = {index: "; ".join(sentences) for index, sentences in enumerate(notices) if sentences}
    return SubjectResult(images, shaped(masks, request.grids), cache, told)


def _masks(
    found: Masks, agreement: Tensor, pictures: GivenPictures, request: Request, notices: list[list[str]]
) -> tuple[dict[Level, Tensor], dict[int, str]]:
    """The masks in force, in which those that were given win over those that were found.

    Args:
        found: by the model.
        agreement: of its calls about each picture's.
        pictures: with the given ones.
        request: of the pictures.
        notices: for each picture; gets what is odd about its mask.

    Returns:
        The masks; and by index of a picture why it cannot be used: nothing, or everything, was found.
    """
    masks: dict[Level, Tensor] = {level: mask.clone() for level, mask in found.items()}
    faults = {}
    for index, given in enumerate(pictures.masks):
        if given is not None:
            for level, mask in token_masks(given, request).items():
                masks[level][index] = mask.to(masks[level].device)
            level = request.levels.masks
            common = float(overlap(masks[level], found[level])[index])
            if common < LEAST_OVERLAP:
                notices[index].append(
                    f"the given mask and what the model takes for the subject have {common:.0%} in common"
                )
        elif any(bool(mask[index].all()) or not bool(mask[index].any()) for mask in masks.values()):
            faults[index] = f"the subject was not found in this picture; {_NAME_IT}"
        elif agreement[index] < LEAST_AGREEMENT:
            notices[index].append(f"where the subject is in this picture is unclear: {_NAME_IT}")
    return masks, faults


def _cache(
    backbone: Backbone,
    request: Request,
    concepts: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    tensors: dict[str, Tensor],
) -> AnchorCache:
    return AnchorCache(
        settings=request.settings,
        fingerprint=backbone.fingerprint,
        concepts=concepts,
        prompts=request.batch.prompts,
        seeds=seeds,
        grids={level: (grid.height, grid.width) for level, grid in request.grids.items()},
        tensors=tensors,
        feature_level=request.levels.features,
        codec=request.settings.cache_codec,
        levels=request.plan.levels,
    )
