"""The public face of the method: make a subject once, render it in any scene."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from consistory_ray.concepts.matching import all_exact
from consistory_ray.consistory.cache.anchor_cache import AnchorCache, check_cache
from consistory_ray.consistory.inputs import Batch, make_batch, resolve_settings, token_grids, whole_seeds
from consistory_ray.consistory.method.attention_kernel import chosen_kernel
from consistory_ray.consistory.method.companions import CachedAnchors, Companions, LiveAnchors
from consistory_ray.consistory.method.layout import Grid, Level
from consistory_ray.consistory.method.masks import Masks
from consistory_ray.consistory.method.sampler import PassResult, Sampler
from consistory_ray.consistory.method.steps import StepPlan
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.consistory.models.checkpoints import check_architecture, load_checkpoint
from consistory_ray.consistory.models.decoding import OutputType, decode_latents, encode_prompts
from consistory_ray.consistory.models.fingerprint import adapter_state, model_fingerprint
from consistory_ray.consistory.models.hooks import UNetHooks, execution_device, offloaded_again
from consistory_ray.consistory.models.schedules import ddim_scheduler, scheduler_notice
from consistory_ray.consistory.models.sdxl import SplitUNet, method_installed
from consistory_ray.errors import AssetError, InputError, PictureError, Problem
from consistory_ray.guards.numerics import warn_of_half_on_cpu
from consistory_ray.settings import FreeU, MethodSettings


class _ModelDefault:
    """Type of :data:`MODEL_DEFAULT`."""

    def __repr__(self) -> str:
        return "MODEL_DEFAULT"


MODEL_DEFAULT: Final = _ModelDefault()
"""Stands for the model's own default of a setting (``None`` often means something else)."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RenderResult:
    """Rendered pictures.

    Attributes:
        images: list of PIL images, float array [B, height, width, 3] in 0..1, or latents [B, 4, h, w] float32.
            (Where a :class:`~consistory_ray.errors.PictureError` brings the result, what failed is None or NaN in it.)
        masks: level ("coarse", "fine") -> final subject masks, bool [B, rows, columns]; empty where none were made.
    """

    images: Any
    masks: dict[Level, Tensor]


@dataclass(frozen=True)
class SubjectResult(RenderResult):
    """A subject's anchors.

    Attributes:
        cache: what scenes of the subject are rendered with.
    """

    cache: AnchorCache


