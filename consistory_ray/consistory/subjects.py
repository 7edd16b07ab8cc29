"""Making subjects: their anchors, and the cache that scenes are rendered with."""

from __future__ import annotations

from consistory_ray.consistory.cache.anchor_cache import AnchorCache
from consistory_ray.consistory.inputs import make_request
from consistory_ray.consistory.method.backbone import Backbone, OutputType
from consistory_ray.consistory.method.companions import LiveAnchors
from consistory_ray.consistory.method.request import Batch
from consistory_ray.consistory.method.sampler import Sampler
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.consistory.results import Progress, SubjectResult, shaped, ticker
from consistory_ray.errors import AssetError, PictureError
from consistory_ray.settings import MethodSettings


def make_subject(
    backbone: Backbone,
    batch: Batch,
    concepts: tuple[str, ...],
    seeds: tuple[int, ...] | None,
    settings: MethodSettings,
    output_type: OutputType,
    progress: Progress | None,
    trace: Trace | None,
) -> SubjectResult:
    """Sample a subject's anchors together.

    Args:
        backbone: the model.
        batch: the anchors, with columns for the concepts.
        concepts: the words that name the subject.
        seeds: as they were given, None where latents were.
        settings: complete ones.
        output_type, progress, trace: see :meth:`~consistory_ray.consistory.pipeline.ConsiStoryPipeline.create_subject`.

    Raises:
        AssetError: the model produced numbers that are not finite, or an anchor of one colour.
    """
    with backbone.in_use():
        with backbone.installed(settings.freeu) as network:
            request = make_request(backbone, batch, settings)
            anchors, tick = LiveAnchors(request), ticker(progress, request.plan.ticks)
            schedule = backbone.schedule(request.plan.steps)
            result = Sampler(network, schedule, request, anchors, tick, trace).sample()
        images, faults = backbone.decode(result.latents, output_type)
    if faults:  # scenes cannot do without any of them
        raise AssetError(PictureError.of(faults, len(batch.prompts)).message)
    assert result.masks is not None  # every subject has concepts, hence masks
    cache = AnchorCache(
        settings=settings,
        fingerprint=backbone.fingerprint,
        concepts=concepts,
        prompts=batch.prompts,
        seeds=seeds,
        grids={level: (grid.height, grid.width) for level, grid in request.grids.items()},
        tensors=anchors.recorded(result.masks, backbone.dtype),
        feature_level=request.levels.features,
    )
    return SubjectResult(images, shaped(result.masks, request.grids), cache)
