"""The real renderer: the pipeline on one device, and how much of a GPU's memory a batch may take."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consistory_ray.adapters import Embedding, LoRA, file_digest
from consistory_ray.engine.inputs import InputReader, fitted
from consistory_ray.engine.rendering import CacheBuffer, MadeSubject, Renderer, RendererSpec, UnclearPicturesError
from consistory_ray.engine.workers.hints import HintReader
from consistory_ray.engine.workers.residents import ResidentCaches
from consistory_ray.errors import AssetError, CheckpointError, PictureError, Problem
from consistory_ray.guards.redaction import redacted

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistory_ray.consistory.cache.anchor_cache import AnchorCache
    from consistory_ray.consistory.cache.residence import PlacedCache
    from consistory_ray.plan.loaded import Loaded
    from consistory_ray.plan.plan import Asset, SubjectPlan
    from consistory_ray.settings import MethodSettings

MAX_AUTO_BATCH = 16
"""More scenes at a time no longer make a GPU any faster."""
FREE_SHARE = 0.8
"""Part of the free memory that a batch may take at first; whatever turns out too large is halved."""
BYTES_PER_LATENT_AND_BYTE = 48_000
"""Working memory of a scene for each of its latents and each byte of a number, both halves of the guidance included:
about 1.6 GB for SDXL at 1024 px in half precision. An estimate, meant to err on the large side."""

CONTROL_SHARE = 0.15
"""What a scene takes more of where ControlNets lead it: their residuals wait while the UNet works. Their weights are
loaded by then and no longer free."""


def own_memory(free: int, total: int, reserved: int, share: float) -> int:
    """Bytes of a device that a worker may still take: what is free, and no more than what is left of its share.

    Args:
        free, total: of the device.
        reserved: what this worker has taken, its model for the most part.
        share: the part of the device that is its own. Workers beside it have loaded their models or are about to.
    """
    return max(0, min(free, int(total * share) - reserved)) if share < 1 else free


def available_memory(device: Any, share: float) -> int | None:
    """Bytes of a device that a worker may take, those included that PyTorch holds for it and nothing uses; None on a
    CPU, where nobody can tell."""
    import torch

    if device.type != "cuda":
        return None
    reserved = torch.cuda.memory_reserved(device)
    unused = reserved - torch.cuda.memory_allocated(device)
    return own_memory(*torch.cuda.mem_get_info(device), reserved, share) + unused


class PhaseClock:
    """Splits what a pipeline call takes into the passes and what follows them.

    Args:
        first_pass_steps: steps of pass 1, or of the only one.
        synchronise: waits for the device; called only where a phase ends, so that nothing is held up in between.
        first: what the first pass is called.
    """

    def __init__(self, first_pass_steps: int, synchronise: Callable[[], None], first: str = "pass1") -> None:
        self._first = first_pass_steps
        self._name = first
        self._synchronise = synchronise
        self._marks = [time.perf_counter()]
        self._ends: list[str] = []

    def tick(self, done: int, total: int) -> None:
        """The pipeline's progress: steps done, steps in all."""
        if done in (self._first, total):
            self._synchronise()
            self._marks.append(time.perf_counter())
            self._ends.append(self._name if done == self._first else "pass2")

    def phases(self) -> dict[str, float]:
        """Seconds of ``pass1``, ``pass2`` (or of the one pass) and ``decode``, which follows the last step."""
        marks = [*self._marks, time.perf_counter()]
        names = [*self._ends, "decode"]
        return {name: end - start for name, start, end in zip(names, marks[:-1], marks[1:], strict=True)}


def adapters_of(loaded: Loaded) -> dict[str, Any]:
    """What is loaded with a model, as the pipeline takes it; nothing where there is nothing.

    Raises:
        CheckpointError: a file here is another one than when the job was read.
    """
    named: dict[str, tuple[Any, ...]] = {"loras": loaded.loras, "embeddings": loaded.embeddings}
    for field, adapters in named.items():
        for index, one in enumerate(adapters):
            found = file_digest(one.path)
            if found not in (None, one.content):
                fix = f"give every machine the file with SHA-256 {one.content}, or render again: it is read anew"
                problem = Problem(f"{field}[{index}].path", redacted(one.path), fix)
                raise CheckpointError("this machine has another file than the job was read with", [problem])
    given: dict[str, Any] = {
        "loras": [LoRA(lora.path, lora.weight, lora.name) for lora in loaded.loras],
        "embeddings": [Embedding(one.path, one.token) for one in loaded.embeddings],
        "vae": loaded.vae,
        "variant": loaded.variant,
        "revision": loaded.revision,
    }
    return {name: value for name, value in given.items() if value}


