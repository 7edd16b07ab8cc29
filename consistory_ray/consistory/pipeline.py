"""The public face of the method: make a subject once, render it in any scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from consistory_ray.adapters import Embedding, LoRA
from consistory_ray.concepts.compel_syntax import plain_text
from consistory_ray.concepts.matching import all_exact
from consistory_ray.consistory.cache.anchor_cache import AnchorCache
from consistory_ray.consistory.cache.contents import check_cache
from consistory_ray.consistory.cache.residence import PlacedCache
from consistory_ray.consistory.controls import Controls, led
from consistory_ray.consistory.generators import Generators
from consistory_ray.consistory.given_pictures import given_pictures, refuse_both
from consistory_ray.consistory.inputs import (
    changed_settings,
    make_batch,
    resolve_settings,
    scene_settings,
    whole_seeds,
)
from consistory_ray.consistory.loaded_model import LoadedModel
from consistory_ray.consistory.method.attention_kernel import check_choices
from consistory_ray.consistory.method.backbone import Backbone
from consistory_ray.consistory.method.companions import CachedAnchors, Companions
from consistory_ray.consistory.method.request import Request
from consistory_ray.consistory.method.steps import StepPlan
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.consistory.models.checkpoints import check_architecture
from consistory_ray.consistory.models.controlnets import (
    ControlNet,
    check_before_loading,
    listed,
    load_controlnets,
)
from consistory_ray.consistory.models.loading import load_model
from consistory_ray.consistory.models.sdxl import SDXL
from consistory_ray.consistory.results import Progress, RenderResult, SubjectResult
from consistory_ray.consistory.scenes import render_scenes
from consistory_ray.consistory.step_callbacks import LATENTS, OnStepEnd, step_callback
from consistory_ray.consistory.subjects import given_subject, make_subject
from consistory_ray.consistory.watching import OutputType, Watch
from consistory_ray.consistory.words import Texts
from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.numerics import warn_of_half_on_cpu
from consistory_ray.settings import MethodSettings


class ConsiStoryPipeline(LoadedModel):
    """Consistent subjects with a model of the SDXL architecture, without training (arXiv 2402.03286).

    Pictures are sampled by the scheduler that the settings name, by default DDIM, on the noise schedule and the
    prediction type that the configuration of ``pipe.scheduler`` names; ``scheduler="model"`` uses that one itself. A
    ``UserWarning`` says so, once, where it would go other ways than DDIM. Adapters (``pipe.load_lora_weights``,
    ``set_adapters``) and offloading (``pipe.enable_model_cpu_offload()`` and the other kinds) work as they do in
    diffusers, also when they are changed between calls; VAE tiling and slicing too.

    Args:
        pipe: a loaded pipeline, or another :class:`~consistory_ray.consistory.method.backbone.Backbone`. It is left as
            found after every call, also after a failed one.
        default_settings: of the model; the paper's constants when None.
        controlnets: names as for :meth:`from_pretrained`, or loaded ``ControlNetModel`` and ``ControlNetUnionModel`` of
            diffusers, which hints name by their positions.
        guess_mode: ControlNets lead the conditional half only, as in diffusers.

    Raises:
        CheckpointError: the pipeline's model is not of the SDXL architecture. Every call raises it too, for a pipeline
            that was changed meanwhile so that it cannot be used any more.
        InputError: the environment names an attention kernel that does not exist; or ControlNets are given for a
            backbone that brings its own, or takes none.
    """

    def __init__(
        self,
        pipe: StableDiffusionXLPipeline | Backbone,
        default_settings: MethodSettings | None = None,
        *,
        controlnets: Sequence[str | Path | ControlNet] = (),
        guess_mode: bool = False,
    ) -> None:
        check_choices()  # a wrong environment is refused here, not in the middle of a picture
        self.pipe: Any = pipe
        given = listed(controlnets)
        if isinstance(pipe, Backbone):
            if given:
                fix = "leave them out: only a StableDiffusionXLPipeline is given ControlNets"
                problem = Problem("controlnets", f"{len(given)} for a {type(pipe).__name__}", fix)
                raise InputError("the arguments do not fit each other", [problem])
            self.backbone: Backbone = pipe
        else:
            if given:
                check_architecture(pipe)
            self.backbone = SDXL(pipe, load_controlnets(given, pipe), guess_mode)
        self.default_settings = default_settings or MethodSettings()
        self.notices: list[str] = []
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
        controlnets: Sequence[str | Path | ControlNet] = (),
        guess_mode: bool = False,
        loras: Sequence[LoRA | str | Path] = (),
        embeddings: Sequence[Embedding] = (),
        vae: str | Path | None = None,
        variant: str | None = None,
        revision: str | None = None,
    ) -> ConsiStoryPipeline:
        """Load a model.

        Args:
            model: ``"miniature"`` (bundled), a hub id, a folder, or a ``.safetensors`` file.
            dtype: of the weights; float16 on CUDA and float32 elsewhere when None.
            torch_dtype: the older name of ``dtype``.
            device: CUDA when there is one, else the CPU, when None.
            config: for a single file, where its configurations and tokenizers are; see
                :func:`~consistory_ray.consistory.models.checkpoints.load_checkpoint`.
            controlnets: each ``"miniature"`` (bundled, for the model of that name), a hub id, a folder, a
                ``.safetensors`` file in diffusers' layout, or a loaded one.
            guess_mode: as for the class.
            loras: fused into the weights: each a :class:`~consistory_ray.adapters.names.LoRA` with its weight, or its
                path alone: the name of a bundled one such as ``"miniature/distilled-8"``, a hub id, a folder, a
                ``.safetensors`` file or a URL.
            embeddings: textual inversions, each an :class:`~consistory_ray.adapters.names.Embedding` with its token.
            vae: in place of the model's own: a folder, a hub id or a ``.safetensors`` file.
            variant: which weight files of the model to take, such as ``"fp16"``; by the dtype when None.
            revision: of a model on the hub.

        Raises:
            CheckpointError: the model, or something that goes with it, cannot be found, loaded or used. What does not
                fit the model is refused before it is loaded, where configurations tell.
        """
        if dtype is not None and torch_dtype not in (None, dtype):
            fix = f"leave it out, dtype={dtype} is given too"
            raise InputError("the arguments do not fit each other", [Problem("torch_dtype", str(torch_dtype), fix)])
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or torch_dtype or (torch.float16 if place.type == "cuda" else torch.float32)
        warn_of_half_on_cpu(place.type, str(dtype).removeprefix("torch."))
        notices: list[str] = []
        check_before_loading(given := listed(controlnets), model, revision)
        more: dict[str, Any] = {"loras": loras, "embeddings": embeddings, "vae": vae, "variant": variant}
        more |= {"config": config, "revision": revision}
        pipe, settings = load_model(model, dtype, tell=notices.append, **more)
        pipe.set_progress_bar_config(disable=True)
        pipe = pipe.to(place)
        if place.type == "cuda":  # convolutions there want channels last; on a CPU it would change how they round
            pipe.unet.to(memory_format=torch.channels_last)
        pipeline = cls(pipe, settings, controlnets=given, guess_mode=guess_mode)
        pipeline.notices[:0] = notices
        return pipeline

    @torch.no_grad()
    def create_subject(
        self,
        prompts: Sequence[str],
        concepts: str | Sequence[str],
        seeds: Sequence[int] | None = None,
        *,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        images: Sequence[Any] | None = None,
        masks: Sequence[Any] | None = None,
        controls: Controls | None = None,
        prompts_2: Texts | None = None,
        negative_prompts: Texts | None = None,
        settings: MethodSettings | None = None,
        output_type: OutputType = "pil",
        progress: Progress | None = None,
        trace: Trace | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (LATENTS,),
        **changes: Any,
    ) -> SubjectResult:
        """Render a subject's anchors together, or take given pictures for them, and keep what its scenes will need.

        Args:
            prompts: one per anchor; of given pictures what they show.
            concepts: the words of the prompts that name the subject.
            seeds: one per anchor: its noise and its self-attention dropout. Given pictures may do without.
            generator: a ``torch.Generator`` for all, or one per anchor, in the place of ``seeds`` and ``latents``: the
                initial noise is then drawn from it as diffusers' pipelines draw it. Later noise and dropout follow the
                number that it was seeded with.
            latents: initial noise [A, 4, h, w] instead; dropout then follows ``seeds`` where given, else the position.
            images: 1 to 8 pictures of the subject, which are then its anchors (section 10 of docs/method.md): PIL
                images or arrays, uint8 or floats from 0 to 1. Others than of the size that is rendered are cut to it.
            masks: where the subject is in each of them, as a bool array [height, width] or PIL image of its size; None
                for those whose transparency tells, or in which it should be found.
            controls: what leads each anchor: a :class:`~consistory_ray.consistory.method.hints.ControlHint`, a list of
                them, or None. Nothing of it enters the cache but what anchors became by it.
            prompts_2: what the second text encoder reads instead of the prompts: one text for all, or one per anchor,
                None where it reads the prompt.
            negative_prompts: in place of the settings' ``negative_prompt``: one text for all, or one per anchor, None
                where it is the settings' one.
            settings: all settings at once, in place of the model's defaults.
            output_type: ``"pil"``, ``"np"``, ``"pt"`` or ``"latent"``.
            progress: called with (steps done, steps in all).
            trace: filled with what happens inside.
            callback_on_step_end: ``callback(pipe, step, timestep, callback_kwargs)`` as in diffusers, called after each
                of the ``num_inference_steps`` that lead to the pictures, those of pass 1 before the fork and those of
                pass 2 from there on; the rest of pass 1 goes unseen. The next step goes on from the ``latents`` in the
                dict that it returns, which may be others. To stop, raise an exception, or set ``pipe._interrupt``.
            callback_on_step_end_tensor_inputs: names of what it is shown: latents, or nothing.
            changes: single settings by name, which override those: ``num_inference_steps``, ``guidance_scale`` and so
                on, see :class:`~consistory_ray.settings.MethodSettings`. ``height`` and ``width`` are in pixels, None
                is the model's own size (or that of ``latents``).

        Raises:
            InputError: a setting that does not exist, or arguments that do not fit each other; :class:`PromptError` for
                concepts not in a prompt.
            AssetError: the model produced numbers that are not finite, or an anchor of one colour, or the callback has
                interrupted the call; as a :class:`PictureError` that names them: given pictures in which the subject is
                not found.
        """
        self._check()
        if latents is not None and settings is None:  # the size is then that of the latents, not the default one
            changes = {"height": None, "width": None} | changes
        changed = changed_settings(settings or self.default_settings, changes)
        resolved = resolve_settings(self.backbone, changed, latents)
        plan = StepPlan.from_settings(resolved, self.backbone.schedule(resolved).levels)
        self._tell(plan.without_injection(resolved))
        concepts = (concepts,) if isinstance(concepts, str) else tuple(concepts)
        callback = step_callback(self.pipe, callback_on_step_end, callback_on_step_end_tensor_inputs)
        watch = Watch(output_type, progress, trace, callback)
        refuse_both(images, masks, latents, callback)
        given: dict[str, Any] = {"prompts_2": prompts_2, "negative_prompts": negative_prompts, "generator": generator}
        if images is not None:
            size = resolved.height or 0, resolved.width or 0
            pictures = given_pictures(images, masks, len(prompts), size)
            seeds = range(len(prompts)) if seeds is None and generator is None else seeds
            batch = make_batch(self.backbone, prompts, seeds, None, concepts, resolved, every=True, **given)
            batch = led(self.backbone, batch, controls)
            return given_subject(self.backbone, batch, concepts, pictures, resolved, watch)
        batch = make_batch(self.backbone, prompts, seeds, latents, concepts, resolved, every=True, **given)
        batch = led(self.backbone, batch, controls)
        return make_subject(self.backbone, batch, concepts, whole_seeds(seeds), resolved, watch)

    @torch.no_grad()
    def render(
        self,
        prompts: Sequence[str],
        subject: AnchorCache | SubjectResult | PlacedCache,
        seeds: Sequence[int] | None = None,
        *,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        controls: Controls | None = None,
        prompts_2: Texts | None = None,
        negative_prompts: Texts | None = None,
        batch_size: int | None = None,
        pad_to: int | None = None,
        settings: MethodSettings | None = None,
        output_type: OutputType = "pil",
        progress: Progress | None = None,
        trace: Trace | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (LATENTS,),
        **changes: Any,
    ) -> RenderResult:
        """Render scenes of a subject. Steps, guidance, size and switches are those of the subject.

        Args:
            prompts: one per scene.
            subject: from :meth:`create_subject`, or a loaded cache. Its tensors are brought to the device a step ahead,
                in every batch anew; ``cache.to("cuda")`` is there for good, and of a
                :class:`~consistory_ray.consistory.cache.residence.PlacedCache` as much as there is room for.
            seeds: one per scene; a seed gives the same initial noise whatever the batch or device.
            generator: a ``torch.Generator`` for all, or one per scene, instead: as in :meth:`create_subject`.
            latents: initial noise [B, 4, h, w] instead.
            controls: what leads each scene, as in :meth:`create_subject`; anchors need not have been led.
            prompts_2, negative_prompts: as in :meth:`create_subject`; anchors need not have had any.
            batch_size: how many scenes are denoised together; ``pad_to`` or all of them when None. Numbers are rounded
                otherwise in batches of another size; docs/outputs.md tells what that does to pictures.
            pad_to: fill every batch up to so many scenes, by copies that are dropped. On the same device a scene then
                comes out bit for bit the same in whatever company, for the time that the copies take.
            settings: settings that the cache is required to have been made with, but for what is saved on scenes
                (:data:`~consistory_ray.settings.SCENE_SETTINGS`), which is then done as they say; or None.
            output_type, progress, trace: as in :meth:`create_subject`; a trace holds the last batch, copies included.
            callback_on_step_end, callback_on_step_end_tensor_inputs: as in :meth:`create_subject`, for one batch after
                the other, without copies.
            changes: ``profile``, or single settings of what is saved on scenes, in place of the subject's.

        Raises:
            CacheMismatchError: the cache belongs to another model or other settings, or lacks what a profile reads.
            InputError: arguments that do not fit each other; :class:`PromptError` for concepts not in a prompt.
            PictureError: the model produced numbers that are not finite, or pictures of one colour, or the callback has
                interrupted the call before they were done. It names them, and its ``result`` has the others.
        """
        self._check()
        callback = step_callback(self.pipe, callback_on_step_end, callback_on_step_end_tensor_inputs)
        watch = Watch(output_type, progress, trace, callback)
        cache = subject if isinstance(subject, AnchorCache) else subject.cache
        placed = subject if isinstance(subject, PlacedCache) else PlacedCache(cache, self.device)
        resolved = scene_settings(cache.settings, settings, changes)
        fingerprint = self.fingerprint
        if settings is not None:
            check_cache(cache, fingerprint, settings)
        check_cache(cache, fingerprint, resolved)
        as_written = all_exact([plain_text(one, resolved.prompt_syntax) for one in cache.prompts], cache.concepts)
        given: dict[str, Any] = {"prompts_2": prompts_2, "negative_prompts": negative_prompts, "generator": generator}
        given["exact_suffices"] = as_written
        batch = make_batch(self.backbone, prompts, seeds, latents, cache.concepts, resolved, **given)
        batch = led(self.backbone, batch, controls)

        def companions(request: Request) -> Companions:
            return CachedAnchors(request, placed, self.backbone.dtype)

        return render_scenes(self.backbone, batch, resolved, companions, batch_size, pad_to, watch)

    @torch.no_grad()
    def render_vanilla(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int] | None = None,
        *,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        concepts: str | Sequence[str] | None = None,
        controls: Controls | None = None,
        prompts_2: Texts | None = None,
        negative_prompts: Texts | None = None,
        settings: MethodSettings | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        progress: Progress | None = None,
        trace: Trace | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (LATENTS,),
        **changes: Any,
    ) -> RenderResult:
        """The same model, sampler, initial noise and FreeU without the method, for comparison.

        Args:
            concepts: make masks of these words too; no masks when None.
            settings: of which the method's switches are ignored; the model's defaults when None.
            changes: single settings by name, as in :meth:`create_subject`.
            prompts, seeds, generator, latents, controls, prompts_2, negative_prompts: as in :meth:`render`.
            batch_size, output_type, progress, trace: as in :meth:`render`.
            callback_on_step_end, callback_on_step_end_tensor_inputs: as in :meth:`render`.

        Raises:
            InputError: a setting that does not exist, or arguments that do not fit each other.
            PictureError: as :meth:`render`.
        """
        self._check()
        callback = step_callback(self.pipe, callback_on_step_end, callback_on_step_end_tensor_inputs)
        watch = Watch(output_type, progress, trace, callback)
        changed = changed_settings(settings or self.default_settings, changes)
        off = changed.replace(sdsa=False, query_blending=False, injection=False)
        resolved = resolve_settings(self.backbone, off, latents)
        concepts = (concepts,) if isinstance(concepts, str) else concepts
        named = None if concepts is None else tuple(concepts)
        given: dict[str, Any] = {"prompts_2": prompts_2, "negative_prompts": negative_prompts, "generator": generator}
        batch = make_batch(self.backbone, prompts, seeds, latents, named, resolved, **given)
        batch = led(self.backbone, batch, controls)
        return render_scenes(self.backbone, batch, resolved, Companions, batch_size, None, watch)