class ConsiStoryPipeline:
    """Consistent subjects with a model of the SDXL architecture, without training (arXiv 2402.03286).

    Pictures are always sampled by DDIM, on the noise schedule and the prediction type that the configuration of
    ``pipe.scheduler`` names; the scheduler itself is not used, and other samplers do not work yet. A ``UserWarning``
    says so, once, where that one would go other ways. Adapters (``pipe.load_lora_weights``, ``set_adapters``) and
    offloading (``pipe.enable_model_cpu_offload()`` and the other kinds) work as they do in diffusers, also when they
    are changed between calls; VAE tiling and slicing too.

    Args:
        pipe: a loaded pipeline. It is left as found after every call, also after a failed one.
        default_settings: of the model; the paper's constants when None.

    Attributes:
        pipe: the pipeline.
        default_settings: used where a call is given none.
        notices: what somebody should know about the model, in whole sentences.

    Raises:
        CheckpointError: the pipeline's model is not of the SDXL architecture. Every call raises it too, for a pipeline
            that was changed meanwhile so that it cannot be used any more.
        InputError: the environment names an attention kernel that does not exist.
    """

    def __init__(self, pipe: StableDiffusionXLPipeline, default_settings: MethodSettings | None = None) -> None:
        chosen_kernel()  # a wrong environment is refused here, not in the middle of a picture
        self.pipe: Any = pipe
        self.default_settings = default_settings or MethodSettings()
        self.notices: list[str] = []
        self._held: tuple[str, str] | None = None
        self._check(stacklevel=3)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "miniature",
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        config: str | Path | None = None,
    ) -> ConsiStoryPipeline:
        """Load a model.

        Args:
            model: ``"miniature"`` (bundled), a hub id, a folder, or a ``.safetensors`` file.
            dtype: of the weights; float16 on CUDA and float32 elsewhere when None.
            torch_dtype: the older name of ``dtype``.
            device: CUDA when there is one, else the CPU, when None.
            config: for a single file, where its configurations and tokenizers are; see
                :func:`~consistory_ray.consistory.models.checkpoints.load_checkpoint`.

        Raises:
            CheckpointError: the model cannot be found, loaded or used.
        """
        if dtype is not None and torch_dtype not in (None, dtype):
            fix = f"leave it out, dtype={dtype} is given too"
            raise InputError("the arguments do not fit each other", [Problem("torch_dtype", str(torch_dtype), fix)])
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or torch_dtype or (torch.float16 if place.type == "cuda" else torch.float32)
        warn_of_half_on_cpu(place.type, str(dtype).removeprefix("torch."))
        notices: list[str] = []
        pipe, settings = load_checkpoint(model, dtype, config, notices.append)
        pipe.set_progress_bar_config(disable=True)
        pipeline = cls(pipe.to(place), settings)
        pipeline.notices[:0] = notices
        return pipeline

    @property
    def device(self) -> torch.device:
        """Where the UNet computes."""
        return execution_device(self.pipe)

    @property
    def fingerprint(self) -> str:
        """Identifies weights, configurations and what adapters do, whatever dtype and device; 64 hexadecimal digits."""
        adapters = adapter_state(self.pipe)
        if self._held is not None and self._held[0] == adapters:
            return self._held[1]
        found = model_fingerprint(self.pipe)
        if self._held is not None:
            self._held = adapters, found
        return found

    def hold_fingerprint(self) -> None:
        """Promise that nobody changes the weights from now on, so that not every call has to look at them again.

        Adapters may still be switched and scaled: that is looked at in every call.
        """
        self._held = adapter_state(self.pipe), model_fingerprint(self.pipe)

    def _check(self, stacklevel: int = 4) -> None:
        """Refuse a pipeline that cannot be used as it is at the moment, and tell what is not used of it."""
        check_architecture(self.pipe)
        UNetHooks(self.pipe.unet)
        notice = scheduler_notice(self.pipe.scheduler)
        if notice and notice not in self.notices:
            self.notices.append(notice)
            warnings.warn(notice, UserWarning, stacklevel=stacklevel)

    @torch.no_grad()
    def create_subject(
        self,
        prompts: Sequence[str],
        concepts: str | Sequence[str],
        seeds: Sequence[int] | None = None,
        *,
        latents: Tensor | None = None,
        settings: MethodSettings | None = None,
        height: int | _ModelDefault | None = MODEL_DEFAULT,
        width: int | _ModelDefault | None = MODEL_DEFAULT,
        num_inference_steps: int | _ModelDefault = MODEL_DEFAULT,
        guidance_scale: float | _ModelDefault = MODEL_DEFAULT,
        negative_prompt: str | _ModelDefault | None = MODEL_DEFAULT,
        mask_dropout: float | _ModelDefault = MODEL_DEFAULT,
        sdsa: bool | _ModelDefault = MODEL_DEFAULT,
        query_blending: bool | _ModelDefault = MODEL_DEFAULT,
        injection: bool | _ModelDefault = MODEL_DEFAULT,
        freeu: FreeU | _ModelDefault | None = MODEL_DEFAULT,
        output_type: OutputType = "pil",
        progress: Progress | None = None,
        trace: Trace | None = None,
    ) -> SubjectResult:
        """Render a subject's anchors together and keep what its scenes will need.

        Args:
            prompts: one per anchor.
            concepts: the words of the prompts that name the subject.
            seeds: one per anchor: its initial noise and its self-attention dropout.
            latents: initial noise [A, 4, h, w] instead; dropout then follows ``seeds`` where given, else the position.
            settings: all settings at once, in place of the model's defaults; single ones below override them.
            height, width: in pixels; None is the model's own size (or that of ``latents``).
            num_inference_steps, guidance_scale, negative_prompt, mask_dropout, sdsa, query_blending, injection, freeu:
                see :class:`~consistory_ray.settings.MethodSettings`.
            output_type: ``"pil"``, ``"np"`` or ``"latent"``.
            progress: called with (steps done, steps in all).
            trace: filled with what happens inside.

        Raises:
            InputError: arguments that do not fit each other; :class:`PromptError` for concepts not in a prompt.
            AssetError: the model produced numbers that are not finite, or an anchor of one colour.
        """
        self._check()
        given = {
            "height": height,
            "width": width,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "mask_dropout": mask_dropout,
            "sdsa": sdsa,
            "query_blending": query_blending,
            "injection": injection,
            "freeu": freeu,
        }
        changes: dict[str, Any] = {}
        if latents is not None and settings is None:  # the size is then that of the latents, not the default one
            changes = {"height": None, "width": None}
        changes |= {key: value for key, value in given.items() if not isinstance(value, _ModelDefault)}
        resolved = resolve_settings(self.pipe, (settings or self.default_settings).replace(**changes), latents)
        concepts = (concepts,) if isinstance(concepts, str) else tuple(concepts)
        seeds = whole_seeds(seeds)
        batch = make_batch(self.pipe, prompts, seeds, latents, concepts, resolved, every=True)
        plan, grids = StepPlan.from_settings(resolved), token_grids(self.pipe, resolved)
        halves = 2 if resolved.guidance_scale > 1 else 1
        dropout_seeds = tuple(seeds) if seeds is not None else tuple(range(len(batch.prompts)))
        anchors = LiveAnchors(resolved, plan, grids, halves, dropout_seeds)
        with offloaded_again(self.pipe):
            with method_installed(self.pipe.unet, resolved.freeu) as unet:
                tick = _ticker(progress, _steps(plan))
                result = self._sample(unet, batch, resolved, plan, grids, anchors, tick, trace)
            images, faults = decode_latents(self.pipe, result.latents, output_type)
        if faults:  # scenes cannot do without any of them
            raise AssetError(PictureError.of(faults, len(batch.prompts)).message)
        masks = _final_masks(result)
        cache = AnchorCache(
            settings=resolved,
            fingerprint=self.fingerprint,
            concepts=concepts,
            prompts=batch.prompts,
            seeds=None if seeds is None else tuple(seeds),
            grids={level: (grid.height, grid.width) for level, grid in grids.items()},
            tensors=anchors.recorded(masks, self.pipe.unet.dtype),
        )
        return SubjectResult(images, _shaped(masks, grids), cache)

    @torch.no_grad()
    def render(
        self,
        prompts: Sequence[str],
        subject: AnchorCache | SubjectResult,
        seeds: Sequence[int] | None = None,
        *,
        latents: Tensor | None = None,
        batch_size: int | None = None,
        settings: MethodSettings | None = None,
        output_type: OutputType = "pil",
        progress: Progress | None = None,
        trace: Trace | None = None,
    ) -> RenderResult:
        """Render scenes of a subject. Steps, guidance, size and switches are those of the subject.

        Args:
            prompts: one per scene.
            subject: from :meth:`create_subject`, or a loaded cache.
            seeds: one per scene; a seed gives the same initial noise whatever the batch or device.
            latents: initial noise [B, 4, h, w] instead.
            batch_size: how many scenes are denoised together; all of them when None. It does not change the pictures.
            settings: settings that the cache is required to have been made with, or None.
            output_type, progress, trace: as in :meth:`create_subject`; a trace holds the last batch.

        Raises:
            CacheMismatchError: the cache belongs to another model or other settings.
            InputError: arguments that do not fit each other; :class:`PromptError` for concepts not in a prompt.
            PictureError: the model produced numbers that are not finite, or pictures of one colour. It names them, and
                its ``result`` has the others.
        """
        self._check()
        cache = subject.cache if isinstance(subject, SubjectResult) else subject
        check_cache(cache, self.fingerprint, settings)
        resolved = cache.settings
        as_written = all_exact(cache.prompts, cache.concepts)
        batch = make_batch(self.pipe, prompts, seeds, latents, cache.concepts, resolved, exact_suffices=as_written)
        plan, grids = StepPlan.from_settings(resolved), token_grids(self.pipe, resolved)

        def companions() -> Companions:
            return CachedAnchors(cache, plan, grids, self.device, self.pipe.unet.dtype)

        return self._render(batch, resolved, plan, companions, batch_size, output_type, progress, trace)

    @torch.no_grad()
    def render_vanilla(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        *,
        latents: Tensor | None = None,
        concepts: str | Sequence[str] | None = None,
        settings: MethodSettings | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        progress: Progress | None = None,
        trace: Trace | None = None,
    ) -> RenderResult:
        """The same model, sampler, initial noise and FreeU without the method, for comparison.

        Args:
            concepts: make masks of these words too; no masks when None.
            settings: of which the method's switches are ignored; the model's defaults when None.
            prompts, seeds, latents, batch_size, output_type, progress, trace: as in :meth:`render`.

        Raises:
            InputError: arguments that do not fit each other.
            PictureError: as :meth:`render`.
        """
        self._check()
        off = (settings or self.default_settings).replace(sdsa=False, query_blending=False, injection=False)
        resolved = resolve_settings(self.pipe, off, latents)
        concepts = (concepts,) if isinstance(concepts, str) else concepts
        batch = make_batch(self.pipe, prompts, seeds, latents, None if concepts is None else tuple(concepts), resolved)
        plan = StepPlan.from_settings(resolved)
        return self._render(batch, resolved, plan, Companions, batch_size, output_type, progress, trace)

    def _render(
        self,
        batch: Batch,
        settings: MethodSettings,
        plan: StepPlan,
        companions: Callable[[], Companions],
        batch_size: int | None,
        output_type: OutputType,
        progress: Progress | None,
        trace: Trace | None,
    ) -> RenderResult:
        if batch_size is not None and batch_size < 1:
            raise InputError("the batch size is wrong", [Problem("batch_size", str(batch_size), "must be 1 or more")])
        size = batch_size or len(batch.prompts)
        grids = token_grids(self.pipe, settings)
        starts = range(0, len(batch.prompts), size)
        tick = _ticker(progress, _steps(plan) * len(starts))
        results = []
        with offloaded_again(self.pipe):
            with method_installed(self.pipe.unet, settings.freeu) as unet:
                for start in starts:
                    part = batch.part(start, start + size)
                    try:
                        results.append(self._sample(unet, part, settings, plan, grids, companions(), tick, trace))
                    except AssetError:  # this part only
                        results.append(PassResult.given_up(part.latents, grids, masked=part.columns is not None))
            latents = torch.cat([result.latents.cpu() for result in results])
            images, faults = decode_latents(self.pipe, latents.to(self.device), output_type)
        found = [result.masks for result in results if result.masks is not None]
        masks = {level: torch.cat([part[level].cpu() for part in found]) for level in grids} if found else {}
        rendered = RenderResult(images, _shaped(masks, grids))
        if faults:
            raise PictureError.of(faults, len(batch.prompts), rendered)
        return rendered

    def _sample(
        self,
        unet: SplitUNet,
        batch: Batch,
        settings: MethodSettings,
        plan: StepPlan,
        grids: dict[Level, Grid],
        companions: Companions,
        tick: Callable[[], None],
        trace: Trace | None,
    ) -> PassResult:
        size = settings.height or 0, settings.width or 0
        guided = settings.guidance_scale > 1
        conditioning = encode_prompts(self.pipe, batch.prompts, settings.negative_prompt, size, guided, self.device)
        scheduler = ddim_scheduler(self.pipe.scheduler.config, settings.num_inference_steps, self.device)
        if trace is not None:
            trace.token_positions = batch.positions
            trace.prompt_embeds = conditioning.text.chunk(conditioning.halves)[-1].cpu()
            trace.pooled = conditioning.pooled.chunk(conditioning.halves)[-1].cpu()
        sampler = Sampler(unet, scheduler, settings, plan, grids, conditioning, companions, tick, trace)
        latents = batch.latents.to(self.device, torch.float32) * scheduler.init_noise_sigma
        columns = None if batch.columns is None else batch.columns.to(self.device)
        return sampler.sample(latents, columns)


def _steps(plan: StepPlan) -> int:
    return plan.steps + (0 if plan.fork is None else plan.steps - plan.fork)


def _ticker(progress: Progress | None, total: int) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick


def _final_masks(result: PassResult) -> Masks:
    assert result.masks is not None  # every subject has concepts, hence masks
    return result.masks


def _shaped(masks: Masks, grids: dict[Level, Grid]) -> dict[Level, Tensor]:
    """[images, tokens] -> [images, rows, columns] on the CPU."""
    return {level: mask.reshape(-1, grids[level].height, grids[level].width).cpu() for level, mask in masks.items()}
