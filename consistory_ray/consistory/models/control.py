"""ControlNets at work: what a batch's hints add to the trunks of its calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consistory_ray.consistory.method.conditioning import Conditioning
from consistory_ray.consistory.method.hints import ControlHint, Hints, mode_number
from consistory_ray.consistory.models.controlnet_checks import mode_names
from consistory_ray.consistory.models.hooks import evaluating
from consistory_ray.pictures import Picture, fit

Residuals = tuple[tuple[Tensor, ...], Tensor]
"""Of each skip connection, and of the ``mid`` part: [rows, channels, height, width]."""


@dataclass(frozen=True)
class _Lead:
    """A hint of an image; ``picture`` [3, height, width] is where the network computes."""

    image: int
    hint: ControlHint
    mode: int | None
    picture: Tensor


class Control:
    """See :data:`~consistory_ray.consistory.method.request.Additions`; returns :data:`Residuals`.

    A ControlNet sees only the rows that it leads at a step, so that a picture does not depend on its neighbours'
    hints; the others get zeros. Several hints add up, except those of a union, which takes a picture's hints together.

    Args:
        nets: diffusers' ControlNets.
        hints: for each image those that lead it; checked, with a Picture each.
        size: picture height and width in pixels.
        guess_mode: lead the conditional half only, deep layers more than early ones, as diffusers does it.
        device: where the network computes.
        fixed: show each network as many images as there are in every call, those that it leads over again.
    """

    def __init__(
        self,
        nets: Sequence[Any],
        hints: Hints,
        size: tuple[int, int],
        guess_mode: bool,
        device: torch.device,
        *,
        fixed: bool = False,
    ) -> None:
        self.nets = nets
        self._images = len(hints) if fixed else 0
        self.guess_mode = guess_mode
        self._leads: list[list[_Lead]] = [[] for _ in nets]
        modes = [mode_names(net.config) for net in nets]
        pictures: dict[int, Tensor] = {}  # by the image's identity: often one leads many
        for image, some in enumerate(hints):
            for hint in some:
                number, key = int(hint.net), id(hint.image)
                if key not in pictures:
                    pictures[key] = _tensor(hint.image, *size).to(device)
                mode = mode_number(hint.mode, modes[number]) if modes[number] else None
                self._leads[number].append(_Lead(image, hint, mode, pictures[key]))

    def __call__(
        self, sample: Tensor, timestep: Tensor, conditioning: Conditioning, step: int, steps: int
    ) -> Residuals | None:
        """What is added at a step, None for nothing."""
        total: Residuals | None = None
        for net, leads in zip(self.nets, self._leads, strict=True):
            acting = [lead for lead in leads if lead.hint.acts_at(step, steps)]
            for group in _groups(acting):
                group += group[-1:] * (self._images - len(group))
                found = self._residuals(net, group, sample, timestep, conditioning)
                total = found if total is None else _sum(total, found)
        return total

    def _residuals(
        self, net: Any, group: Sequence[Sequence[_Lead]], sample: Tensor, timestep: Tensor, conditioning: Conditioning
    ) -> Residuals:
        """Of one call of a ControlNet, for the images of a group, all of which have as many hints of the same kinds."""
        guessing = self.guess_mode or bool(net.config.get("global_pool_conditions"))
        halves, images = conditioning.rows.halves, conditioning.rows.images
        led = range(halves - 1, halves) if guessing else range(halves)
        rows = torch.tensor([half * images + leads[0].image for half in led for leads in group], device=sample.device)
        everything = rows.tolist() == list(range(halves * images))
        dtype = net.dtype

        def of_rows(tensor: Tensor) -> Tensor:
            return (tensor if everything else tensor[rows]).to(dtype)

        pictures = [
            torch.stack([leads[position].picture for leads in group]).repeat(len(led), 1, 1, 1).to(dtype)
            for position in range(len(group[0]))
        ]
        scales = [torch.tensor([leads[position].hint.scale for leads in group]) for position in range(len(group[0]))]
        extra = {"text_embeds": conditioning.pooled, **conditioning.extra}
        call: dict[str, Any] = {
            "encoder_hidden_states": of_rows(conditioning.text),
            "added_cond_kwargs": {name: of_rows(tensor) for name, tensor in extra.items()},
            "guess_mode": guessing,
            "return_dict": False,
            **_shown(net, group[0], pictures, len(rows)),
        }
        skips, mid = net(of_rows(sample), timestep, **call)
        scale = None if len(scales) > 1 else scales[0].repeat(len(led)).view(-1, 1, 1, 1).to(sample.device, dtype)

        def to_rows(residual: Tensor) -> Tensor:
            residual = (residual if scale is None else residual * scale).to(sample.dtype)
            if everything:
                return residual
            return residual.new_zeros(halves * images, *residual.shape[1:]).index_copy_(0, rows, residual)

        return tuple(to_rows(skip) for skip in skips), to_rows(mid)


def _groups(leads: Sequence[_Lead]) -> list[list[list[_Lead]]]:
    """Hints that one call serves: for every call its images, for each of those its hints.

    A union's hints of one image belong together. It scales several inside of its layers, by numbers that hold for all
    of its rows; a single one is scaled outside. An image's further hints for another ControlNet are calls of their own.
    """
    of_image: dict[int, list[_Lead]] = {}
    for lead in leads:
        of_image.setdefault(lead.image, []).append(lead)
    groups: dict[tuple[Any, ...], list[list[_Lead]]] = {}
    for some in of_image.values():
        if some[0].mode is None:
            for position, lead in enumerate(some):
                groups.setdefault((position,), []).append([lead])
        else:
            inside = tuple(lead.hint.scale for lead in some) if len(some) > 1 else ()
            groups.setdefault((tuple(lead.mode for lead in some), inside), []).append(some)
    return list(groups.values())


def _shown(net: Any, leads: Sequence[_Lead], pictures: list[Tensor], rows: int) -> dict[str, Any]:
    """The arguments of a ControlNet's call that are about hints; residuals of a single one are scaled afterwards."""
    if leads[0].mode is None:
        return {"controlnet_cond": pictures[0], "conditioning_scale": 1.0}
    kinds = [int(lead.mode or 0) for lead in leads]
    used = torch.zeros(int(net.config.num_control_type), device=pictures[0].device, dtype=pictures[0].dtype)
    used[kinds] = 1
    return {
        "controlnet_cond": pictures,
        "control_type": used.repeat(rows, 1),
        "control_type_idx": kinds,
        "conditioning_scale": [float(lead.hint.scale) for lead in leads] if len(leads) > 1 else [1.0],
    }


def _sum(some: Residuals, others: Residuals) -> Residuals:
    skips = tuple(one + other for one, other in zip(some[0], others[0], strict=True))
    return skips, some[1] + others[1]


def _tensor(picture: Picture, height: int, width: int) -> Tensor:
    """A hint as ControlNets see it: [3, height, width] float32 in 0..1 on the CPU."""
    if picture.image.size != (width, height):
        picture = fit(picture, width, height)
    return torch.from_numpy(np.array(picture.image, dtype=np.float32) / 255).permute(2, 0, 1)


@contextmanager
def controlnets_in_use(nets: Sequence[Any], device: torch.device, offloaded: bool) -> Iterator[None]:
    """Bring ControlNets to where the UNet computes, in evaluation mode.

    Those with offloading hooks of their own bring themselves. Where the pipeline is offloaded, they go back in the end.
    """
    before: Mapping[int, torch.device] = {
        number: net.device
        for number, net in enumerate(nets)
        if not any(hasattr(part, hook) for part in net.modules() for hook in ("_hf_hook", "_diffusers_hook"))
    }
    try:
        for number in before:
            nets[number].to(device)
        with evaluating(*nets):
            yield
    finally:
        if offloaded:
            for number, place in before.items():
                nets[number].to(place)
