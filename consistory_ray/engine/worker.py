"""What runs in each worker process: one renderer on one device, and the writing of its pictures.

Everything that touches the device runs on one thread, in order. Encoding and writing happen on the thread of the call,
so that the next call's batch is rendered meanwhile. Errors come back as :class:`~consistory_ray.engine.faults.Failure`
values: an exception that reaches Ray always means that the process or the machine is gone.
"""

from __future__ import annotations

import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from consistory_ray.engine.anchor_store import load_cache, save_cache
from consistory_ray.engine.faults import Failure
from consistory_ray.engine.renderer import CacheBuffer, MadeSubject, Renderer, RendererFactory, RendererSpec
from consistory_ray.engine.retries import with_backoff
from consistory_ray.errors import AssetError, RunInterrupted
from consistory_ray.output.assets import WrittenAsset, asset_parameters, encode_png, write_asset
from consistory_ray.output.run_record import RUN_RECORD
from consistory_ray.output.storage import OutputStore

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistory_ray.plan import Asset, SubjectPlan

T = TypeVar("T")

KEPT_CACHES = 2
WRITE_THREADS = 4
CONCURRENT_CALLS = 6
"""Calls a worker may be inside of at once: those in flight, a cache being saved, and a few words in between."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker that has loaded the model."""

    place: str
    fingerprint: str
    seconds: float
    sees_output: bool


@dataclass(frozen=True, slots=True)
class Delivered:
    """A picture on storage."""

    asset_id: str
    written: WrittenAsset
    size: tuple[int, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a call.

    Attributes:
        delivered: the pictures that are on storage.
        failures: what went wrong with single ones.
        seconds: time on the device.
        made: of an anchors call: whether they were made rather than loaded.
        cache_bytes: of an anchors call.
        notice: something a person should know.
    """

    delivered: tuple[Delivered, ...]
    failures: dict[str, Failure]
    seconds: float
    made: bool = False
    cache_bytes: int = 0
    notice: str = ""


class RenderWorker:
    """The actor's class; plain Python, so that it can be tested without Ray.

    Args:
        factory: makes the renderer, on the device's thread, while this constructor returns.
        spec: for the factory.
        store: the output.
    """

    def __init__(self, factory: RendererFactory, spec: RendererSpec, store: OutputStore) -> None:
        self._spec = spec
        self._store = store
        self._device = ThreadPoolExecutor(1, "device")
        self._writers = ThreadPoolExecutor(WRITE_THREADS, "write")
        self._caches: OrderedDict[str, Any] = OrderedDict()
        self._draining = False
        self._started = time.perf_counter()
        self._renderer = self._device.submit(factory, spec)

    def hello(self) -> Hello | Failure:
        """Wait for the model to be loaded."""
        try:
            renderer: Renderer = self._renderer.result()
            place = f"{socket.gethostname()}/{os.getpid()}"
            seen = self._store.exists(RUN_RECORD)
            return Hello(place, renderer.fingerprint, time.perf_counter() - self._started, seen)
        except Exception as error:
            return Failure.of(error)

    def anchors(self, subject: SubjectPlan, make: bool) -> tuple[Report | Failure, CacheBuffer | None]:
        """Get the subject's anchor cache: load it, or make the anchors if that fails or ``make`` says so.

        Anchors are all or nothing: a picture that cannot be written fails the call.
        """
        try:
            buffer, notice = (None, "") if make else self._load(subject)
            if buffer is not None:
                return Report((), {}, 0.0, cache_bytes=buffer.nbytes), buffer
            made: MadeSubject = self._on_device(lambda renderer: renderer.make_subject(subject))
            report = self._deliver(subject, subject.anchors, made.images, made.seconds)
            if report.failures:
                return next(iter(report.failures.values())), None
            size = made.cache_buffer.nbytes
            return Report(report.delivered, {}, made.seconds, True, size, notice), made.cache_buffer
        except Exception as error:
            return Failure.of(error), None

    def save(self, subject: SubjectPlan, buffer: CacheBuffer) -> Failure | None:
        """Write a subject's anchor cache to the output."""
        try:
            with_backoff(lambda: save_cache(self._store, subject.cache_path, buffer))
            return None
        except Exception as error:
            return Failure.of(error)

    def scenes(self, subject: SubjectPlan, scenes: Sequence[Asset], buffer: CacheBuffer) -> Report | Failure:
        """Render scenes from the subject's anchor cache and write them."""
        try:
            images, seconds = self._on_device(lambda renderer: self._render(renderer, subject, scenes, buffer))
            return self._deliver(subject, scenes, images, seconds)
        except Exception as error:
            return Failure.of(error)

    def forget(self, subject_key: str) -> None:
        """Let go of a subject's cache."""
        self._device.submit(self._caches.pop, subject_key, None)

    def drain(self) -> None:
        """Finish what is on the device, refuse the rest."""
        self._draining = True

    def _on_device(self, action: Callable[[Renderer], T]) -> T:
        def act() -> T:
            if self._draining:
                raise RunInterrupted("not started: the run was asked to stop")
            return action(self._renderer.result())

        return self._device.submit(act).result()

    def _load(self, subject: SubjectPlan) -> tuple[CacheBuffer | None, str]:
        buffer, reason = with_backoff(lambda: load_cache(self._store, subject.cache_path))
        if buffer is None:
            return None, reason and f"{reason}: the anchors are made again"
        try:
            self._on_device(lambda renderer: renderer.load_cache(buffer))
        except RunInterrupted:
            raise
        except Exception as error:
            return None, f"{subject.cache_path} cannot be used ({error}): the anchors are made again"
        return buffer, ""

    def _render(
        self, renderer: Renderer, subject: SubjectPlan, scenes: Sequence[Asset], buffer: CacheBuffer
    ) -> tuple[list[Image], float]:
        cache = self._caches.pop(subject.subject_key, None)
        if cache is None:
            cache = renderer.load_cache(buffer)
        self._caches[subject.subject_key] = cache
        while len(self._caches) > KEPT_CACHES:
            self._caches.popitem(last=False)
        started = time.perf_counter()
        return renderer.render(scenes, cache), time.perf_counter() - started

    def _deliver(
        self, subject: SubjectPlan, assets: Sequence[Asset], images: Sequence[Image], seconds: float
    ) -> Report:
        if len(images) != len(assets):
            raise AssetError(f"the renderer made {len(images)} pictures of {len(assets)}")
        share = seconds / max(1, len(assets))

        def deliver(asset: Asset, image: Image) -> Delivered | Failure:
            try:
                return self._write(subject, asset, image, share)
            except Exception as error:
                return Failure.of(error)

        outcomes = list(self._writers.map(deliver, assets, images))
        failures = {
            asset.asset_id: outcome
            for asset, outcome in zip(assets, outcomes, strict=True)
            if isinstance(outcome, Failure)
        }
        return Report(tuple(item for item in outcomes if isinstance(item, Delivered)), failures, seconds)

    def _write(self, subject: SubjectPlan, asset: Asset, image: Image, seconds: float) -> Delivered:
        fingerprint = self._renderer.result().fingerprint
        parameters = asset_parameters(asset, subject, model=self._spec.model, model_fingerprint=fingerprint)
        data = encode_png(image, parameters)
        written = with_backoff(lambda: write_asset(self._store, asset.path, data))
        return Delivered(asset.asset_id, written, image.size, seconds)
