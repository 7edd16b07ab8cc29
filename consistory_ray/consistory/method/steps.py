"""Which step does what: the two passes (section 7 of docs/method.md) as ranges of step numbers. Pure: no torch.

Windows are shares of the steps of the reference schedule, DDIM with leading spacing, at any number of them. Steps of
other schedules are where a reference one of 50 steps is as noisy as they are: few steps, or steps that lie close where
there is little noise, do the same things at the same noise levels.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

from consistory_ray.consistory.method.noise_levels import REFERENCE_STEPS, expected_levels, position_of, timestep_at
from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.choices import CacheCodec, FirstPass, Scheduler, SigmaSchedule, TimestepSpacing
from consistory_ray.guards.sampling import sampling_problems
from consistory_ray.settings import MethodSettings, share_of


class Pass(NamedTuple):
    """A step of a pass: pass 1 gives masks and correspondences, pass 2 the picture."""

    number: int
    step: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The steps at which the parts of the method act, derived from the settings.

    Attributes:
        steps: denoising steps n of a full pass.
        blended: steps whose queries are blended with vanilla ones (where SDSA acts).
        query_blend: blend weight v at step 0 and at the last blended step.
        injected: steps of pass 2 with feature injection; empty when there is none.
        shared: steps at which SDSA acts, rising; empty when it is off. Calls that reuse deep features share nothing.
        window: how many of the last steps' attention maps make a mask.
        first_pass: where masks and correspondences come from: ``full``, ``lookahead`` or ``live``.
        full_calls: steps whose call of the network is made in full, rising; the others reuse deep features.
        guided: steps with classifier-free guidance.
        shared_every: a shared step reads the tokens of the last step that this divides.
        blend_to: the reference step at which the blend weight reaches its last value.
        levels: of each step the timestep at which SDXL's noise schedule is as noisy; None on the reference schedule.
        positions: of each step that of the reference schedule which is as noisy; None there.
    """

    steps: int
    blended: range
    query_blend: tuple[float, float]
    injected: range
    shared: Sequence[int]
    window: int
    first_pass: FirstPass
    full_calls: Sequence[int]
    guided: range
    shared_every: int
    blend_to: int = 0
    levels: tuple[float, ...] | None = None
    positions: tuple[int, ...] | None = None

    @classmethod
    def from_settings(cls, settings: MethodSettings, levels: Sequence[float] | None = None) -> StepPlan:
        """The plan of checked settings; that of anchors is of ``settings.exact``.

        Args:
            settings: the settings.
            levels: of the schedule that they ask for, see
                :class:`~consistory_ray.consistory.method.latents.Schedule`; where the model is not known, None: then
                they are those that it would have on SDXL's noise schedule.
        """
        known = expected_levels(settings) if levels is None else tuple(levels)
        steps = settings.num_inference_steps if known is None else len(known)
        windows = _Windows(steps, None if known is None else tuple(position_of(level) for level in known))
        first, last = settings.injection_window
        blends = settings.query_blending and settings.sdsa and settings.scene_blending
        guided = range(*(windows.start(share) for share in settings.guidance_interval))
        full_calls: Sequence[int] = range(steps)
        if settings.reuse_deep is not None:
            start, period = windows.start(settings.reuse_deep[0]), settings.reuse_deep[1]
            begins = (guided.start,)  # no call before it has deep features of the unconditional half
            full_calls = [s for s in full_calls if s < max(start, 1) or (s - start) % period == 0 or s in begins]
        shared = [step for step in full_calls if step] if len(full_calls) < steps else range(1, steps)
        return cls(
            steps=steps,
            blended=range(windows.stop(settings.query_blend_until) if blends else 0),
            query_blend=settings.query_blend,
            injected=range(windows.start(first), windows.stop(last)) if settings.injection else range(0),
            shared=shared if settings.sdsa else range(0),
            window=windows.last(settings.map_steps),
            first_pass=settings.first_pass,
            full_calls=full_calls,
            guided=guided,
            shared_every=settings.shared_every,
            blend_to=share_of(REFERENCE_STEPS, settings.query_blend_until),
            levels=known,
            positions=windows.positions,
        )

    @property
    def fork(self) -> int | None:
        """First step at which pass 2 differs from pass 1; None when nothing is injected and one pass is enough."""
        return self.injected[0] if self.injected else None

    @property
    def masked(self) -> Sequence[int]:
        """Steps whose attention maps are in the final masks of a full pass 1."""
        last = _part(self.full_calls, max(0, self.steps - self.window), self.steps)
        return last or self.full_calls[-1:]

    def shared_in(self, pass_number: int) -> Sequence[int]:
        """Steps of a pass that share tokens and are not already part of the other pass."""
        fork = self.fork
        if pass_number == 1:
            return self.shared if fork is None or self.first_pass == "full" else _part(self.shared, 0, fork)
        return range(0) if fork is None else _part(self.shared, fork, self.steps)

    def shared_from(self, at: Pass) -> Pass:
        """Whose recorded tokens a step of a pass reads."""
        source = max(1, at.step - at.step % self.shared_every)
        return Pass(1 if self.fork is None or source < self.fork else at.number, source)

    @property
    def reads(self) -> frozenset[Pass]:
        """All recorded steps whose tokens scenes read."""
        return frozenset(self.shared_from(Pass(number, step)) for number in (1, 2) for step in self.shared_in(number))

    @property
    def injections(self) -> Sequence[int]:
        """Steps at which scenes inject; calls that reuse deep features do not."""
        return [step for step in self.injected if step in self.full_calls]

    @property
    def live_features(self) -> Sequence[Pass]:
        """Steps whose features a later step's correspondences are made of, where they are live."""
        if self.fork is None or self.first_pass != "live":
            return ()
        found = (self.before(step) for step in self.injections)
        return list(dict.fromkeys(at for at in found if at is not None))

    def before(self, step: int) -> Pass | None:
        """The last full call before an injected step; None for the first step of all."""
        earlier = _part(self.full_calls, 0, step)
        return Pass(1 if earlier[-1] < self.injected[0] else 2, earlier[-1]) if earlier else None

    def after(self, at: Pass) -> Pass | None:
        """The step after another in the order in which they run, a look ahead left out; None after the last."""
        fork, step = self.fork, at.step + 1
        parts = at.number == 1 and fork is not None
        if parts and step == (self.steps if self.first_pass == "full" else fork):
            return Pass(2, fork or 0)
        return Pass(at.number, step) if step < self.steps else None

    def leads_on(self, at: Pass) -> bool:
        """Whether the picture comes out of a step's latents: before the fork out of those of either pass."""
        return at.number == 2 or self.fork is None or at.step < self.fork

    @property
    def ticks(self) -> int:
        """Steps of both passes together."""
        return self.steps + (0 if self.fork is None or self.first_pass != "full" else self.steps - self.fork)

    def without_injection(self, settings: MethodSettings) -> str:
        """What to say where injection is asked for and no step is as noisy as the reference steps of its window."""
        if not settings.injection or self.injected or self.positions is None:
            return ""
        first, last = (share_of(REFERENCE_STEPS, share) for share in settings.injection_window)
        return (
            f"none of the {self.steps} steps is as noisy as those in which features are injected (timesteps "
            f"{timestep_at(first)} to {timestep_at(last)} of SDXL): subjects are kept by shared attention alone"
        )

    def blend_weight(self, step: int) -> float:
        """v of section 3.3: the share of the vanilla query at a step, 0 where nothing is blended."""
        if step not in self.blended:
            return 0.0
        first, last = self.query_blend
        if len(self.blended) == 1 and self.positions is None:
            return first
        done, whole = (step, len(self.blended) - 1) if self.positions is None else (self.positions[step], self.blend_to)
        return first + (last - first) * done / whole if whole else first

    def nearest_call(self, timesteps: Sequence[float], timestep: int, after: int = -1) -> int:
        """The full call nearest to a noise level, after another step.

        Args:
            timesteps: of the schedule, which say how noisy it is on the reference one.
            timestep: where SDXL's noise schedule is as noisy as what is looked for.
            after: that other step.
        """
        steps = [step for step in self.full_calls if step > after]
        levels = timesteps if self.levels is None else self.levels
        return steps[nearest_step([levels[step] for step in steps], timestep)]


