"""A loaded model as its user handles it: what is known of it, and where it computes."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from typing_extensions import Self

from consistory_ray.consistory.method.backbone import Backbone, Compilable, Controllable
from consistory_ray.consistory.method.compiling import check_compiler
from consistory_ray.errors import InputError, Problem
from consistory_ray.settings import MethodSettings


class LoadedModel:
    """What :class:`~consistory_ray.consistory.pipeline.ConsiStoryPipeline` has besides its ways to pictures.

    Attributes:
        pipe: the pipeline.
        backbone: the same as the method sees it.
        default_settings: used where a call is given none.
        notices: what somebody should know about the model, in whole sentences.
    """

    pipe: Any
    backbone: Backbone
    default_settings: MethodSettings
    notices: list[str]

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.backbone.device

    @property
    def fingerprint(self) -> str:
        """Identifies weights, configurations and what adapters do, whatever dtype and device; 64 hexadecimal digits."""
        return self.backbone.fingerprint

    @property
    def control_fingerprints(self) -> tuple[str, ...]:
        """The same of each ControlNet. No cache depends on them: led scenes use any cache of the model."""
        return self.backbone.control_fingerprints if isinstance(self.backbone, Controllable) else ()

    def hold_fingerprint(self) -> None:
        """Promise that nobody changes the weights from now on, so that not every call has to look at them again.

        Adapters may still be switched and scaled: that is looked at in every call.
        """
        self.backbone.hold_fingerprint()

    def compile(self, *, backend: str = "inductor", **options: Any) -> None:
        """Compile the network's transformer blocks (``torch.compile``), each kind of them once for each thing to do.

        That happens when they first run, and anew for other sizes of pictures and batches: minutes in which nothing is
        rendered. Pictures differ from uncompiled ones by rounding. Anchors, and the first call of each batch, are not
        compiled. The model stays compiled, also for other uses.

        Args:
            backend, options: of ``torch.compile``; sizes are static unless ``dynamic`` says otherwise.

        Raises:
            InputError: the backbone's network cannot be compiled, or inductor finds no C++ compiler.
        """
        if not isinstance(self.backbone, Compilable):
            problem = Problem("compile", type(self.backbone).__name__, "leave it out: this model cannot be compiled")
            raise InputError("the network cannot be compiled", [problem])
        check_compiler(backend)
        self.backbone.compile(backend=backend, **{"dynamic": False, **options})

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the pipeline to a device, or to another dtype, as in diffusers; its ControlNets follow to the device."""
        self._own("to")(*args, **kwargs)
        return self

    def enable_model_cpu_offload(self, **options: Any) -> None:
        """Bring each of the pipeline's models to the device only while it is needed; as in diffusers."""
        self._own("enable_model_cpu_offload")(**options)

    def enable_sequential_cpu_offload(self, **options: Any) -> None:
        """Bring each layer's weights to the device only while it is called; as in diffusers, slow."""
        self._own("enable_sequential_cpu_offload")(**options)

    def enable_group_offload(self, **options: Any) -> None:
        """Bring groups of layers to the device only while they are called; as in diffusers."""
        self._own("enable_group_offload")(**options)

    def enable_vae_tiling(self) -> None:
        """Decode large pictures in tiles, which takes less memory; the same as ``pipe.vae.enable_tiling()``."""
        self._own("vae").enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Decode pictures as a whole again."""
        self._own("vae").disable_tiling()

    def _own(self, name: str) -> Any:
        """What the pipeline of diffusers has by a name.

        Raises:
            InputError: there is none of diffusers, but another backbone.
        """
        if self.pipe is self.backbone:
            problem = Problem("pipe", type(self.pipe).__name__, "call this on the backbone itself, if it can do it")
            raise InputError("this needs a StableDiffusionXLPipeline", [problem])
        return getattr(self.pipe, name)

    def _check(self, stacklevel: int = 4) -> None:
        """Refuse a model that cannot be used as it is at the moment, and tell what is not used of it."""
        self._tell(self.backbone.check(), stacklevel + 1)

    def _tell(self, notice: str, stacklevel: int = 4) -> None:
        """Say once what somebody should know; empty is nothing."""
        if notice and notice not in self.notices:
            self.notices.append(notice)
            warnings.warn(notice, UserWarning, stacklevel=stacklevel)
