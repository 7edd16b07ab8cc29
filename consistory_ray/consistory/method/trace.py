"""An optional record of what happens inside a render, for tests and for looking at the method."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from consistory_ray.consistory.method.layout import Level


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
        maps: (pass, step) -> [images, concepts, coarse tokens] after that step.
        masks: (pass, step) -> level -> bool [images, tokens] after that step.
        dift: smoothed DIFT features, [images, channels, rows, columns].
        source_anchor, source_token: [images, fine tokens], the nearest source of each token.
        source_distance: [images, fine tokens] cosine distance to it.
        injected: [images, fine tokens] bool, where features are injected.
    """

    all_masks: bool = True
    timesteps: list[int] = field(default_factory=list)
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
