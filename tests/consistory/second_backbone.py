"""Another kind of model behind the method: a small transformer on patches without diffusers, so that the seam is one.

One grid of tokens does everything: shared, masked and injected. All blocks but the first share; the first block's
output is the trunk; the second makes the maps, and its output is what correspondences are found by. It predicts v,
knows its own words, and has a DDIM of six lines of its own. What calls reuse of its deep layers is what all blocks but
the first add to the hidden states: there are no skip connections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from consistory_ray.consistory.method.attention import (
    AttentionCall,
    LayerProcessor,
    Queries,
    TextKeys,
    at_work,
)
from consistory_ray.consistory.method.backbone import Decoded, Network
from consistory_ray.consistory.method.conditioning import Conditioning, Rows
from consistory_ray.consistory.method.latents import Noise
from consistory_ray.consistory.method.layout import Grid, Layer, Level, Levels
from consistory_ray.consistory.method.tap import Tap
from consistory_ray.errors import CheckpointError, Problem, PromptError
from consistory_ray.settings import FreeU, MethodSettings

PATCH, WIDTH, HEADS, BLOCKS, CHANNELS, WORDS = 2, 16, 2, 4, 3, 12
LEVELS = Levels(("patches",), masks="patches", features="patches")


class PlainAttention(nn.Module):
    """Projections with the names that processors expect, and a processor where one is installed."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.to_q, self.to_k, self.to_v = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Identity()])
        self.processor: LayerProcessor | None = None

    def forward(self, hidden: Tensor, text: Tensor | None) -> Tensor:
        assert self.processor is not None, "the method is not installed"
        return self.processor(self, hidden, text)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = PlainAttention(), PlainAttention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, hidden: Tensor, text: Tensor, call: AttentionCall) -> Tensor:
        processors = [attn.processor for attn in (self.attn1, self.attn2) if attn.processor is not None]
        with at_work(processors, call):
            hidden = hidden + self.attn1(self.norms[0](hidden), None)
            hidden = hidden + self.attn2(self.norms[1](hidden), text)
            mixed: Tensor = hidden + self.mlp(self.norms[2](hidden))
            return mixed


@dataclass(frozen=True)
class Trunk:
    hidden: Tensor  # [rows, tokens, channels]
    text: Tensor
    grid: tuple[int, int]

    def plus(self, residuals: Tensor) -> Trunk:
        return replace(self, hidden=self.hidden + residuals)


