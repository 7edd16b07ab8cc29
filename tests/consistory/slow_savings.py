"""Scenes made for less, once more: what ``docs/method.md`` says in section 12, slowly and independently of the package.

Nothing is saved here either. A call that reuses deep features is a whole call in which the last ``up`` block is handed
the other's input, rows without guidance are computed and thrown away, and a look-ahead's last call runs to its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from tests.consistory import slow_reference as slow


@dataclass(frozen=True)
class Savings:
    """See the settings of the same names."""

    first_pass: str = "full"
    lookahead: tuple[int, ...] = (651, 451, 251)
    lookahead_maps: int = 2
    reuse_deep: tuple[float, int] | None = None
    shared_every: int = 1
    scene_blending: bool = True
    guidance_interval: tuple[float, float] = (0.0, 1.0)

    def full(self, step: int, steps: int) -> bool:
        """Whether a step's call is made in full."""
        if self.reuse_deep is None:
            return True
        start = int(self.reuse_deep[0] * steps + 1e-9)
        return step < start or (step - start) % self.reuse_deep[1] == 0


class ThriftyRun(slow.Run):
    """Scenes of one batch, by whatever is in the place of two passes."""

    def __init__(
        self,
        pipe: StableDiffusionXLPipeline,
        prompts: list[str],
        concepts: list[str],
        latents: Tensor,
        options: slow.Options,
        anchors: slow.Anchors,
        savings: Savings,
    ) -> None:
        super().__init__(pipe, prompts, concepts, latents, options, slow.no_dropout, 1, anchors, anchors)
        self.savings, self.steps, self.guidance = savings, options.num_inference_steps, options.guidance_scale
        self.fork, self.last = self.steps // 10, self.steps // 3
        self.features: Tensor | None = None
        self.deep: Tensor | None = None
        self.reuses = self.quiet = False

    @property
    def source(self) -> tuple[int, int]:
        step = max(1, self.step - self.step % self.savings.shared_every)
        return (1 if step < self.fork else 2), step

    def blends(self) -> bool:
        return not self.quiet and self.savings.scene_blending and super().blends()

    def record(self, layer: str, image: int, probabilities: Tensor) -> None:
        maps = [probabilities[:, tokens].mean(dim=1) for tokens in self.positions[image]]
        self.recorded[-1].setdefault(layer, []).append(maps)

    def full(self, step: int) -> bool:
        return self.savings.full(step, self.steps)

    def call(self, step: int, latents: Tensor, *, injects: bool, quiet: bool = False) -> Tensor:
        """One guided prediction; ``quiet`` blends no queries."""
        first, last = (int(share * self.steps + 1e-9) for share in self.savings.guidance_interval)
        guidance = self.guidance if first <= step < last else 1.0
        self.options = replace(self.options, guidance_scale=guidance)
        self.step, self.number, self.quiet = step, 2 if injects else 1, quiet
        timestep = self.pipe.scheduler.timesteps[step]
        if not self.full(step):  # neither shares nor injects: only the outermost layers count
            self.reuses = self.in_vanilla_call = True
            prediction = self.unet(latents, timestep)
            self.reuses = self.in_vanilla_call = False
            return prediction
        if self.blends():
            self.in_vanilla_call = True
            self.unet(latents, timestep)
            self.in_vanilla_call = False
        self.recorded.append({})
        return self.unet(latents, timestep)

    def stepped(self, step: int, prediction: Tensor, latents: Tensor) -> Tensor:
        scheduler = self.pipe.scheduler
        following: Tensor = scheduler.step(prediction, scheduler.timesteps[step], latents, return_dict=False)[0]
        return following

    def masks_of_last(self, count: int) -> dict[str, Tensor]:
        self.recorded = self.recorded[-count:]
        self.update_masks()
        return self.result.masks[-1]

    def jumped(self, prediction: Tensor, latents: Tensor, step: int, ahead: int) -> Tensor:
        """DDIM from one timestep to any later one (arXiv 2010.02502, equation 12, sigma 0), epsilon prediction."""
        scheduler = self.pipe.scheduler
        assert scheduler.config.prediction_type == "epsilon"
        here, there = (scheduler.alphas_cumprod[scheduler.timesteps[number]] for number in (step, ahead))
        clean = (latents - (1 - here).sqrt() * prediction) / here.sqrt()
        return there.sqrt() * clean + (1 - there).sqrt() * prediction

    def correspond(self, features: Tensor, masks: dict[str, Tensor], theirs: Tensor) -> None:
        self.source_index, self.source_distance, self.final_masks = [], [], masks
        before, self.anchors.dift = self.anchors.dift, theirs
        slow.correspondences(self, slow.Pass(dift=features), self.anchors, of_scenes=True)
        self.anchors.dift = before

    @contextmanager
    def watched(self) -> Iterator[None]:
        """With the attention, FreeU and the hooks that tap features and keep or replace the deep ones."""
        unet, before = self.pipe.unet, dict(self.pipe.unet.attn_processors)
        unet.set_attn_processor({name: slow.SlowAttention(name, self) for name in before})
        if self.options.freeu is not None:
            self.pipe.enable_freeu(**dict(zip(("s1", "s2", "b1", "b2"), self.options.freeu, strict=True)))

        def tapped(block: Any, inputs: Any, output: Tensor) -> None:
            if not self.in_vanilla_call:
                self.features = slow.smooth(output[self.images :].clone())

        def entered(block: Any, inputs: Any, named: dict[str, Any]) -> Any:
            if self.reuses:
                return inputs, {**named, "hidden_states": self.deep}
            if not self.in_vanilla_call:
                self.deep = named["hidden_states"].clone()
            return None

        hooks = [
            unet.up_blocks[0].register_forward_hook(tapped),
            unet.up_blocks[-1].register_forward_pre_hook(entered, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            unet.set_attn_processor(before)
            self.pipe.disable_freeu()

    @torch.no_grad()
    def render(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Final latents, and the masks that injection went by."""
        self.encode_prompts()
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(self.steps)
        latents = self.latents * scheduler.init_noise_sigma
        with self.watched():
            return {"lookahead": self.looked_ahead, "live": self.live}[self.savings.first_pass](latents)

    def looked_ahead(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        for step in range(self.fork):
            latents = self.stepped(step, self.call(step, latents, injects=False), latents)
        prediction = self.call(self.fork, latents, injects=False)
        step, seen = self.fork, latents
        timesteps = self.pipe.scheduler.timesteps
        later = [number for number in range(self.fork + 1, self.steps) if self.full(number)]
        for timestep in self.savings.lookahead:
            ahead = min(later, key=lambda number: abs(int(timesteps[number]) - timestep))
            if ahead <= step:
                continue
            seen = self.jumped(prediction, seen, step, ahead)
            prediction, step = self.call(ahead, seen, injects=False, quiet=True), ahead
        assert self.features is not None and self.anchors.dift is not None
        masks = self.masks_of_last(self.savings.lookahead_maps)
        self.correspond(self.features, masks, self.anchors.dift)
        for step in range(self.fork, self.steps):
            latents = self.stepped(step, self.call(step, latents, injects=True), latents)
        return latents, masks

    def live(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        source, masks = 0, dict[str, Tensor]()
        for step in range(self.steps):
            injects = self.fork <= step <= self.last and self.full(step)
            if injects:
                assert self.features is not None
                masks = self.masks_of_last(slow.MAP_STEPS)
                theirs = self.anchors.features[1 if source < self.fork else 2, source]
                self.correspond(self.features, masks, theirs)
            latents = self.stepped(step, self.call(step, latents, injects=step >= self.fork), latents)
            source = step if self.full(step) else source
        return latents, masks