@dataclass(frozen=True, slots=True)
class _Windows:
    """Where shares of the steps are.

    Attributes:
        steps: how many there are.
        positions: of each that among the reference steps, None where they are such themselves.
    """

    steps: int
    positions: tuple[int, ...] | None

    def start(self, share: float) -> int:
        """The first step of those from a share on; one behind the last where there is none."""
        if self.positions is None:
            return share_of(self.steps, share)
        return bisect_left(self.positions, share_of(REFERENCE_STEPS, share))

    def stop(self, share: float) -> int:
        """The step behind those up to a share, inclusive."""
        if self.positions is None:
            return min(share_of(self.steps, share) + 1, self.steps)
        return bisect_right(self.positions, share_of(REFERENCE_STEPS, share))

    def last(self, count: int) -> int:
        """How many steps there are in the place of so many last ones of the reference schedule; always one."""
        if self.positions is None:
            return count
        return max(1, self.steps - bisect_left(self.positions, REFERENCE_STEPS - count))


def _part(steps: Sequence[int], start: int, stop: int) -> Sequence[int]:
    """Those of rising steps from a start up to before a stop."""
    return steps[bisect_left(steps, start) : bisect_left(steps, stop)]


def suffices(made: StepPlan, asked: StepPlan) -> bool:
    """Whether a cache holds what scenes read, told by the plans of the scenes that it was made for and of these.

    Said of caches with two passes: with one, as of given pictures, it may suffice all the same.
    """
    return (
        asked.reads <= made.reads
        and set(asked.injections) <= set(made.injections)
        and set(asked.live_features) <= set(made.live_features)
    )


