"""How a caller follows a call, and what becomes of its pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from consistory_ray.consistory.method.backbone import Backbone
from consistory_ray.consistory.method.denoiser import StepEnd
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.consistory.results import Progress
from consistory_ray.consistory.step_callbacks import StepCallback
from consistory_ray.errors import InputError, Problem
from consistory_ray.settings import MethodSettings

OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass(frozen=True)
class Watch:
    """What somebody wants to see of a call.

    Attributes:
        output_type: of the pictures.
        progress: is called with (steps done, steps in all).
        trace: is filled with what happens inside.
        after_steps: is called after the steps that lead to the pictures.
    """

    output_type: OutputType = "pil"
    progress: Progress | None = None
    trace: Trace | None = None
    after_steps: StepCallback | None = None

    def __post_init__(self) -> None:
        if self.output_type not in get_args(OutputType):
            fix = f"use one of {', '.join(get_args(OutputType))}"
            problem = Problem("output_type", repr(self.output_type)[:100], fix)
            raise InputError("the arguments cannot be used", [problem])

    @contextmanager
    def following(self, settings: MethodSettings) -> Iterator[Callable[[int], StepEnd | None]]:
        """While pictures are sampled: what is called after the steps of a batch of so many of them."""
        if self.after_steps is None:
            yield lambda images: None
        else:
            with self.after_steps.in_use(settings):
                yield self.after_steps.after_step

    def decoded(self, backbone: Backbone, latents: Tensor) -> tuple[Any, dict[int, str]]:
        """Pictures as asked for, of [images, channels, rows, columns] latents; and by index why one is none."""
        if self.output_type != "pt":
            return backbone.decode(latents, self.output_type)
        pixels, faults = backbone.decode(latents, "np")
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), faults

    def chosen(self, given: Mapping[str, Any]) -> Any:
        """Of pictures that are there as ``pil``, as ``pt`` and as ``latent``, those that were asked for."""
        return given["pt"].permute(0, 2, 3, 1).numpy() if self.output_type == "np" else given[self.output_type]
