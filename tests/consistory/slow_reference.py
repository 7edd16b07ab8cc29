"""The method once more: slow, obvious and independent of the package, to compare the package with.

Nothing is saved here. Every blended step really calls the UNet twice, both passes run all of their steps, every image
attends in a Python loop of its own, softmax is written out, anchors keep all of their hidden states, and FreeU is
diffusers' own. Read it beside the paper (Tewel et al., *Training-Free Consistent Text-to-Image Generation*, SIGGRAPH
2024, arXiv 2402.03286), whose sections the comments name.

Words: *image* b of B; *row* r of the UNet's 2B rows, unconditional half first; *level* "coarse" or "fine";
*pass* 1 (no injection, gives masks and correspondences) or 2 (gives the picture); *kept* M', the subject tokens that
self-attention dropout left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

MAP_STEPS = 20
DIFT_TIMESTEP = 261
ALPHA = 0.8

# (pass, step, level, masks [A, tokens]) -> the tokens that stay shared, same shape
Dropout = Callable[[int, int, str, Tensor], Tensor]


@dataclass(frozen=True)
class Options:
    """The constants of the published method; n is ``num_inference_steps``."""

    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    negative_prompt: str | None = None
    sdsa: bool = True
    query_blending: bool = True
    injection: bool = True
    freeu: tuple[float, float, float, float] | None = None  # s1, s2, b1, b2

    @property
    def last_blended_step(self) -> int:
        return self.num_inference_steps // 10

    def query_blend(self, step: int) -> float:
        """v_i, falling linearly from 0.9 at step 0 to 0.81836735 at the last blended step."""
        if self.last_blended_step == 0:
            return 0.9
        return 0.9 + (0.81836735 - 0.9) * step / self.last_blended_step

    def injects_at(self, step: int) -> bool:
        return self.injection and self.num_inference_steps // 10 <= step <= self.num_inference_steps // 3


@dataclass
class Anchors:
    """Everything scenes need of the anchors, nothing left out to save space.

    Attributes:
        count: number of anchors A.
        hidden: (pass, step, layer) -> self-attention input [2A, tokens, channels] of each ``up`` layer.
        kept: (pass, step, level) -> kept subject tokens [A, tokens], bool.
        injected: (step, layer) -> conditional outputs [A, tokens, channels] of pass 2 after injection.
        dift: smoothed features D [A, channels, h, w].
        features: (pass, step) -> the same of every step.
        masks: level -> pass 1's final masks [A, tokens], bool.
    """

    count: int
    hidden: dict[tuple[int, int, str], Tensor] = field(default_factory=dict)
    kept: dict[tuple[int, int, str], Tensor] = field(default_factory=dict)
    injected: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    dift: Tensor | None = None
    features: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Pass:
    """What one pass went through.

    Attributes:
        latents: after each step, [B, 4, h, w].
        masks: masks[s] are in force during step s (``{}`` at step 0), masks[n] are the final ones;
            level -> bool [B, tokens].
        maps: maps[s][b] are image b's aggregated maps after step s, one [tokens] for each of its concepts.
        dift: smoothed D [B, channels, h, w].
        unet_calls: how often the UNet was called.
    """

    latents: list[Tensor] = field(default_factory=list)
    masks: list[dict[str, Tensor]] = field(default_factory=lambda: [{}])
    maps: list[list[list[Tensor]]] = field(default_factory=list)
    dift: Tensor | None = None
    unet_calls: int = 0


@dataclass
class Pictures:
    """Both passes, and per image and possible source anchor the correspondences at the fine level.

    Attributes:
        source_index, source_distance: [B][A][tokens]; an anchor is not a source of itself (None there).
        anchors: for anchors, what they leave for scenes.
    """

    pass1: Pass
    pass2: Pass
    source_index: list[list[Tensor | None]]
    source_distance: list[list[Tensor | None]]
    anchors: Anchors


# ---------------------------------------------------------------------------------------------------------------------
# Small parts


def otsu(values: Tensor) -> float:
    """Otsu's threshold over 256 bins of the values' range: the best bin's centre."""
    if values.min() == values.max():
        return float(values.min())
    counts, edges = np.histogram(values.double().numpy(), bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()[:-1]  # values in bins 0..cut, for every cut between two bins
    above = counts.sum() - below
    sum_below = (counts * centres).cumsum()[:-1]
    sum_above = (counts * centres).sum() - sum_below
    between_class_variance = below * above * (sum_below / below - sum_above / above) ** 2
    return float(centres[between_class_variance.argmax()])


def concept_positions(tokenizer: Any, prompt: str, concept: str) -> list[int]:
    """Positions in the padded prompt of every token of every occurrence of the concept (section 3.1)."""
    ids = tokenizer(prompt).input_ids[: tokenizer.model_max_length]
    wanted = tokenizer(concept, add_special_tokens=False).input_ids
    starts = [i for i in range(len(ids)) if ids[i : i + len(wanted)] == wanted]
    return [start + offset for start in starts for offset in range(len(wanted))]


def smooth(features: Tensor) -> Tensor:
    """Each channel through a 3x3 Gaussian, sigma 1, zero padding."""
    line = torch.exp(-(torch.tensor([-1.0, 0.0, 1.0]) ** 2) / 2)
    kernel = torch.outer(line, line)
    kernel = kernel / kernel.sum()
    channels = features.shape[1]
    return F.conv2d(features, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)


def nearest_source(target: Tensor, source: Tensor, source_mask: Tensor) -> tuple[Tensor, Tensor]:
    """For every target token the source token inside the mask with the smallest cosine distance.

    Args:
        target, source: features [channels, tokens].
        source_mask: bool [tokens].

    Returns:
        The index into the source's tokens, and the distance (infinite where the mask is empty).
    """
    similarity = F.normalize(target, dim=0).T @ F.normalize(source, dim=0)
    distance = (1 - similarity).masked_fill(~source_mask[None, :], float("inf"))
    smallest, index = distance.min(dim=1)
    return index, smallest


QUERIES = 256
"""At a time, in layers whose probabilities nobody reads: so many stay in the processor's cache. No number changes."""


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T / sqrt(d)) V of one row; also the probabilities [heads, queries, keys]."""

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(0, 1)

    q, k, v = split(query), split(key), split(value)
    probabilities = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
    return (probabilities @ v).transpose(0, 1).flatten(1), probabilities


# ---------------------------------------------------------------------------------------------------------------------
# Attention


class SlowAttention:
    """One attention layer. What is going on around it (step, masks, anchors, ...) is read from ``run``."""

    def __init__(self, layer: str, run: Run) -> None:
        self.layer, self.part, self.run = layer, layer.split("_")[0], run

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        assert attention_mask is None and attn.norm_q is None and attn.group_norm is None
        if encoder_hidden_states is None:
            output = self.self_attention(attn, hidden_states)
        else:
            output = self.cross_attention(attn, hidden_states, encoder_hidden_states)
        return output

    def cross_attention(self, attn: Any, hidden_states: Tensor, text: Tensor) -> Tensor:
        run, outputs = self.run, []
        for row in range(hidden_states.shape[0]):
            query, key, value = attn.to_q(hidden_states[row]), attn.to_k(text[row]), attn.to_v(text[row])
            output, probabilities = attend(query, key, value, attn.heads)
            outputs.append(output)
            # 3.1: coarse layers of all parts, conditional rows, mean over heads; the vanilla call records nothing
            if run.level_of(hidden_states) == "coarse" and row >= run.images and not run.in_vanilla_call:
                run.record(self.layer, row - run.images, probabilities.mean(dim=0))
        return attn.to_out[0](torch.stack(outputs))

    def self_attention(self, attn: Any, hidden_states: Tensor) -> Tensor:
        run, level = self.run, self.run.level_of(hidden_states)
        query = attn.to_q(hidden_states)
        shares = False
        if self.part == "up" and run.in_vanilla_call:
            run.vanilla_query[self.layer] = query
        elif self.part == "up":
            shares = run.options.sdsa and run.step >= 1  # 3.2: from step 1 on
            if shares and run.blends():  # 3.3
                v = run.options.query_blend(run.step)
                query = v * run.vanilla_query[self.layer] + (1 - v) * query
            if run.scene_of is None:
                run.anchors.hidden[run.number, run.step, self.layer] = hidden_states.clone()

        outputs = []
        for row in range(hidden_states.shape[0]):
            keys, values = [attn.to_k(hidden_states[row])], [attn.to_v(hidden_states[row])]
            if shares:
                for tokens in self.shared_tokens(row, level):
                    keys.append(attn.to_k(tokens))
                    values.append(attn.to_v(tokens))
            key, value = torch.cat(keys), torch.cat(values)
            parts = query[row].split(QUERIES)
            outputs.append(torch.cat([attend(part, key, value, attn.heads)[0] for part in parts]))
        output = attn.to_out[0](torch.stack(outputs))

        injects = run.number == 2 and run.options.injects_at(run.step) and not run.in_vanilla_call
        if injects and level == "fine" and self.part in ("down", "up"):
            self.inject(output)
        return output

    def shared_tokens(self, row: int, level: str | None) -> list[Tensor]:
        """Hidden states of the anchors' kept tokens that this row attends to, each in the row's own half (3.2)."""
        run = self.run
        half, image = divmod(row, run.images)
        anchors = run.anchors if run.scene_of is None else run.scene_of
        hidden = anchors.hidden[(*run.source, self.layer)]
        kept = anchors.kept[(*run.source, level)]
        return [
            hidden[half * anchors.count + a][kept[a]]
            for a in range(anchors.count)
            if run.scene_of is not None or a != image
        ]

    def inject(self, output: Tensor) -> None:
        """3.4: images in order, in place, conditional half only."""
        run = self.run
        conditional = output[run.images :]  # a view
        for image in range(run.images):
            best_distance = torch.full((output.shape[1],), float("inf"))
            best_feature = torch.zeros_like(conditional[image])
            for a, (index, distance) in enumerate(
                zip(run.source_index[image], run.source_distance[image], strict=True)
            ):
                if index is None or distance is None:
                    continue
                source = conditional[a] if run.scene_of is None else run.scene_of.injected[run.step, self.layer][a]
                better = distance < best_distance
                best_distance[better] = distance[better]
                best_feature[better] = source[index][better]
            if torch.isinf(best_distance).any():
                continue  # no other image has a subject
            inside = run.final_masks["fine"][image] & (best_distance < otsu(best_distance))
            conditional[image, inside] = (1 - ALPHA) * conditional[image, inside] + ALPHA * best_feature[inside]
        if run.scene_of is None:
            run.anchors.injected[run.step, self.layer] = conditional.clone()


# ---------------------------------------------------------------------------------------------------------------------
# The loop


class Run:
    """One pass over some images: the state that :class:`SlowAttention` reads, and the denoising loop."""

    def __init__(
        self,
        pipe: StableDiffusionXLPipeline,
        prompts: list[str],
        concepts: list[str],
        latents: Tensor,
        options: Options,
        dropout: Dropout,
        number: int,
        anchors: Anchors,
        scene_of: Anchors | None,
    ) -> None:
        self.pipe, self.prompts, self.latents, self.options = pipe, prompts, latents, options
        self.dropout, self.number, self.anchors, self.scene_of = dropout, number, anchors, scene_of
        self.images = len(prompts)
        self.step = 0
        self.in_vanilla_call = False
        self.vanilla_query: dict[str, Tensor] = {}
        height, width = latents.shape[-2:]
        fine = ((height + 1) // 2, (width + 1) // 2)
        self.sizes = {"coarse": ((fine[0] + 1) // 2, (fine[1] + 1) // 2), "fine": fine}
        positions = [[concept_positions(pipe.tokenizer, prompt, concept) for concept in concepts] for prompt in prompts]
        self.positions = [[tokens for tokens in of_image if tokens] for of_image in positions]
        assert all(self.positions), "a prompt has none of the subject's concepts"
        # step -> layer -> image -> concept -> map over the coarse tokens
        self.recorded: list[dict[str, list[list[Tensor]]]] = []
        self.result = Pass()
        # given to pass 2 by pass 1
        self.final_masks: dict[str, Tensor] = {}
        self.source_index: list[list[Tensor | None]] = []
        self.source_distance: list[list[Tensor | None]] = []

    def level_of(self, hidden_states: Tensor) -> str | None:
        for level, (height, width) in self.sizes.items():
            if hidden_states.shape[-2] == height * width:
                return level
        return None

    @property
    def source(self) -> tuple[int, int]:
        """Pass and step whose tokens are shared."""
        return self.number, self.step

    def blends(self) -> bool:
        return self.options.query_blending and self.step <= self.options.last_blended_step

    def record(self, layer: str, image: int, probabilities: Tensor) -> None:
        """A concept's map is the mean over all of its tokens' columns. ``probabilities``: [queries, text tokens]."""
        maps = [probabilities[:, tokens].mean(dim=1) for tokens in self.positions[image]]
        self.recorded[self.step].setdefault(layer, []).append(maps)

    def update_masks(self) -> None:
        """3.1: the masks made at the end of this step, from the maps of the last 20 steps of all layers."""
        kept_steps = self.recorded[-MAP_STEPS:]
        masks: dict[str, list[Tensor]] = {"coarse": [], "fine": []}
        aggregated: list[list[Tensor]] = []
        for image in range(self.images):
            aggregated.append([])
            union = {
                level: torch.zeros(height * width, dtype=torch.bool) for level, (height, width) in self.sizes.items()
            }
            for concept in range(len(self.positions[image])):
                maps = [layers[name][image][concept] for layers in kept_steps for name in layers]
                mean = torch.stack(maps).mean(dim=0)
                aggregated[image].append(mean)
                for level, size in self.sizes.items():
                    square = mean.reshape(1, 1, *self.sizes["coarse"])
                    resized = F.interpolate(square, size=size, mode="bilinear", align_corners=False).flatten()
                    union[level] |= resized > otsu(resized)
            for level in masks:
                masks[level].append(union[level])
        self.result.maps.append(aggregated)
        self.result.masks.append({level: torch.stack(of_level) for level, of_level in masks.items()})

    def unet(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """One guided UNet call on 2B rows."""
        self.result.unet_calls += 1
        rows = self.pipe.scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
        noise = self.pipe.unet(
            rows,
            timestep,
            encoder_hidden_states=self.text,
            added_cond_kwargs={"text_embeds": self.pooled, "time_ids": self.time_ids},
        ).sample
        unconditional, conditional = noise.chunk(2)
        if self.options.guidance_scale <= 1:
            return conditional
        return unconditional + self.options.guidance_scale * (conditional - unconditional)

    def encode_prompts(self) -> None:
        negative = self.options.negative_prompt
        text, negative_text, pooled, negative_pooled = self.pipe.encode_prompt(
            self.prompts, negative_prompt=None if negative is None else [negative] * self.images
        )
        self.text, self.pooled = torch.cat([negative_text, text]), torch.cat([negative_pooled, pooled])
        height, width = (side * self.pipe.vae_scale_factor for side in self.latents.shape[-2:])
        self.time_ids = torch.tensor([[height, width, 0, 0, height, width]] * 2 * self.images, dtype=text.dtype)

    @torch.no_grad()
    def __call__(self) -> Pass:
        unet, scheduler, result = self.pipe.unet, self.pipe.scheduler, self.result
        self.encode_prompts()
        scheduler.set_timesteps(self.options.num_inference_steps)
        timesteps = scheduler.timesteps
        dift_step = int((timesteps - DIFT_TIMESTEP).abs().argmin())
        processors_before = dict(unet.attn_processors)
        unet.set_attn_processor({name: SlowAttention(name, self) for name in unet.attn_processors})
        if self.options.freeu is not None:
            s1, s2, b1, b2 = self.options.freeu
            self.pipe.enable_freeu(s1=s1, s2=s2, b1=b1, b2=b2)
        # a copy, since FreeU writes into the block's output
        features: list[Tensor] = []
        hook = unet.up_blocks[0].register_forward_hook(lambda block, inputs, output: features.append(output.clone()))
        try:
            latents = self.latents * scheduler.init_noise_sigma
            for self.step, timestep in enumerate(timesteps):
                if self.scene_of is None and self.step >= 1:
                    for level, masks in result.masks[self.step].items():
                        kept = self.dropout(self.number, self.step, level, masks)
                        self.anchors.kept[self.number, self.step, level] = kept
                if self.blends():
                    self.in_vanilla_call = True
                    self.unet(latents, timestep)
                    self.in_vanilla_call = False
                self.recorded.append({})
                noise = self.unet(latents, timestep)
                smoothed = smooth(features[-1][self.images :])
                if self.step == dift_step:
                    result.dift = smoothed
                if self.scene_of is None:
                    self.anchors.features[self.number, self.step] = smoothed
                features.clear()
                latents = scheduler.step(noise, timestep, latents, return_dict=False)[0]
                result.latents.append(latents)
                self.update_masks()
        finally:
            hook.remove()
            unet.set_attn_processor(processors_before)
            if self.options.freeu is not None:
                self.pipe.disable_freeu()
        return result


def correspondences(run: Run, pass1: Pass, sources: Anchors, of_scenes: bool) -> None:
    """3.4: nearest source tokens at the fine level, from pass 1's D and final masks, into ``run``."""
    size = run.sizes["fine"]

    def at_fine_level(features: Tensor) -> Tensor:
        return F.interpolate(features, size=size, mode="bilinear", align_corners=False).flatten(2)

    assert pass1.dift is not None and sources.dift is not None
    targets, source_features = at_fine_level(pass1.dift), at_fine_level(sources.dift)
    for image in range(run.images):
        run.source_index.append([])
        run.source_distance.append([])
        for a in range(sources.count):
            index: Tensor | None = None
            distance: Tensor | None = None
            if of_scenes or a != image:
                index, distance = nearest_source(targets[image], source_features[a], sources.masks["fine"][a])
            run.source_index[image].append(index)
            run.source_distance[image].append(distance)


