"""The SDXL architecture as the method's first backbone: a loaded diffusers pipeline, asked anew in every call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from consistory_ray.consistory.method.backbone import Decoded, Network
from consistory_ray.consistory.method.conditioning import Conditioning
from consistory_ray.consistory.method.hints import Hints
from consistory_ray.consistory.method.latents import SchedulerSteps
from consistory_ray.consistory.method.layout import Grid, Level, Levels
from consistory_ray.consistory.models.checkpoints import check_architecture
from consistory_ray.consistory.models.control import Control, controlnets_in_use
from consistory_ray.consistory.models.controlnet_checks import mode_names
from consistory_ray.consistory.models.controlnets import check_controlnets
from consistory_ray.consistory.models.decoding import decode_latents, encode_pictures
from consistory_ray.consistory.models.encoding import encode_prompts, told_guidance, weighted_lengths
from consistory_ray.consistory.models.fingerprint import Moment, network_fingerprint
from consistory_ray.consistory.models.hooks import UNetHooks, execution_device, offloaded_again
from consistory_ray.consistory.models.identity import pipeline_fingerprint
from consistory_ray.consistory.models.prompts import concept_positions, text_tokens
from consistory_ray.consistory.models.schedules import model_schedule, scheduler_notice
from consistory_ray.consistory.models.sdxl_layout import LEVELS, level_grids
from consistory_ray.consistory.models.split_unet import method_installed
from consistory_ray.consistory.models.weighted import Weights
from consistory_ray.settings import FreeU, MethodSettings


class SDXL:
    """See :class:`~consistory_ray.consistory.method.backbone.Backbone`.

    Args:
        pipe: a ``StableDiffusionXLPipeline``.
        controlnets: that hints can name; see :class:`~consistory_ray.consistory.method.backbone.Controllable`.
        guess_mode: ControlNets lead the conditional half alone, see
            :class:`~consistory_ray.consistory.models.control.Control`.
    """

    levels: Levels = LEVELS

    def __init__(self, pipe: Any, controlnets: Sequence[Any] = (), guess_mode: bool = False) -> None:
        self.pipe = pipe
        self.controlnets = list(controlnets)
        self.guess_mode = guess_mode
        self._held: tuple[Moment, str] | None = None
        self._held_controls: tuple[str, ...] | None = None

    @property
    def device(self) -> torch.device:
        """Where the UNet computes."""
        return execution_device(self.pipe)

    @property
    def dtype(self) -> torch.dtype:
        """In what the UNet computes."""
        dtype: torch.dtype = self.pipe.unet.dtype
        return dtype

    @property
    def fingerprint(self) -> str:
        """Of weights, configurations and what adapters do, whatever dtype and device."""
        if self._held is None:
            return pipeline_fingerprint(self.pipe)
        if not (now := Moment(self.pipe)).is_like(self._held[0]):
            self._held = now, pipeline_fingerprint(self.pipe)
        return self._held[1]

    def hold_fingerprint(self) -> None:
        """See :class:`~consistory_ray.consistory.method.backbone.Backbone`."""
        self._held = Moment(self.pipe), pipeline_fingerprint(self.pipe)
        self._held_controls = self.control_fingerprints

    @property
    def control_fingerprints(self) -> tuple[str, ...]:
        """See :class:`~consistory_ray.consistory.method.backbone.Controllable`."""
        return self._held_controls or tuple(network_fingerprint(net) for net in self.controlnets)

    @property
    def control_modes(self) -> tuple[tuple[str, ...], ...]:
        """See :class:`~consistory_ray.consistory.method.backbone.Controllable`."""
        return tuple(mode_names(net.config) for net in self.controlnets)

    @property
    def text_tokens(self) -> int:
        """What both text encoders read."""
        return text_tokens(self.pipe)

    @property
    def native_size(self) -> tuple[int, int]:
        """Latent rows and columns of the UNet's configuration."""
        size = self.pipe.unet.config.sample_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @property
    def pixels_per_latent(self) -> int:
        """Of the autoencoder."""
        return int(self.pipe.vae_scale_factor)

    @property
    def max_steps(self) -> int:
        """The timesteps the model was trained with."""
        return int(self.pipe.scheduler.config.num_train_timesteps)

    def check(self) -> str:
        """See :class:`~consistory_ray.consistory.method.backbone.Backbone`."""
        check_architecture(self.pipe)
        UNetHooks(self.pipe.unet)
        check_controlnets(self.controlnets, self.pipe)
        return scheduler_notice(self.pipe.scheduler)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """See :class:`~consistory_ray.consistory.method.backbone.Backbone`."""
        scale = self.pixels_per_latent
        return int(self.pipe.unet.config.in_channels), height // scale, width // scale

    def grids(self, rows: int, columns: int) -> dict[Level, Grid]:
        """See :func:`~consistory_ray.consistory.models.sdxl_layout.level_grids`."""
        return level_grids(rows, columns)

    def concept_positions(
        self, prompts: Sequence[str], concepts: Sequence[str], *, every: bool = False, exact_suffices: bool = False
    ) -> list[list[list[int]]]:
        """See :func:`~consistory_ray.consistory.models.prompts.concept_positions`."""
        return concept_positions(self.pipe, prompts, concepts, every=every, exact_suffices=exact_suffices)

    def encode(
        self,
        prompts: Sequence[str],
        settings: MethodSettings,
        *,
        prompts_2: Sequence[str] = (),
        negatives: Sequence[str | None] = (),
    ) -> Conditioning:
        """See :func:`~consistory_ray.consistory.models.encoding.encode_prompts`."""
        width = getattr(self.pipe.unet.config, "time_cond_proj_dim", None)
        if width is None:
            return encode_prompts(self.pipe, prompts, prompts_2, negatives, settings, self.device)
        alone = settings.replace(guidance_scale=1.0)
        conditioning = encode_prompts(self.pipe, prompts, prompts_2, negatives, alone, self.device)
        return told_guidance(conditioning, settings.guidance_scale, width)

    def text_lengths(
        self,
        prompts: Sequence[str],
        settings: MethodSettings,
        *,
        prompts_2: Sequence[str] = (),
        negatives: Sequence[str | None] = (),
    ) -> list[int]:
        """See :class:`~consistory_ray.consistory.method.backbone.Weighing`."""
        return weighted_lengths(self.pipe, prompts, prompts_2, negatives, settings)

    def weighted_positions(
        self, prompts: Sequence[str], concepts: Sequence[str], *, every: bool = False, exact_suffices: bool = False
    ) -> list[list[list[int]]]:
        """See :meth:`~consistory_ray.consistory.models.weighted.Weights.positions`."""
        return Weights(self.pipe).positions(prompts, concepts, every=every, exact_suffices=exact_suffices)

    def schedule(self, settings: MethodSettings) -> SchedulerSteps:
        """See :func:`~consistory_ray.consistory.models.schedules.model_schedule`."""
        return model_schedule(self.pipe.scheduler, settings, self.device)

    def installed(self, freeu: FreeU | None) -> AbstractContextManager[Network]:
        """See :func:`~consistory_ray.consistory.models.split_unet.method_installed`."""
        return method_installed(self.pipe.unet, freeu)

    def compile(self, **options: Any) -> None:
        """The UNet's transformer blocks; see :class:`~consistory_ray.consistory.method.backbone.Compilable`."""
        self.pipe.unet.compile_repeated_blocks(**options)

    def additions(self, hints: Hints, settings: MethodSettings, *, fixed: bool = False) -> Control:
        """See :class:`~consistory_ray.consistory.models.control.Control`."""
        size = settings.height or 0, settings.width or 0
        return Control(self.controlnets, hints, size, self.guess_mode, self.device, fixed=fixed)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """See :func:`~consistory_ray.consistory.models.hooks.offloaded_again`; ControlNets are brought too."""
        offloaded = bool(getattr(self.pipe, "_all_hooks", None))
        with offloaded_again(self.pipe), controlnets_in_use(self.controlnets, self.device, offloaded):
            yield

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """See :func:`~consistory_ray.consistory.models.decoding.encode_pictures`."""
        return encode_pictures(self.pipe, pictures, self.device)

    def decode(self, latents: Tensor, output_type: Decoded) -> tuple[Any, dict[int, str]]:
        """See :func:`~consistory_ray.consistory.models.decoding.decode_latents`."""
        return decode_latents(self.pipe, latents, output_type)
