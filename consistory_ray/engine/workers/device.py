"""A worker's device: one renderer, one thread, a few anchor caches, and the book of what its time went into."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from consistory_ray.engine.rendering import CacheBuffer, MadeSubject, Renderer, RendererFactory, RendererSpec
from consistory_ray.errors import AssetError, RunInterrupted

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistory_ray.plan.plan import Asset, SubjectPlan

T = TypeVar("T")

KEPT_CACHES = 2


@dataclass(frozen=True, slots=True)
class DeviceTime:
    """What one action took.

    Attributes:
        seconds: from start to end.
        idle: seconds between the end of the action before it and this one's start.
        phases: ``load`` (of an anchor cache), then ``anchors`` or ``scenes`` or what the renderer splits them into.
        cache_bytes: bytes of anchor cache that were loaded for it.
        memory: peak bytes of device memory, None where the renderer cannot tell.
        masks: where the subject is in each picture that was made, as the renderer tells; empty where it does not.
    """

    seconds: float
    idle: float
    phases: dict[str, float]
    cache_bytes: int = 0
    memory: int | None = None
    masks: Sequence[NDArray[np.bool_] | None] = ()

    def masks_of(self, assets: Sequence[Asset]) -> dict[str, NDArray[np.bool_] | None]:
        """Of each asset, by its id, the mask that the renderer has told; None where it has told none."""
        if len(self.masks) != len(assets):
            return dict.fromkeys(asset.asset_id for asset in assets)
        return {asset.asset_id: mask for asset, mask in zip(assets, self.masks, strict=True)}


class Device:
    """Runs whatever touches the device, in the order in which it was asked to.

    Args:
        factory: makes the renderer, on the device's thread, while this constructor returns.
        spec: for the factory.
    """

    def __init__(self, factory: RendererFactory, spec: RendererSpec) -> None:
        self._thread = ThreadPoolExecutor(1, "device")
        self._caches: OrderedDict[str, Any] = OrderedDict()
        self._draining = False
        self._idle_since: float | None = None
        self._renderer = self._thread.submit(factory, spec)

    @property
    def renderer(self) -> Renderer:
        """The renderer; waits for it to be loaded, and raises what its factory raised."""
        return self._renderer.result()

    def drain(self) -> None:
        """Finish what runs, refuse the rest."""
        self._draining = True

    def make_subject(self, subject: SubjectPlan) -> tuple[MadeSubject, DeviceTime]:
        """Make a subject's anchors.

        Raises:
            RunInterrupted: the device is being drained.
        """
        return self._run(
            lambda renderer, phases: self._timed(renderer, phases, "anchors", renderer.make_subject, subject)
        )

    def check_cache(self, buffer: CacheBuffer) -> None:
        """Raise what the renderer has against a cache."""
        self._run(lambda renderer, phases: (renderer.load_cache(buffer), 0))

    def join_caches(self, buffers: Sequence[CacheBuffer]) -> CacheBuffer:
        """The cache of several subjects that meet; raises what the renderer has against it."""
        return self._run(lambda renderer, phases: (renderer.join_caches(buffers), 0))[0]

    def render(
        self, subject: SubjectPlan, scenes: Sequence[Asset], buffer: CacheBuffer
    ) -> tuple[Sequence[Image | AssetError], DeviceTime]:
        """Render scenes from a subject's anchor cache, of which the last few are kept.

        Raises:
            RunInterrupted: the device is being drained.
        """

        def act(renderer: Renderer, phases: dict[str, float]) -> tuple[Sequence[Image | AssetError], int]:
            started = time.perf_counter()
            cache, loaded = self._caches.pop(subject.subject_key, None), 0
            if cache is None:
                cache, loaded = renderer.load_cache(buffer), buffer.nbytes
                phases["load"] = time.perf_counter() - started
            self._caches[subject.subject_key] = cache
            while len(self._caches) > KEPT_CACHES:
                self._caches.popitem(last=False)
            result, _ = self._timed(
                renderer, phases, "scenes", lambda batch: renderer.render(batch, cache, subject.settings), scenes
            )
            return result, loaded

        return self._run(act)

    def forget(self, subject_key: str) -> None:
        """Let go of a subject's cache."""
        self._thread.submit(self._caches.pop, subject_key, None)

    def _timed(
        self, renderer: Renderer, phases: dict[str, float], name: str, action: Callable[[Any], T], value: Any
    ) -> tuple[T, int]:
        started = time.perf_counter()
        result = action(value)
        phases.update(getattr(renderer, "phases", None) or {name: time.perf_counter() - started})
        return result, 0

    def _run(self, action: Callable[[Renderer, dict[str, float]], tuple[T, int]]) -> tuple[T, DeviceTime]:
        def act() -> tuple[T, DeviceTime]:
            if self._draining:
                raise RunInterrupted("not started: the run was asked to stop, or the machine is going")
            renderer = self._renderer.result()
            started = time.perf_counter()
            idle = 0.0 if self._idle_since is None else started - self._idle_since
            phases: dict[str, float] = {}
            try:
                result, loaded = action(renderer, phases)
            finally:
                self._idle_since = time.perf_counter()
            memory = getattr(renderer, "peak_memory", None)
            masks = tuple(getattr(renderer, "masks", ()))
            return result, DeviceTime(self._idle_since - started, idle, phases, loaded, memory, masks)

        return self._thread.submit(act).result()
