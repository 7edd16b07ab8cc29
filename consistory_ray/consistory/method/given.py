"""Pictures as anchors (the paper's appendix E), without inverting them.

Edit-friendly inversion (arXiv 2304.06140) draws every x_t of a picture independently and solves for the noise that
makes a replay go through them. Anchors that nobody changes are replayed as they are, so that their x_t are known
beforehand: the picture with noise. One call of the network at each step's x_t is then all that scenes need.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from consistory_ray.consistory.cache.recorder import CacheRecorder
from consistory_ray.consistory.method.attention import (
    Attention,
    AttentionCall,
    Exchange,
    Injection,
    Sharing,
    TextKeys,
    attend_tokens,
)
from consistory_ray.consistory.method.backbone import Network
from consistory_ray.consistory.method.companions import LiveAnchors
from consistory_ray.consistory.method.conditioning import Conditioning, Rows
from consistory_ray.consistory.method.correspondence import Correspondences, smooth, unit_features
from consistory_ray.consistory.method.exchange import kept_states
from consistory_ray.consistory.method.latents import Noise, Schedule
from consistory_ray.consistory.method.layout import Layer, Level
from consistory_ray.consistory.method.masks import AttentionMaps, Masks
from consistory_ray.consistory.method.request import Request
from consistory_ray.consistory.method.steps import Pass, nearest_step
from consistory_ray.consistory.method.tap import Tap
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.errors import AssetError
from consistory_ray.guards.numerics import NOT_FINITE

LIGHT = (0.3, 0.2, 0.1, 0.02)
"""Shares of the model's timesteps at which the masks of given pictures are looked for."""


