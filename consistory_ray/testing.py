"""For tests and benchmarks of whatever runs jobs: a renderer without a model, and a metric without one.

from consistory_ray.engine.options import RunOptions
from consistory_ray.testing import FakeRenderer

options = RunOptions(renderer=FakeRenderer.factory(seconds=0.2, faults={"on-the-moon": "error"}))

On the command line: ``--renderer consistory_ray.testing:FakeRenderer --renderer-options '{"seconds": 0.2}'``.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from consistory_ray.engine.inputs import InputReader, fitted
from consistory_ray.engine.rendering import CacheBuffer, MadeSubject, RendererFactory, RendererSpec
from consistory_ray.errors import AssetError, CacheMismatchError, CheckpointError, InputError, Problem
from consistory_ray.pictures import open_picture
from consistory_ray.plan.plan import scene_asset_id
from consistory_ray.quality.metrics import Embeddings, MetricOptions

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Asset, SubjectPlan
    from consistory_ray.settings import MethodSettings

_V = TypeVar("_V")

FaultName = Literal["bad", "device-once", "error", "error-once", "exit", "exit-once", "hang", "hang-once", "model"]
"""What can go wrong with an asset: ``bad`` raises AssetError, ``error`` RuntimeError, ``exit`` ends the process without
a word, ``hang`` never returns, ``model`` raises CheckpointError, ``device-once`` is an error of CUDA's after which
nothing works any more in that worker's process. With ``-once`` it goes wrong once in all, whichever
worker it meets."""

_BLOCKS = 4
_MIDDLE = np.pad(np.ones((_BLOCKS // 2, _BLOCKS // 2), bool), _BLOCKS // 4)
_CACHE_HEAD = 4096  # what a cache says is in its first bytes, the rest only takes room


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time that a fake renderer was at work, as :func:`read_trace` finds it.

    Attributes:
        pid: the worker's process.
        kind: ``load`` (from the process's first line to a renderer), ``anchors`` or ``scenes``.
        subject: the subject's id; empty for ``load``.
        assets: how many pictures it made.
        start, end: seconds of this machine's monotonic clock, which all of its processes share.
    """

    pid: int
    kind: str
    subject: str
    assets: int
    start: float
    end: float