class PatchTransformer(nn.Module):
    """See :class:`~consistory_ray.consistory.method.backbone.Network`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(CHANNELS * PATCH**2, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.out = nn.Linear(WIDTH, CHANNELS * PATCH**2)
        self.words = nn.Embedding(1000, WIDTH)

    def begin(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning, call: AttentionCall) -> Trunk:
        rows, columns = sample.shape[-2] // PATCH, sample.shape[-1] // PATCH
        hidden = self.embed(F.pixel_unshuffle(sample, PATCH).flatten(2).transpose(1, 2))
        place = torch.arange(rows * columns).float()[:, None] / torch.arange(1, WIDTH + 1)
        hidden = (
            hidden + place.sin() + (timestep / 100 / torch.arange(1, WIDTH + 1)).cos() + conditioning.pooled[:, None]
        )
        return Trunk(self.blocks[0](hidden, conditioning.text, call), conditioning.text, (rows, columns))

    def finish(
        self, trunk: Trunk, call: AttentionCall, tap: Tap | None = None, *, reuse: bool = False, keep: Tap | None = None
    ) -> Tensor:
        hidden = trunk.hidden
        for number, block in enumerate(self.blocks[1:], 1):
            hidden = block(hidden, trunk.text, call)
            if number == 1 and tap is not None:
                tap(hidden.transpose(1, 2).unflatten(2, trunk.grid))
        if keep is not None:
            keep(hidden - trunk.hidden)
        return self._out(hidden, trunk.grid)

    def _out(self, hidden: Tensor, grid: tuple[int, int]) -> Tensor:
        return F.pixel_shuffle(self.out(hidden).transpose(1, 2).unflatten(2, grid), PATCH)

    def features(self, trunk: Trunk, call: AttentionCall, tap: Tap) -> None:
        tap(self.blocks[1](trunk.hidden, trunk.text, call).transpose(1, 2).unflatten(2, trunk.grid))

    def shallow(
        self,
        sample: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        deep: Tensor,
        residuals: Tensor | None = None,
    ) -> Tensor:
        trunk = self.begin(sample, timestep, conditioning, AttentionCall())
        if residuals is not None:
            trunk = trunk.plus(residuals)
        return self._out(trunk.hidden + deep, trunk.grid)

    @staticmethod
    def conditional_residuals(residuals: Tensor, images: int) -> Tensor:
        return residuals[-images:]

    def vanilla_queries(self, trunk: Trunk, text_keys: TextKeys, *, reuse: bool = False) -> Queries:
        captured: Queries = {}
        *others, last = self.blocks[1:]
        hidden, call = trunk.hidden, AttentionCall(text_keys=text_keys, captured=captured)
        for block in others:
            hidden = block(hidden, trunk.text, call)
        return captured | {last.attn1.processor.layer.name: last.attn1.to_q(last.norms[0](hidden))}


@dataclass
class SixLineDDIM:
    """See :class:`~consistory_ray.consistory.method.latents.Schedule`; for v-prediction on a cosine schedule."""

    steps: int
    noise_scale: float = 1.0
    levels: Sequence[float] | None = None

    @property
    def timesteps(self) -> Sequence[int]:
        return [round(1000 * (self.steps - step) / self.steps) - 1 for step in range(self.steps)]

    def model_input(self, latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return latents, torch.tensor(float(self.timesteps[step]))

    def advance(self, prediction: Tensor, latents: Tensor, step: int, noise: Noise) -> Tensor:
        return self.jump(prediction, latents, step, step + 1)

    def jump(self, prediction: Tensor, latents: Tensor, step: int, ahead: int) -> Tensor:
        now, later = ((torch.tensor([*self.timesteps, -1][at]) + 1) / 1002 * torch.pi / 2 for at in (step, ahead))
        picture = now.cos() * latents - now.sin() * prediction
        error = now.sin() * latents + now.cos() * prediction
        return later.cos() * picture + later.sin() * error

    def noised(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        angle = (torch.tensor(self.timesteps[step]) + 1) / 1002 * torch.pi / 2
        return angle.cos() * clean + angle.sin() * noise

    def fork(self) -> SixLineDDIM:
        return replace(self)


class SecondBackbone:
    """See :class:`~consistory_ray.consistory.method.backbone.Backbone`."""

    levels = LEVELS
    device, dtype = torch.device("cpu"), torch.float32
    fingerprint, text_tokens = "5" * 64, WORDS
    native_size, pixels_per_latent, max_steps = (16, 16), 1, 1000

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.network = PatchTransformer().requires_grad_(False).eval()
            for part in self.network.modules():
                if isinstance(part, PlainAttention):
                    part.to_q.weight.mul_(3), part.to_k.weight.mul_(3)  # attention that prefers something

    def hold_fingerprint(self) -> None:
        pass

    def check(self) -> str:
        return ""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return CHANNELS, height, width

    def grids(self, rows: int, columns: int) -> dict[Level, Grid]:
        return {"patches": Grid(rows // PATCH, columns // PATCH)}

    def concept_positions(
        self, prompts: Sequence[str], concepts: Sequence[str], *, every: bool = False, exact_suffices: bool = False
    ) -> list[list[list[int]]]:
        found = [[[at for at, word in enumerate(text.split()) if word == one] for one in concepts] for text in prompts]
        lacking = [Problem(f"prompts[{at}]", prompts[at], "name it") for at, each in enumerate(found) if not any(each)]
        if lacking:
            raise PromptError("no concept", lacking)
        return found

    def encode(
        self,
        prompts: Sequence[str],
        settings: MethodSettings,
        *,
        prompts_2: Sequence[str] = (),
        negatives: Sequence[str | None] = (),
    ) -> Conditioning:
        assert not prompts_2, "it has one text encoder"
        halves = 2 if settings.guidance_scale > 1 else 1
        against = [text or "" for text in negatives] or [settings.negative_prompt or ""] * len(prompts)
        texts = against * (halves - 1) + list(prompts)
        numbers = [[sum(map(ord, word)) % 1000 for word in (text.split() + [""] * WORDS)[:WORDS]] for text in texts]
        text = self.network.words(torch.tensor(numbers))
        return Conditioning(Rows(halves, len(prompts)), text, text.mean(dim=1))

    def schedule(self, settings: MethodSettings) -> SixLineDDIM:
        return SixLineDDIM(settings.num_inference_steps)

    @contextmanager
    def _installed(self) -> Iterator[Network]:
        for number, block in enumerate(self.network.blocks):
            slot = None if number == 0 else number - 1
            name, last = f"blocks.{number}", number == BLOCKS - 1
            block.attn1.processor = LayerProcessor(Layer(f"{name}.attn1", True, "patches", False, slot, slot, last))
            block.attn2.processor = LayerProcessor(Layer(f"{name}.attn2", False, "patches", makes_maps=number == 1))
        try:
            yield self.network
        finally:
            for block in self.network.blocks:
                block.attn1.processor = block.attn2.processor = None

    def installed(self, freeu: FreeU | None) -> AbstractContextManager[Network]:
        if freeu is not None:
            raise CheckpointError("FreeU is for UNets", [])
        return self._installed()

    def in_use(self) -> AbstractContextManager[None]:
        return nullcontext()

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        return 2 * pictures - 1

    def decode(self, latents: Tensor, output_type: Decoded) -> tuple[Any, dict[int, str]]:
        assert output_type == "latent"
        return latents, {}
