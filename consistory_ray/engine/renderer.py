"""What a worker drives: something that makes a subject's anchors once and renders its scenes from their cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistory_ray.plan import Asset, SubjectPlan

CacheBuffer: TypeAlias = NDArray[np.uint8]
"""An anchor cache as one flat array of bytes; read-only for everybody once it is in the object store."""


@dataclass(frozen=True, slots=True)
class RendererSpec:
    """What a worker tells its factory.

    Attributes:
        model: as the job names it.
        device: ``"cpu"`` or ``"cuda"``.
        torch_dtype: ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        threads: CPU threads the renderer may use.
    """

    model: str
    device: str
    torch_dtype: str
    threads: int


@dataclass(frozen=True, slots=True)
class MadeSubject:
    """A subject's anchors.

    Attributes:
        images: one picture per anchor.
        cache_buffer: what its scenes need; a flat uint8 array that the caller owns.
        seconds: how long it took.
    """

    images: list[Image]
    cache_buffer: CacheBuffer
    seconds: float


class Renderer(Protocol):
    """One loaded model on one device. All methods are called from one thread."""

    @property
    def fingerprint(self) -> str:
        """Identifies the loaded weights."""

    def make_subject(self, subject: SubjectPlan) -> MadeSubject:
        """Make the subject's anchors. Only ``concepts``, ``anchors`` and ``settings`` are looked at."""

    def load_cache(self, buffer: CacheBuffer) -> Any:
        """A buffer as :meth:`render` wants it, without copying what is large.

        Raises:
            CacheMismatchError: it belongs to another model, other settings or another format.
        """

    def render(self, scenes: Sequence[Asset], cache: Any) -> list[Image]:
        """One picture per scene, in order. A picture does not depend on which others are rendered with it."""


RendererFactory: TypeAlias = Callable[[RendererSpec], Renderer]
"""Called once in each worker; must be picklable."""


class ConsiStoryRenderer:
    """The real renderer: :class:`consistory_ray.ConsiStoryPipeline` on one device."""

    def __init__(self, spec: RendererSpec) -> None:
        import torch

        from consistory_ray.consistory.pipeline import ConsiStoryPipeline

        torch.set_num_threads(spec.threads)
        dtype = None if spec.torch_dtype == "auto" else getattr(torch, spec.torch_dtype)
        self._pipeline = ConsiStoryPipeline.from_pretrained(spec.model, torch_dtype=dtype, device=spec.device)
        self._fingerprint = self._pipeline.fingerprint

    @property
    def fingerprint(self) -> str:
        """Of the pipeline's weights."""
        return self._fingerprint

    def make_subject(self, subject: SubjectPlan) -> MadeSubject:
        """See :class:`Renderer`."""
        import time

        started = time.perf_counter()
        made = self._pipeline.create_subject(
            prompts=[anchor.prompt for anchor in subject.anchors],
            concepts=list(subject.concepts),
            seeds=[anchor.seed for anchor in subject.anchors],
            settings=subject.settings,
        )
        return MadeSubject(list(made.images), made.cache.to_buffer(), time.perf_counter() - started)

    def load_cache(self, buffer: CacheBuffer) -> Any:
        """See :class:`Renderer`."""
        from consistory_ray.consistory.anchor_cache import AnchorCache, check_cache

        cache = AnchorCache.from_buffer(buffer)
        check_cache(cache, self._fingerprint, None)
        return cache

    def render(self, scenes: Sequence[Asset], cache: Any) -> list[Image]:
        """See :class:`Renderer`."""
        result = self._pipeline.render(
            prompts=[scene.prompt for scene in scenes],
            subject=cache,
            seeds=[scene.seed for scene in scenes],
            batch_size=len(scenes),
        )
        return list(result.images)


def consistory_renderer(spec: RendererSpec) -> Renderer:
    """The default factory."""
    return ConsiStoryRenderer(spec)