class ConsiStoryRenderer:
    """The real renderer: :class:`consistory_ray.ConsiStoryPipeline` on one device."""

    def __init__(self, spec: RendererSpec) -> None:
        import torch

        from consistory_ray.consistory.pipeline import ConsiStoryPipeline

        torch.set_num_threads(spec.threads)
        self.phases: dict[str, float] = {}
        self.masks: Sequence[NDArray[np.bool_] | None] = ()
        self._share = spec.gpu_share
        self._pad_to = spec.pad_to
        self._inputs = InputReader(spec.inputs)
        dtype = None if spec.torch_dtype == "auto" else getattr(torch, spec.torch_dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # told as notices
            self._pipeline = ConsiStoryPipeline.from_pretrained(
                spec.model,
                dtype=dtype,
                device=spec.device,
                config=spec.config,
                controlnets=spec.controlnets,
                guess_mode=spec.guess_mode,
                **adapters_of(spec.loaded),
            )
        self.notices = tuple(self._pipeline.notices)
        if spec.compile:
            self._pipeline.compile()
        self._pipeline.hold_fingerprint()
        self._fingerprint = self._pipeline.fingerprint
        self._control_fingerprints = self._pipeline.control_fingerprints
        self._hints = HintReader(self._inputs)
        self._residents = ResidentCaches()

    @property
    def fingerprint(self) -> str:
        """Of the pipeline's weights."""
        return self._fingerprint

    @property
    def control_fingerprints(self) -> tuple[str, ...]:
        """Of each ControlNet's weights."""
        return self._control_fingerprints

    def make_subject(self, subject: SubjectPlan) -> MadeSubject:
        """See :class:`~consistory_ray.engine.rendering.Renderer`."""
        started = time.perf_counter()
        if subject.pictures:
            return self._take_pictures(subject, started)
        with self._clocked(subject.settings.num_inference_steps) as clock:
            made = self._pipeline.create_subject(
                prompts=[anchor.prompt for anchor in subject.anchors],
                concepts=list(subject.concepts),
                seeds=[anchor.seed for anchor in subject.anchors],
                controls=self._hints.of(subject.anchors),
                **_words_of(subject.anchors),
                settings=subject.settings,
                progress=clock.tick,
            )
        self.masks = _finest(made.masks)
        return MadeSubject(list(made.images), None, time.perf_counter() - started, pack=made.cache.into_buffer)

    def _take_pictures(self, subject: SubjectPlan, started: float) -> MadeSubject:
        """The given pictures as they are fitted to the size that is rendered, and the cache that is made of them."""
        side = self._pipeline.pipe.unet.config.sample_size * self._pipeline.pipe.vae_scale_factor
        width, height = subject.settings.width or side, subject.settings.height or side
        pictures = [fitted(self._inputs, picture, width, height) for picture in subject.pictures]
        notices = {index: list(picture.notices) for index, picture in enumerate(pictures)}
        with self._clocked(subject.settings.num_inference_steps) as clock:
            try:
                made = self._pipeline.create_subject(
                    prompts=[anchor.prompt for anchor in subject.anchors],
                    concepts=list(subject.concepts),
                    seeds=[anchor.seed for anchor in subject.anchors],
                    images=[picture.image for picture in pictures],
                    masks=[picture.alpha for picture in pictures],
                    controls=self._hints.of(subject.anchors),
                    settings=subject.settings,
                    progress=clock.tick,
                )
            except PictureError as error:
                told = "; ".join(f"pictures[{index}]: {reason}" for index, reason in error.failures.items())
                masks = () if error.result is None else _finest(error.result.masks)
                raise UnclearPicturesError(told, [picture.image for picture in pictures], masks) from error
        for index, notice in made.notices.items():
            notices[index].append(notice)
        self.masks = _finest(made.masks)
        return MadeSubject(
            list(made.images),
            None,
            time.perf_counter() - started,
            pack=made.cache.into_buffer,
            masks=self.masks,
            notices={index: "; ".join(some) for index, some in notices.items() if some},
        )

    def load_cache(self, buffer: CacheBuffer) -> Any:
        """See :class:`~consistory_ray.engine.rendering.Renderer`. Nothing of it is on the device before scenes are."""
        from consistory_ray.consistory.cache.residence import PlacedCache

        return PlacedCache(self._checked(buffer), self._pipeline.device)

    def _checked(self, buffer: CacheBuffer) -> AnchorCache:
        from consistory_ray.consistory.cache.anchor_cache import AnchorCache
        from consistory_ray.consistory.cache.contents import check_cache

        cache = AnchorCache.from_buffer(buffer)
        check_cache(cache, self._fingerprint, None)
        return cache

    def join_caches(self, buffers: Sequence[CacheBuffer]) -> CacheBuffer:
        """See :class:`~consistory_ray.engine.rendering.Renderer`."""
        from consistory_ray.consistory.cache.joining import joined

        return joined([self._checked(buffer) for buffer in buffers]).into_buffer()[0]

    def render(
        self, scenes: Sequence[Asset], cache: Any, settings: MethodSettings | None = None
    ) -> Sequence[Image | AssetError]:
        """See :class:`~consistory_ray.engine.rendering.Renderer`. Batches come first: a cache has what they leave."""
        import torch

        size = cache.cache.settings.height, cache.cache.settings.width
        available = available_memory(self._pipeline.device, self._share)
        if available is not None:
            batch = max(len(scenes), self._pad_to or 0) * self._scene_bytes(*size)
            self._residents.share(cache, int((available + self._residents.nbytes) * FREE_SHARE - batch))
        try:
            return self._render(scenes, cache, settings)
        except torch.OutOfMemoryError:
            if not self._residents.give_up():
                raise
        return self._render(scenes, cache, settings)  # here, where nothing of the first attempt is held any more

    def _render(
        self, scenes: Sequence[Asset], cache: PlacedCache, settings: MethodSettings | None
    ) -> Sequence[Image | AssetError]:
        whole = (settings or cache.cache.settings).first_pass == "full"
        with self._clocked(cache.cache.settings.num_inference_steps, "pass1" if whole else "scene") as clock:
            try:
                result = self._pipeline.render(
                    prompts=[scene.prompt for scene in scenes],
                    subject=cache,
                    seeds=[scene.seed for scene in scenes],
                    controls=self._hints.of(scenes),
                    **_words_of(scenes),
                    batch_size=len(scenes),
                    settings=settings,
                    pad_to=self._pad_to,
                    progress=clock.tick,
                )
            except PictureError as error:
                result, failures = error.result, error.failures
                self.masks = _finest(result.masks)
                return [AssetError(failures[i]) if i in failures else image for i, image in enumerate(result.images)]
        self.masks = _finest(result.masks)
        return list(result.images)

    @property
    def peak_memory(self) -> int | None:
        """Peak of the device memory that torch has allocated, in bytes; None on a CPU."""
        import torch

        device = self._pipeline.device
        return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else None

    def fitting_batch(self, height: int | None, width: int | None) -> int | None:
        """Scenes that fit into this worker's part of the device's memory, which caches leave to them; None on a CPU."""
        available = available_memory(self._pipeline.device, self._share)
        if available is None:
            return None
        free = available + self._residents.nbytes
        return max(1, min(MAX_AUTO_BATCH, int(free * FREE_SHARE / self._scene_bytes(height, width))))

    def _scene_bytes(self, height: int | None, width: int | None) -> float:
        """Working memory of a scene."""
        import torch

        pipe = self._pipeline.pipe
        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        latents: float = (height or side) * (width or side) / pipe.vae_scale_factor**2
        item = torch.empty((), dtype=pipe.unet.dtype).element_size()
        led = 1 + CONTROL_SHARE * bool(self._control_fingerprints)
        return float(latents * item * BYTES_PER_LATENT_AND_BYTE * led)

    @contextmanager
    def _clocked(self, first_pass_steps: int, first: str = "pass1") -> Iterator[PhaseClock]:
        clock = PhaseClock(first_pass_steps, self._synchronise, first)
        yield clock
        self.phases = clock.phases()

    def _synchronise(self) -> None:
        import torch

        if self._pipeline.device.type == "cuda":
            torch.cuda.synchronize(self._pipeline.device)


def _words_of(assets: Sequence[Asset]) -> dict[str, Any]:
    """What pictures are told besides their prompts, as the pipeline takes it."""
    return {
        "prompts_2": [asset.words.prompt_2 for asset in assets],
        "negative_prompts": [asset.words.negative_prompt for asset in assets],
    }


def _finest(masks: Mapping[str, Any]) -> list[NDArray[np.bool_]]:
    """Of each picture the mask with the most tokens; none where no masks were made."""
    if not masks:
        return []
    level = max(masks.values(), key=lambda mask: mask.shape[-1])
    return [mask.numpy() for mask in level]


def consistory_renderer(spec: RendererSpec) -> Renderer:
    """The factory where a run's options name no other."""
    return ConsiStoryRenderer(spec)