def nearest_step(timesteps: Sequence[float], timestep: float) -> int:
    """The step whose timestep is nearest to the given one, the earlier step on a tie."""
    return min(range(len(timesteps)), key=lambda step: abs(timesteps[step] - timestep))


def _falls(timesteps: Sequence[int]) -> bool:
    return bool(timesteps) and list(timesteps) == sorted(set(timesteps), reverse=True)


def _sampling_checks(settings: MethodSettings) -> tuple[tuple[str, object, bool, str], ...]:
    samplers, steps = get_args(Scheduler), settings.timesteps
    spacings, sigmas = (None, *get_args(TimestepSpacing)), (None, *get_args(SigmaSchedule))
    rescale = settings.guidance_rescale
    return (
        ("scheduler", settings.scheduler, settings.scheduler in samplers, f"one of {', '.join(samplers)}"),
        ("sigma_schedule", settings.sigma_schedule, settings.sigma_schedule in sigmas, "karras, exponential or None"),
        ("timestep_spacing", settings.timestep_spacing, settings.timestep_spacing in spacings, f"one of {spacings}"),
        ("timesteps", steps, steps is None or (_falls(steps) and steps[-1] >= 0), "timesteps, falling, or None"),
        ("eta", settings.eta, 0 <= settings.eta <= 1, "a share from 0 to 1"),
        ("guidance_rescale", rescale, 0 <= rescale <= 1, "a share from 0 to 1"),
    )


def check_settings(settings: MethodSettings) -> None:
    """Refuse values that no picture can be made with.

    Raises:
        InputError: naming every such field.
    """
    window, reuse, guided = settings.injection_window, settings.reuse_deep, settings.guidance_interval
    checks = (
        ("num_inference_steps", settings.num_inference_steps, settings.num_inference_steps >= 1, "at least 1"),
        ("mask_dropout", settings.mask_dropout, 0 <= settings.mask_dropout <= 1, "a probability from 0 to 1"),
        ("anchor_weight", settings.anchor_weight, 0 < settings.anchor_weight < math.inf, "a number above 0"),
        ("injection_alpha", settings.injection_alpha, 0 <= settings.injection_alpha <= 1, "a share from 0 to 1"),
        ("injection_window", window, 0 <= window[0] <= window[1] <= 1, "two fractions of the steps in rising order"),
        ("query_blend", settings.query_blend, all(0 <= v <= 1 for v in settings.query_blend), "shares from 0 to 1"),
        ("query_blend_until", settings.query_blend_until, 0 <= settings.query_blend_until <= 1, "a fraction"),
        ("map_steps", settings.map_steps, settings.map_steps >= 1, "at least 1"),
        ("dift_timestep", settings.dift_timestep, settings.dift_timestep >= 0, "0 or more"),
        ("first_pass", settings.first_pass, settings.first_pass in get_args(FirstPass), "full, lookahead or live"),
        ("lookahead", settings.lookahead, _falls(settings.lookahead), "at least one timestep, falling"),
        ("lookahead_maps", settings.lookahead_maps, settings.lookahead_maps >= 1, "at least 1"),
        (
            "reuse_deep",
            reuse,
            reuse is None or (0 <= reuse[0] <= 1 <= reuse[1]),
            "(share of the steps, period) or None",
        ),
        ("shared_every", settings.shared_every, settings.shared_every >= 1, "at least 1"),
        ("guidance_interval", guided, 0 <= guided[0] <= guided[1] <= 1, "two shares of the steps in rising order"),
        ("cache_codec", settings.cache_codec, settings.cache_codec in get_args(CacheCodec), "none, int8, fp8 or int4"),
        ("freeu", settings.freeu, settings.freeu is None or len(settings.freeu) == 4, "(s1, s2, b1, b2) or None"),
        *_sampling_checks(settings),
    )
    problems = [Problem(name, repr(value), f"must be {fix}") for name, value, holds, fix in checks if not holds]
    problems = problems or sampling_problems(vars(settings))
    if problems:
        raise InputError("the settings cannot be used", problems)