class NoisedPath:
    """A :class:`~consistory_ray.consistory.method.latents.Schedule` whose latents are given pictures with noise.

    Args:
        schedule: whose noise levels they have.
        clean: the pictures' latents, [images, channels, height, width] float32, which stand at the end.
        noise: by step.
    """

    def __init__(self, schedule: Schedule, clean: Tensor, noise: Noise) -> None:
        self.schedule = schedule
        self.clean = clean
        self.noise = noise
        self.timesteps = schedule.timesteps
        self.levels = schedule.levels
        self.noise_scale = 1.0

    def at(self, step: int) -> Tensor:
        """The latents before a step; steps may be asked for in any order."""
        if step == len(self.timesteps):
            return self.clean
        return self.schedule.noised(self.clean, self.noise(step).to(self.clean.device), step)

    def model_input(self, latents: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See :class:`~consistory_ray.consistory.method.latents.Schedule`."""
        return self.schedule.model_input(self.at(step), step)

    def advance(self, prediction: Tensor, latents: Tensor, step: int, noise: Noise) -> Tensor:
        """See :class:`~consistory_ray.consistory.method.latents.Schedule`."""
        return self.at(step + 1)

    def noised(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        """See :class:`~consistory_ray.consistory.method.latents.Schedule`."""
        return self.schedule.noised(clean, noise, step)

    def jump(self, prediction: Tensor, latents: Tensor, step: int, ahead: int) -> Tensor:
        """See :class:`~consistory_ray.consistory.method.latents.Schedule`."""
        return self.at(ahead)

    def fork(self) -> NoisedPath:
        """See :class:`~consistory_ray.consistory.method.latents.Schedule`."""
        return self


class GivenAnchors(LiveAnchors):
    """Given pictures as anchors, which do not see each other, with masks that are known beforehand.

    Args:
        request: what is rendered.
        given: the masks.
    """

    def __init__(self, request: Request, given: Masks) -> None:
        super().__init__(request)
        self.needs_masks = False
        self._given = given
        self._subject = given[request.levels.features].flatten().nonzero()[:, 0]

    def exchange(
        self, at: Pass, masks: Masks | None, rows: Rows | None = None, *, injects: bool = True
    ) -> Exchange | None:
        """See :class:`~consistory_ray.consistory.method.companions.Companions`."""
        plan = self.request.plan
        kept = self._kept(at, self._given) if at.step in plan.shared and self._read_by_scenes(at) else None
        subject = self._subject if at.step in plan.injected else None
        return RecordedAlone(self.request.rows, kept, subject, self._cache) if kept or subject is not None else None

    def _read_by_scenes(self, at: Pass) -> bool:
        """They go through one pass, which scenes read as either."""
        return not self.scenes.reads.isdisjoint((at, Pass(2, at.step)))

    def tap(self, at: Pass) -> Tap | None:
        """See :class:`~consistory_ray.consistory.method.companions.LiveAnchors`."""
        return super().tap(at) or super().tap(Pass(2, at.step))

    def prepare_injection(self, features: Tensor, masks: Masks, source: Pass | None = None) -> Correspondences | None:
        """See :class:`~consistory_ray.consistory.method.companions.Companions`."""
        level = self.request.levels.features
        self._features = unit_features(features, self.request.grids[level]).flatten(0, 1)[self._subject]
        return None

    def recorded(self, masks: Masks, dtype: torch.dtype) -> dict[str, Tensor]:
        """See :class:`~consistory_ray.consistory.method.companions.LiveAnchors`."""
        return super().recorded(self._given, dtype)


class RecordedAlone:
    """Anchors that attend to themselves only and leave their tokens and outputs to the scenes.

    Args:
        rows: of the anchors.
        kept: level -> per anchor, the indices of the tokens it shares; None where nothing is shared.
        subject: the anchors' mask tokens, anchor * tokens + token; None where nothing is injected.
        cache: receives them.
    """

    shares = injects = False  # nothing comes from others
    compiles = False

    def __init__(
        self, rows: Rows, kept: dict[Level, list[Tensor]] | None, subject: Tensor | None, cache: CacheRecorder
    ) -> None:
        self.rows = rows
        self.kept = kept
        self.subject = subject
        self.cache = cache

    def sharing(self, layer: Layer) -> Sharing | None:
        """See :class:`~consistory_ray.consistory.method.attention.Exchange`."""
        return None if self.kept is None else partial(self._attend, self.kept, layer)

    def _attend(
        self,
        kept: dict[Level, list[Tensor]],
        layer: Layer,
        attn: Attention,
        hidden_states: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        assert layer.level is not None
        self.cache.add_shared(layer, kept_states(self.rows.by_half(hidden_states), kept[layer.level]))
        return attend_tokens(query, key, value, attn.heads, ragged=False)

    def injection(self, layer: Layer) -> Injection | None:
        """See :class:`~consistory_ray.consistory.method.attention.Exchange`."""
        return None if self.subject is None else partial(self._record, self.subject, layer)

    def _record(self, subject: Tensor, layer: Layer, output: Tensor) -> None:
        self.cache.add_injected(layer, self.rows.conditional(output).flatten(0, 1)[subject])


def sweep(
    network: Network,
    path: NoisedPath,
    request: Request,
    anchors: GivenAnchors,
    tick: Callable[[], None] = lambda: None,
    trace: Trace | None = None,
) -> None:
    """Call the network once at every step of the path and let the anchors record what scenes will need.

    Raises:
        AssetError: the model produced numbers that are not finite.
    """
    if trace is not None:
        trace.begin(request, path.timesteps)
    plan, text_keys, tapped = request.plan, TextKeys(), []
    dift = plan.nearest_call(path.timesteps, request.settings.dift_timestep) if plan.injected else None
    finite = torch.ones((), dtype=torch.bool, device=request.conditioning.text.device)
    for step in range(plan.steps):
        at = Pass(1, step)
        call = AttentionCall(text_keys=text_keys, exchange=anchors.exchange(at, None))
        tap = anchors.tap(at)
        if step == dift:
            tap = lambda features: tapped.append(smooth(request.rows.conditional(features)))  # noqa: E731
        finite &= _called(network, path, step, request, request.conditioning, call, tap).isfinite().all()
        anchors.end_step(at)
        if trace is not None:
            trace.stepped(at, path.at(step + 1), None, None)
        tick()
    if not bool(finite):
        raise AssetError(NOT_FINITE)
    if tapped:
        anchors.prepare_injection(tapped[0], {})
        if trace is not None:
            trace.dift = tapped[0].cpu()


def light_masks(
    network: Network, path: NoisedPath, request: Request, tick: Callable[[], None] = lambda: None
) -> tuple[dict[Level, Tensor], Tensor]:
    """Subject masks of pictures with a little noise: as good as those of the last steps, and there before the first.

    Args:
        network: the model's.
        path: of as many steps as the model has timesteps.
        request: of the pictures.
        tick: called after every call.

    Returns:
        Level -> bool [images, tokens]; and how far the calls agree about each image's, from 0 to 1.
    """
    columns, conditioning, text_keys = request.batch.columns, request.conditioning.conditional(), TextKeys()
    assert columns is not None  # every subject has concepts
    maps = AttentionMaps(columns.to(conditioning.text.device), len(LIGHT), request.levels.masks)
    for share in LIGHT:
        step = nearest_step(path.timesteps, round(share * len(path.timesteps)))
        _called(network, path, step, request, conditioning, AttentionCall(text_keys=text_keys, maps=maps))
        maps.end_step()
        tick()
    return maps.masks(request.grids), maps.agreement()


def token_masks(mask: Tensor, request: Request) -> dict[Level, Tensor]:
    """A mask of a picture's pixels, bool [height, width], at every level's tokens: bool [tokens].

    A token belongs to it that is covered by half, or the best covered ones where there is none.
    """
    found = {}
    for level, grid in request.grids.items():
        covered = F.adaptive_avg_pool2d(mask[None].float(), (grid.height, grid.width)).flatten()
        found[level] = (covered >= covered.max().clamp(1e-6, 0.5)) & (covered > 0)
    return found


def _called(
    network: Network,
    path: NoisedPath,
    step: int,
    request: Request,
    conditioning: Conditioning,
    call: AttentionCall,
    tap: Any = None,
) -> Tensor:
    latents, timestep = path.model_input(path.clean, step)
    sample = torch.cat([latents] * conditioning.rows.halves).to(conditioning.text.dtype)
    trunk = network.begin(sample, timestep, conditioning, call)
    additions = request.additions
    residuals = additions and additions(sample, timestep, conditioning, step, len(path.timesteps))
    return network.finish(trunk if residuals is None else trunk.plus(residuals), call, tap)
