"""An optional record of what happens inside a render, for tests and for looking at the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from consistory_ray.consistory.method.correspondence import Correspondences
from consistory_ray.consistory.method.layout import Level
from consistory_ray.consistory.method.masks import Masks
from consistory_ray.consistory.method.request import Request
from consistory_ray.consistory.method.steps import Pass


@dataclass
class Trace:
    """Filled by ``create_subject`` or ``render`` (one batch) when given to them. All tensors are on the CPU.

    Attributes:
        all_masks: record attention maps and masks at every step of both passes, not only where they are needed.
            It changes the cost of a render, not its result.
        timesteps: of the schedule.
        token_positions: for each prompt, for each concept, its token positions.
        prompt_embeds, pooled: of the conditional rows.
        latents: (pass, step) -> [images, 4, h, w] after that step.
        maps: (pass, step) -> [images, concepts, tokens of the level that makes masks] after that step.
        masks: (pass, step) -> level -> bool [images, tokens] after that step.
        dift: smoothed DIFT features, [images, channels, rows, columns].
        source_anchor, source_token: [images, tokens], the nearest source of each token that is injected into.
        source_distance: [images, tokens] cosine distance to it.
        injected: [images, tokens] bool, where features are injected.
    """

    all_masks: bool = True
    timesteps: list[float] = field(default_factory=list)
    token_positions: list[list[list[int]]] = field(default_factory=list)
    prompt_embeds: Tensor | None = None
    pooled: Tensor | None = None
    latents: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    maps: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    masks: dict[tuple[int, int], dict[Level, Tensor]] = field(default_factory=dict)
    dift: Tensor | None = None
    source_anchor: Tensor | None = None
    source_token: Tensor | None = None
    source_distance: Tensor | None = None
    injected: Tensor | None = None

    def begin(self, request: Request, timesteps: Sequence[float]) -> None:
        """A batch is about to be rendered."""
        conditioning = request.conditioning
        self.timesteps = list(timesteps)
        self.token_positions = request.batch.positions
        self.prompt_embeds = conditioning.rows.conditional(conditioning.text).cpu()
        self.pooled = conditioning.rows.conditional(conditioning.pooled).cpu()

    def stepped(self, at: Pass, latents: Tensor, maps: Tensor | None, masks: Masks | None) -> None:
        """A step is over."""
        self.latents[at] = latents.cpu()
        if maps is not None and masks is not None:
            self.maps[at] = maps.cpu()
            self.masks[at] = {level: mask.cpu() for level, mask in masks.items()}

    def matched(self, found: Correspondences) -> None:
        """Correspondences were found."""
        tokens = found.sources.shape[1]
        self.source_anchor, self.source_token = (found.sources // tokens).cpu(), (found.sources % tokens).cpu()
        self.source_distance, self.injected = found.distance.cpu(), found.gate.cpu()