def _two_passes(
    pipe: StableDiffusionXLPipeline,
    prompts: list[str],
    concepts: list[str],
    latents: Tensor,
    options: Options,
    dropout: Dropout,
    scene_of: Anchors | None,
) -> Pictures:
    anchors = Anchors(count=len(prompts)) if scene_of is None else scene_of
    run1 = Run(pipe, prompts, concepts, latents, options, dropout, 1, anchors, scene_of)
    pass1 = run1()
    if scene_of is None:
        anchors.dift, anchors.masks = pass1.dift, pass1.masks[-1]
    run2 = Run(pipe, prompts, concepts, latents, options, dropout, 2, anchors, scene_of)
    run2.final_masks = pass1.masks[-1]
    correspondences(run2, pass1, anchors, of_scenes=scene_of is not None)
    pass2 = run2()
    return Pictures(pass1, pass2, run2.source_index, run2.source_distance, anchors)


def no_dropout(number: int, step: int, level: str, masks: Tensor) -> Tensor:
    return masks


def random_dropout(probability: float, seed: int = 0) -> Dropout:
    """Drops each subject token with this probability; passes 1 and 2 drop the same ones as long as they agree."""

    def draw(number: int, step: int, level: str, masks: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 100_003 + step * 2 + (level == "fine"))
        return masks & (torch.rand(masks.shape, generator=generator) >= probability)

    return draw


def render_anchors(
    pipe: StableDiffusionXLPipeline,
    prompts: list[str],
    concepts: list[str],
    latents: Tensor,
    options: Options,
    dropout: Dropout = no_dropout,
) -> Pictures:
    """The anchors, rendered together (fp32, CPU). ``latents``: standard normal [A, 4, h, w]."""
    return _two_passes(pipe, prompts, concepts, latents, options, dropout, None)


def render_scenes(
    pipe: StableDiffusionXLPipeline,
    prompts: list[str],
    concepts: list[str],
    latents: Tensor,
    options: Options,
    anchors: Anchors,
) -> Pictures:
    """Scenes that attend to the anchors' stored features and not to each other. ``latents``: [B, 4, h, w]."""
    return _two_passes(pipe, prompts, concepts, latents, options, no_dropout, anchors)
