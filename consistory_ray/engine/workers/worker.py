"""What runs in each worker process: one renderer on one device, and the writing of its pictures.

Everything that touches the device runs on one thread, in order. Encoding and writing happen on the thread of the call,
so that the next call's batch is rendered meanwhile. Errors come back as :class:`~consistory_ray.engine.faults.Failure`
values: an exception that reaches Ray always means that the process or the machine is gone.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from consistory_ray.engine.cluster.local_ray import PASSIVE
from consistory_ray.engine.faults import Failure
from consistory_ray.engine.machine import MachineReading, MachineWatch, watched_folders
from consistory_ray.engine.outages import with_backoff
from consistory_ray.engine.rendering import CacheBuffer, RendererFactory, RendererSpec, UnclearPicturesError
from consistory_ray.engine.scheduling.state import PictureSize
from consistory_ray.engine.workers.anchor_store import (
    StoredCache,
    cache_digest,
    load_cache,
    load_source,
    save_cache,
    stored_digest,
)
from consistory_ray.engine.workers.device import Device, DeviceTime
from consistory_ray.engine.workers.draining import drain_on_sigterm
from consistory_ray.engine.workers.judging import Judging
from consistory_ray.engine.workers.writing import Writers
from consistory_ray.errors import AssetError, InputError, RejectedError, RunInterrupted
from consistory_ray.guards.numerics import picture_fault
from consistory_ray.jobs.stored_subjects import describe_subject, subject_file
from consistory_ray.output.assets import (
    PNG_LEVEL,
    Scored,
    WrittenAsset,
    asset_parameters,
    encode_png,
    mask_path,
    write_asset,
)
from consistory_ray.output.run_record import RUN_RECORD
from consistory_ray.output.storage import OutputStore
from consistory_ray.quality.checks import finding, load_checks

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistory_ray.jobs.quality import Quality
    from consistory_ray.plan.plan import Asset, CacheSource, SubjectPlan
    from consistory_ray.quality.identity import Mask

CONCURRENT_CALLS = 6
"""Calls a worker may be inside of at once: those in flight, a cache being saved, and a few words in between."""
_MISSING = "is missing, or its checksum is (--keep-anchors all keeps them)"


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker that has loaded the model.

    Attributes:
        place: host and process.
        fingerprint: of the model's weights.
        seconds: how long loading took.
        sees_output: whether it finds the run record where the coordinator has put it.
        node: id of its machine.
        batches: for each picture size how many scenes fit into its device's memory, where it can tell.
        notices: what somebody should know about the model.
        niceness: of its process; above 0 others come first.
        controlnets: fingerprints of the ControlNets' weights.
    """

    place: str
    fingerprint: str
    seconds: float
    sees_output: bool
    node: str = ""
    batches: dict[PictureSize, int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    niceness: int = 0
    controlnets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Delivered:
    """A picture on storage, where its subject is, as the index takes it, and its score where the job has a gate."""

    asset_id: str
    written: WrittenAsset
    size: tuple[int, int]
    seconds: float
    mask: bytes | None = None
    score: Scored | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a call.

    Attributes:
        delivered: the pictures that are on storage.
        failures: what went wrong with single ones.
        time: what the device's time went into; None if nothing ran there.
        looked: scores of pictures that were on storage before, by asset id.
        encoding, writing: seconds, summed over pictures that are encoded and written side by side.
        scoring: seconds.
        made: of an anchors call: whether they were made rather than loaded.
        cache_bytes, cache_sha256: of an anchors call.
        import_cache: of an anchors call: the cache came from another run and is to be saved in this one.
        notice: something a person should know.
        machine: a reading of the worker's machine, now and again.
    """

    delivered: tuple[Delivered, ...] = ()
    failures: dict[str, Failure] = field(default_factory=dict)
    looked: dict[str, Scored] = field(default_factory=dict)
    time: DeviceTime | None = None
    encoding: float = 0.0
    writing: float = 0.0
    scoring: float = 0.0
    made: bool = False
    cache_bytes: int = 0
    cache_sha256: str = ""
    import_cache: bool = False
    notice: str = ""
    machine: MachineReading | None = None

    @property
    def seconds(self) -> float:
        """Time on the device."""
        return self.time.seconds if self.time is not None else 0.0

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by phase."""
        device = self.time.phases if self.time is not None else {}
        scoring = {"score": self.scoring} if self.scoring else {}
        return {**device, **scoring, "encode": self.encoding, "write": self.writing}


class RenderWorker:
    """The actor's class; plain Python, so that it can be tested without Ray.

    Args:
        factory: makes the renderer, on the device's thread, while this constructor returns.
        spec: for the factory.
        store: the output.
        png_level: of pictures, see :func:`~consistory_ray.output.assets.encode_png`.
        checks: names of functions that look at every picture before it is written.
        quality: what the job demands of scenes.
    """

    def __init__(
        self,
        factory: RendererFactory,
        spec: RendererSpec,
        store: OutputStore,
        png_level: int = PNG_LEVEL,
        checks: Sequence[str] = (),
        quality: Quality | None = None,
    ) -> None:
        if "torch" not in sys.modules:  # which reads them once
            for name, value in PASSIVE.items():
                os.environ.setdefault(name, value)
        self._spec = spec
        self._store = store
        self._png_level = png_level
        self._check_names, self._checks = tuple(checks), cache(lambda: load_checks(checks))
        self._writers = Writers()
        self._judging = Judging(quality, spec.device, store) if quality is not None else None
        self._started = time.perf_counter()
        self._device = Device(factory, spec)
        self._machine = MachineWatch(watched_folders(store.url))
        if threading.current_thread() is threading.main_thread():
            drain_on_sigterm(self._device.drain)

    def placed(self) -> None:
        """Says that the process is there; loading the model goes on."""

    def hello(self, sizes: Collection[PictureSize] = ()) -> Hello | Failure:
        """Wait for the model to be loaded."""
        try:
            from consistory_ray.engine.cluster.cluster_watch import own_node  # imports Ray

            self._checks()  # what cannot be loaded is told before anything is rendered
            renderer = self._device.renderer
            if self._judging is not None:
                self._judging.load()
            place = f"{socket.gethostname()}/{os.getpid()}"
            fitting = getattr(renderer, "fitting_batch", None)
            batches = {size: count for size in sizes if fitting is not None and (count := fitting(*size)) is not None}
            seen = with_backoff(lambda: self._store.exists(RUN_RECORD))
            spent = time.perf_counter() - self._started
            notices = tuple(getattr(renderer, "notices", ()))
            nets = tuple(getattr(renderer, "control_fingerprints", ()))
            return Hello(place, renderer.fingerprint, spent, seen, own_node(), batches, notices, os.nice(0), nets)
        except Exception as error:
            return Failure.of(error)

    def anchors(self, subject: SubjectPlan, make: bool) -> tuple[Report | Failure, CacheBuffer | None]:
        """Get the subject's anchor cache: load it, or make the anchors if that fails or ``make`` says so.

        Anchors are all or nothing: a picture that cannot be written fails the call.
        """
        try:
            found = self._stored_digest(subject) if make else self._find(subject)
            if found.buffer is not None:
                size = found.buffer.nbytes
                imported = bool(subject.sources) and not with_backoff(lambda: self._store.exists(subject.cache_path))
                return Report(cache_bytes=size, cache_sha256=found.sha256, import_cache=imported), found.buffer
            if subject.sources:
                where = " and ".join(source.url for source in subject.sources)
                raise InputError(f"the stored subject at {where} cannot be used: {found.problem}")
            try:
                made, spent = self._device.make_subject(subject)
            except UnclearPicturesError as error:
                self._show_masks(subject, error.images, error.masks)
                raise
            self._show_masks(subject, made.images, made.masks)
            report = self._deliver(subject, subject.anchors, made.images, spent)
            if report.failures:
                return next(iter(report.failures.values())), None
            buffer = made.cache_buffer  # put together here, while the device goes on
            told = [f"pictures[{index}] of {subject.subject_id}: {text}" for index, text in made.notices.items()]
            return self._made(report, found, buffer, made.sha256 or cache_digest(buffer), told), buffer
        except Exception as error:
            return Failure.of(error), None

    def save(self, subject: SubjectPlan, buffer: CacheBuffer, digest: str) -> Failure | None:
        """Write a subject's anchor cache to the output."""
        try:
            words = describe_subject(
                subject, self._spec.model, self._device.renderer.fingerprint, digest, buffer.nbytes
            )
            with_backoff(lambda: save_cache(self._store, subject.cache_path, buffer, digest))
            with_backoff(lambda: self._store.write_atomic(subject_file(subject.cache_path), words))
            return None
        except Exception as error:
            return Failure.of(error)

    def scenes(
        self,
        subject: SubjectPlan,
        scenes: Sequence[Asset],
        buffer: CacheBuffer,
        digest: str = "",
        there: Collection[str] = (),
    ) -> Report | Failure:
        """Render scenes from the subject's anchor cache, whose checksum is ``digest``, and write them; of those with
        ids in ``there`` the pictures exist, and are only scored."""
        try:
            missing = [scene for scene in scenes if scene.asset_id not in there]
            looked = self._look(subject, [scene for scene in scenes if scene.asset_id in there])
            if not missing:
                return looked
            images, spent = self._device.render(subject, missing, buffer)
            report = self._deliver(subject, missing, images, spent, digest or None)
            return replace(
                report,
                failures={**looked.failures, **report.failures},
                looked=looked.looked,
                scoring=looked.scoring + report.scoring,
            )
        except Exception as error:
            return Failure.of(error)

    def forget(self, subject_key: str) -> None:
        """Let go of a subject's cache."""
        self._device.forget(subject_key)

    def drain(self) -> None:
        """Finish what is on the device, refuse the rest."""
        self._device.drain()

    def _stored_digest(self, subject: SubjectPlan) -> StoredCache:
        return StoredCache(None, with_backoff(lambda: stored_digest(self._store, subject.cache_path)))

    def _find(self, subject: SubjectPlan) -> StoredCache:
        """The subject's cache in the output, or where the job says that it is stored; checked by the renderer."""
        found = with_backoff(lambda: load_cache(self._store, subject.cache_path))
        if found.buffer is None and subject.sources:
            return self._taken_up(subject.sources)
        return self._checked(found, subject.cache_path)

    def _taken_up(self, sources: Sequence[CacheSource]) -> StoredCache:
        """The cache of a stored subject, or of several that meet: the same bytes whoever joins them."""
        parts = []
        for source in sources:
            found = with_backoff(partial(load_source, source.url))
            if found.buffer is not None and found.sha256 != source.sha256:
                return StoredCache(None, found.sha256, f"{source.url} has changed since the job was read")
            if (found := self._checked(found, source.url)).buffer is None:
                return replace(found, problem=found.problem or f"{source.url} {_MISSING}")
            parts.append(found)
        if len(parts) == 1:
            return parts[0]
        try:
            buffer = self._device.join_caches([part.buffer for part in parts if part.buffer is not None])
        except RunInterrupted:
            raise
        except Exception as error:
            return StoredCache(None, problem=f"they do not fit together ({error})")
        return StoredCache(buffer, cache_digest(buffer))

    def _checked(self, found: StoredCache, path: str) -> StoredCache:
        if found.buffer is None:
            return found
        try:
            self._device.check_cache(found.buffer)
        except RunInterrupted:
            raise
        except Exception as error:
            return StoredCache(None, found.sha256, f"{path} cannot be used ({error})")
        return found

    def _show_masks(self, subject: SubjectPlan, images: Sequence[Image], masks: Sequence[Any]) -> None:
        """Write beside the anchors' places what was taken for the subject in given pictures."""
        from consistory_ray.pictures import draw_mask  # imports Pillow

        for anchor, image, mask in zip(subject.anchors, images, masks, strict=False):  # there may be no masks
            file = BytesIO()
            draw_mask(image, mask).save(file, "PNG")
            path, data = mask_path(anchor.path), file.getvalue()
            with_backoff(partial(self._store.write_atomic, path, data))

    def _made(
        self, report: Report, found: StoredCache, buffer: CacheBuffer, digest: str, told: Sequence[str] = ()
    ) -> Report:
        """The report of anchors that were made, with what a person should know of them."""
        notice = f"{found.problem}: the anchors are made again" if found.problem else ""
        if found.sha256 and found.sha256 != digest:
            notice += "; " if notice else "the anchors were made again and "
            notice += (
                "their cache differs from the first one: scenes that are there are kept, and the index tells by "
                "cache_sha256 which were rendered from which"
            )
        notice = "; ".join([*told, *([notice] if notice else [])])
        size = buffer.nbytes
        return replace(report, made=True, cache_bytes=size, cache_sha256=digest, notice=notice)

    def _deliver(
        self,
        subject: SubjectPlan,
        assets: Sequence[Asset],
        images: Sequence[Image | AssetError],
        spent: DeviceTime,
        cache_sha256: str | None = None,
    ) -> Report:
        if len(images) != len(assets):
            raise AssetError(f"the renderer made {len(images)} pictures of {len(assets)}")
        share = spent.seconds / max(1, len(assets))
        clock = {"score": 0.0, "encode": 0.0, "write": 0.0}
        masks = spent.masks_of(assets)

        def deliver(asset: Asset, image: Image | AssetError) -> Delivered | Failure:
            try:
                if isinstance(image, AssetError):
                    raise image
                if fault := picture_fault(image):
                    raise AssetError(fault)
                if reason := finding(self._checks(), self._check_names, image):
                    raise RejectedError(reason)
                mask = masks[asset.asset_id]
                score = self._score(subject, asset, image, mask, clock) if asset.kind == "scene" else None
                return self._write(subject, asset, image, share, clock, cache_sha256, score, mask)
            except Exception as error:
                return Failure.of(error)

        outcomes = self._writers.map(deliver, assets, images)
        self._writers.measured(clock["encode"], clock["write"], spent.seconds)
        failures = {
            asset.asset_id: outcome
            for asset, outcome in zip(assets, outcomes, strict=True)
            if isinstance(outcome, Failure)
        }
        delivered = tuple(item for item in outcomes if isinstance(item, Delivered))
        machine = self._machine.reading()
        return Report(
            delivered,
            failures,
            time=replace(spent, masks=()),
            machine=machine,
            encoding=clock["encode"],
            writing=clock["write"],
            scoring=clock["score"],
        )

    def _score(
        self, subject: SubjectPlan, asset: Asset, image: Image, mask: Mask | None, clock: dict[str, float]
    ) -> Scored | None:
        """What the job's metric finds in a picture, None where the job has none."""
        if self._judging is None:
            return None
        started = time.perf_counter()
        try:
            return self._judging.score(subject, asset, image, mask)
        finally:
            clock["score"] += time.perf_counter() - started

    def _look(self, subject: SubjectPlan, scenes: Sequence[Asset]) -> Report:
        """Score pictures that are on storage already."""
        looked, failures, started = {}, {}, time.perf_counter()
        for scene in scenes:
            try:
                assert self._judging is not None, "only a job with a gate asks for it"
                looked[scene.asset_id] = self._judging.look(subject, scene)
            except Exception as error:
                failures[scene.asset_id] = Failure.of(error)
        return Report(failures=failures, looked=looked, scoring=time.perf_counter() - started)

    def _write(
        self,
        subject: SubjectPlan,
        asset: Asset,
        image: Image,
        seconds: float,
        clock: dict[str, float],
        cache_sha256: str | None,
        score: Scored | None = None,
        mask: Mask | None = None,
    ) -> Delivered:
        from consistory_ray.pictures import encode_mask  # imports Pillow

        packed = None if mask is None else encode_mask(mask)
        parameters: Any = asset_parameters(
            asset,
            subject,
            model=self._spec.model,
            model_fingerprint=self._device.renderer.fingerprint,
            cache_sha256=cache_sha256,
            score=score,
            mask=packed,
        )
        started = time.perf_counter()
        data = encode_png(image, parameters, self._png_level)
        encoded = time.perf_counter()
        written = with_backoff(lambda: write_asset(self._store, asset.path, data))
        clock["encode"] += encoded - started
        clock["write"] += time.perf_counter() - encoded
        return Delivered(asset.asset_id, written, image.size, seconds, packed, score)