class FakeRenderer:
    """A renderer whose pictures are made of asset ids: deterministic, instant, and as faulty as wanted.

    Args:
        spec: of the worker it runs in.
        seconds: time per scene.
        anchor_seconds: time per anchor; None is ``seconds``.
        size: width and height of its pictures in pixels.
        cache_bytes: size of an anchor cache.
        max_batch: more scenes than this at a time are out of memory.
        faults: what goes wrong with which asset; keys are scene ids (``"anchor-0"`` for anchors) or
            ``"subject/scene"``, or ``"subject/scene.2"`` for a further take alone.
        rates: the same at random: for each fault the share of all assets, from 0 to 1, that it befalls. Which ones
            depends on their ids alone, so that every attempt of an asset meets the same fault.
        delays: further seconds for single assets; keys as for ``faults``.
        jitter: the time of each asset differs from ``seconds`` by up to this share of it; its id decides by how much.
        load_seconds: time until the renderer is there.
        memory: a device that runs out: ``capacity`` bytes, of which the model takes ``model`` and each picture of a
            batch ``picture``.
        bad_processes: numbers of workers' processes, from 0 in the order in which they come up, in which every call
            fails.
        bad_loads: numbers of those that cannot load the model.
        scratch: an existing folder where faults that happen once are remembered, and processes are counted.
        trace: an existing folder for :func:`read_trace`.
        version: another version has another fingerprint and refuses the caches of others.

    Attributes:
        phases, peak_memory, masks: see :class:`~consistory_ray.engine.rendering.Renderer`.

    Raises:
        InputError: an option is unknown or out of range.
    """

    def __init__(
        self,
        spec: RendererSpec | None = None,
        *,
        seconds: float = 0.0,
        anchor_seconds: float | None = None,
        size: tuple[int, int] = (32, 32),
        cache_bytes: int = 4096,
        max_batch: int | None = None,
        faults: Mapping[str, FaultName] | None = None,
        rates: Mapping[FaultName, float] | None = None,
        delays: Mapping[str, float] | None = None,
        jitter: float = 0.0,
        load_seconds: float = 0.0,
        memory: Mapping[str, int] | None = None,
        bad_processes: Sequence[int] = (),
        bad_loads: Sequence[int] = (),
        scratch: str | None = None,
        trace: str | None = None,
        version: int = 1,
    ) -> None:
        started = time.monotonic()
        self.spec = spec
        self._inputs = InputReader(spec.inputs if spec is not None else "")
        self._seconds = seconds
        self._anchor_seconds = seconds if anchor_seconds is None else anchor_seconds
        self._size = (int(size[0]), int(size[1]))
        self._cache_bytes = cache_bytes
        self._max_batch = max_batch
        self._faults = dict(faults or {})
        self._rates = dict(rates or {})
        self._delays = dict(delays or {})
        self._jitter = jitter
        self._memory = dict(memory or {})
        self._scratch = scratch
        self._trace = trace
        self.phases: dict[str, float] = {}
        self.masks: list[NDArray[np.bool_]] = []
        self.peak_memory: int | None = None
        loaded = spec.loaded.identity() if spec is not None else {}
        told = json.dumps(loaded, sort_keys=True) if loaded else ""
        self._fingerprint = hashlib.sha256(f"fake renderer {version}{told}".encode()).hexdigest()
        self._broken = ""
        self._check()
        time.sleep(load_seconds)
        if bad_processes or bad_loads:
            self._count_processes(bad_processes, bad_loads)
        self._record(Span(os.getpid(), "load", "", 0, started, time.monotonic()))

    def _check(self) -> None:
        names = ", ".join(get_args(FaultName))
        unknown = sorted({*self._faults.values(), *self._rates} - set(get_args(FaultName)))
        problems = [Problem("faults", name, f"use {names}") for name in unknown]
        if any(not 0 <= share <= 1 for share in self._rates.values()) or sum(self._rates.values()) > 1:
            problems.append(Problem("rates", str(self._rates), "give shares from 0 to 1 that add up to 1 at most"))
        if not 0 <= self._jitter <= 1:
            problems.append(Problem("jitter", str(self._jitter), "give a share from 0 to 1"))
        if self._memory and set(self._memory) != {"capacity", "model", "picture"}:
            problems.append(Problem("memory", str(self._memory), "give capacity, model and picture, in bytes"))
        if problems:
            raise InputError("this fake renderer cannot be made", problems)

    @classmethod
    def factory(cls, **options: Any) -> RendererFactory:
        """For :class:`~consistory_ray.engine.options.RunOptions`: makes one of these in every worker."""
        return functools.partial(cls, **options)

    @property
    def fingerprint(self) -> str:
        """The same for all of one version that have the same loaded."""
        return self._fingerprint

    @property
    def control_fingerprints(self) -> tuple[str, ...]:
        """Of ControlNets by their names alone."""
        return tuple(hashlib.sha256(name.encode()).hexdigest() for name in (self.spec.controlnets if self.spec else ()))

    def make_subject(self, subject: SubjectPlan) -> MadeSubject:
        """Pictures of the anchors' ids, or the given ones, and a cache that names the subject."""
        with self._traced("anchors", subject.anchors):
            self._take_memory(len(subject.anchors))
            self._go_wrong(subject.anchors)
            seconds = self._spend(self._anchor_seconds, subject.anchors)
            images = [self._led(self.picture(anchor.asset_id), anchor) for anchor in subject.anchors]
            masks: list[NDArray[np.bool_]] = []
            if subject.pictures:
                pictures = [fitted(self._inputs, given, *self._size) for given in subject.pictures]
                images = [picture.image for picture in pictures]
                masks = [np.ones(self._size[::-1], bool) if one.alpha is None else one.alpha for one in pictures]
            content = {"subject": subject.subject_id, "key": subject.subject_key, "fingerprint": self._fingerprint}
            data = json.dumps(content).encode()
            buffer = np.frombuffer(data.ljust(self._cache_bytes), dtype=np.uint8)
            self.masks = [_MIDDLE] * len(images)
            return MadeSubject(images, buffer, seconds, masks=masks)

    def load_cache(self, buffer: CacheBuffer) -> dict[str, str]:
        """What the cache says.

        Raises:
            CacheMismatchError: a renderer of another version made it.
        """
        cache: dict[str, str] = json.loads(bytes(buffer[:_CACHE_HEAD]).rstrip(b"\0 "))
        if cache["fingerprint"] != self._fingerprint:
            raise CacheMismatchError("this cache was made by another version of the fake renderer")
        return cache

    def join_caches(self, buffers: Sequence[CacheBuffer]) -> CacheBuffer:
        """A cache of the subject that is called by all of their names.

        Raises:
            CacheMismatchError: as :meth:`load_cache`.
        """
        caches = [self.load_cache(buffer) for buffer in buffers]
        names = {name: "-and-".join(cache[name] for cache in caches) for name in ("subject", "key")}
        data = json.dumps(names | {"fingerprint": self._fingerprint}).encode()
        return np.frombuffer(data.ljust(sum(buffer.nbytes for buffer in buffers)), dtype=np.uint8)

    def render(
        self, scenes: Sequence[Asset], cache: Mapping[str, str], settings: MethodSettings | None = None
    ) -> list[Image.Image]:
        """Pictures of the scenes' ids.

        Raises:
            CacheMismatchError: the cache is another subject's.
            MemoryError: too many at a time.
        """
        strangers = [scene.asset_id for scene in scenes if not _is_scene_of(scene, cache)]
        if strangers:
            raise CacheMismatchError(f"{', '.join(strangers)} are no scenes of {cache['subject']}")
        with self._traced("scenes", scenes):
            if self._max_batch is not None and len(scenes) > self._max_batch:
                raise MemoryError(f"{len(scenes)} scenes at a time, {self._max_batch} would fit")
            self._take_memory(len(scenes))
            self._go_wrong(scenes)
            self._spend(self._seconds, scenes)
            self.masks = [_MIDDLE] * len(scenes)
            return [self._led(self.picture(scene.asset_id), scene) for scene in scenes]

    def fitting_batch(self, height: int | None, width: int | None) -> int | None:
        """How many pictures fit into the memory that was given; None without one. Their size changes nothing."""
        free = self._memory["capacity"] - self._memory["model"] if self._memory else 0
        return max(1, free // self._memory["picture"]) if self._memory else None

    def picture(self, asset_id: str) -> Image.Image:
        """The picture of an asset: coloured blocks."""
        digest = hashlib.sha512(asset_id.encode()).digest()
        colours = np.frombuffer(digest[: _BLOCKS * _BLOCKS * 3], dtype=np.uint8).reshape(_BLOCKS, _BLOCKS, 3)
        return Image.fromarray(colours).resize(self._size, Image.Resampling.NEAREST)

    def _led(self, image: Image.Image, asset: Asset) -> Image.Image:
        """The picture with its hints in the corner."""
        side = max(1, min(self._size) // 4)
        for number, control in enumerate(asset.control):
            hint = open_picture(self._inputs.read(control.file), control.file.path).image.resize((side, side))
            image.paste(hint, (number * side, 0))
        return image

    def _spend(self, each: float, assets: Sequence[Asset]) -> float:
        """Let the time pass that these assets take."""
        seconds = sum(each * (1 + self._jitter * (2 * _share("jitter", asset.asset_id) - 1)) for asset in assets)
        seconds += sum(self._named(self._delays, asset) or 0.0 for asset in assets)
        time.sleep(seconds)
        return seconds

    def _take_memory(self, pictures: int) -> None:
        if self._memory:
            wanted, capacity = self._memory["model"] + pictures * self._memory["picture"], self._memory["capacity"]
            if wanted > capacity:
                raise MemoryError(f"{pictures} pictures at a time take {wanted} bytes, there are {capacity}")
            self.peak_memory = max(wanted, self.peak_memory or 0)

    @staticmethod
    def _named(values: Mapping[str, _V], asset: Asset) -> _V | None:
        name = f"{asset.subject_id}/{asset.scene_id}"
        return values.get(f"{name}.{asset.take}", values.get(name, values.get(asset.scene_id)))

    def _fault_of(self, asset: Asset) -> FaultName | None:
        named = self._named(self._faults, asset)
        if named is not None:
            return named
        share = _share("fault", asset.asset_id)
        for fault, rate in self._rates.items():
            share -= rate
            if share < 0:
                return fault
        return None

    def _go_wrong(self, assets: Sequence[Asset]) -> None:
        if self._broken:
            raise RuntimeError(self._broken)
        for asset in assets:
            fault = self._fault_of(asset)
            if fault is None or (fault.endswith("-once") and not self._first_time(asset.asset_id)):
                continue
            if fault.startswith("exit"):
                os._exit(1)
            if fault.startswith("hang"):
                threading.Event().wait()
            if fault.startswith("device"):
                self._broken = "CUDA error: an illegal memory access was encountered"
                raise RuntimeError(self._broken)
            message = f"{asset.subject_id}/{asset.scene_id} was asked to fail ({fault})"
            raise {"bad": AssetError, "model": CheckpointError}.get(fault, RuntimeError)(message)

    @contextmanager
    def _traced(self, kind: str, assets: Sequence[Asset]) -> Iterator[None]:
        started = time.monotonic()
        yield
        subject = assets[0].subject_id if assets else ""
        span = Span(os.getpid(), kind, subject, len(assets), started, time.monotonic())
        self.phases = {"pass1": span.end - span.start}
        self._record(span)

    def _record(self, span: Span) -> None:
        if self._trace is not None:
            with open(os.path.join(self._trace, f"{span.pid}.jsonl"), "a") as file:
                file.write(json.dumps(asdict(span)) + "\n")

    def _count_processes(self, bad: Sequence[int], unloadable: Sequence[int]) -> None:
        number = next(number for number in itertools.count() if self._first_time(f"process-{number}"))
        if number in unloadable:
            raise CheckpointError(f"process {number} was asked not to load the model")
        if number in bad:
            self._broken = f"process {number} was asked to fail"

    def _first_time(self, asset_id: str) -> bool:
        if self._scratch is None:
            fix = "give an existing folder"
            raise InputError("faults that happen once need a folder", [Problem("scratch", "", fix)])
        try:
            os.close(os.open(os.path.join(self._scratch, asset_id), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


class FakeMetric:
    """A metric without a model: pictures of the same colours in the same places are alike.

    Used as ``consistory_ray.testing:FakeMetric``. Its weights (``fake=FILE``) are a JSON object: ``seconds`` that a
    picture takes; ``exit_once``, a file that is made as the process ends without a word, unless it is there; ``trace``,
    a file that gets a line for each picture.
    """

    name = "fake"
    version = "1"
    finds_subject = False

    def __init__(self, options: MetricOptions | None = None) -> None:
        self.options = options or MetricOptions()
        place = self.options.weights.get(self.name)
        self._habits: dict[str, Any] = json.loads(Path(place).read_text()) if place is not None else {}

    def embed(self, images: Sequence[Image.Image]) -> Embeddings:
        """The colours of a grid of blocks, around grey: ``[N, 48]``."""
        self._behave(len(images))
        grids = [
            np.asarray(image.convert("RGB").resize((_BLOCKS, _BLOCKS), Image.Resampling.BOX), np.float32).ravel()
            - 127.5
            for image in images
        ]
        rows = np.stack(grids) if grids else np.zeros((0, _BLOCKS * _BLOCKS * 3), np.float32)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-6), np.float32)

    def _behave(self, pictures: int) -> None:
        time.sleep(self._habits.get("seconds", 0.0) * pictures)
        if trace := self._habits.get("trace"):
            with open(trace, "a") as file:
                file.write("picture\n" * pictures)
        if marker := self._habits.get("exit_once"):
            with suppress(FileExistsError):
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
                os._exit(1)

    def align(self, images: Sequence[Image.Image], texts: Sequence[str]) -> NDArray[np.float32]:
        """Numbers from 0 to 1 that depend on picture and text alone: ``[N]``."""
        digests = [hashlib.sha256(image.convert("RGB").tobytes()).hexdigest() for image in images]
        return np.array([_share(text, digest) for text, digest in zip(texts, digests, strict=True)], np.float32)


def dark(image: Image.Image) -> str | None:
    """A check, ``consistory_ray.testing:dark``: finds pictures whose mean is below 110 of 255."""
    return "too dark" if float(np.asarray(image.convert("RGB")).mean()) < 110 else None


def read_trace(folder: str | os.PathLike[str]) -> list[Span]:
    """What fake renderers with this ``trace`` folder have done so far, by process, oldest first.

    A line that a killed process left unfinished is left out.
    """
    spans = []
    for path in sorted(Path(folder).glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                spans.append(Span(**json.loads(line)))
            except (ValueError, TypeError):
                continue
    return spans


def _share(purpose: str, asset_id: str) -> float:
    """A number from 0 to below 1 that depends on the asset's id alone."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {asset_id}".encode()).digest()[:6], "big") / 2**48


def _is_scene_of(scene: Asset, cache: Mapping[str, str]) -> bool:
    """By name, or, where the subject was renamed since its cache was made, by what its id is a hash of.

    A further take's is one of its first one's, of which the seed is not known here.
    """
    if scene.subject_id == cache["subject"] or scene.take_of:
        return True
    return scene.asset_id == scene_asset_id(cache["key"], scene.prompt, scene.seed, scene.control)
