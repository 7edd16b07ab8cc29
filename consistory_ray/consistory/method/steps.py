"""Which step does what: the two passes (section 7 of docs/method.md) as ranges of step numbers. Pure: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from consistory_ray.errors import InputError, Problem
from consistory_ray.settings import MethodSettings


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
        shared: steps at which SDSA acts; empty when it is off.
        window: how many of the last steps' attention maps make a mask.
    """

    steps: int
    blended: range
    query_blend: tuple[float, float]
    injected: range
    shared: range
    window: int

    @classmethod
    def from_settings(cls, settings: MethodSettings) -> StepPlan:
        """The plan of checked settings."""
        steps = settings.num_inference_steps
        first, last = settings.injection_steps
        last_blended = min(settings.last_blended_step, steps - 1)
        return cls(
            steps=steps,
            blended=range(last_blended + 1 if settings.query_blending and settings.sdsa else 0),
            query_blend=settings.query_blend,
            injected=range(first, min(last + 1, steps)) if settings.injection else range(0),
            shared=range(1, steps) if settings.sdsa else range(0),
            window=settings.map_steps,
        )

    @property
    def fork(self) -> int | None:
        """First step at which pass 2 differs from pass 1; None when nothing is injected and one pass is enough."""
        return self.injected[0] if self.injected else None

    @property
    def masked(self) -> range:
        """Steps whose attention maps are in the final masks."""
        return range(max(0, self.steps - self.window), self.steps)

    def shared_in(self, pass_number: int) -> range:
        """Steps of a pass that share tokens and are not already part of the other pass."""
        if pass_number == 1:
            return self.shared
        return range(0) if self.fork is None else range(max(self.fork, self.shared.start), self.shared.stop)

    @property
    def ticks(self) -> int:
        """Steps of both passes together."""
        return self.steps + (0 if self.fork is None else self.steps - self.fork)

    def blend_weight(self, step: int) -> float:
        """v of section 3.3: the share of the vanilla query at a step, 0 where nothing is blended."""
        if step not in self.blended:
            return 0.0
        first, last = self.query_blend
        return first if len(self.blended) == 1 else first + (last - first) * step / (len(self.blended) - 1)


def nearest_step(timesteps: Sequence[int], timestep: int) -> int:
    """The step whose timestep is nearest to the given one, the earlier step on a tie."""
    return min(range(len(timesteps)), key=lambda step: abs(timesteps[step] - timestep))


def check_settings(settings: MethodSettings) -> None:
    """Refuse values that no picture can be made with.

    Raises:
        InputError: naming every such field.
    """
    window = settings.injection_window
    checks = (
        ("num_inference_steps", settings.num_inference_steps, settings.num_inference_steps >= 1, "at least 1"),
        ("mask_dropout", settings.mask_dropout, 0 <= settings.mask_dropout <= 1, "a probability from 0 to 1"),
        ("injection_alpha", settings.injection_alpha, 0 <= settings.injection_alpha <= 1, "a share from 0 to 1"),
        ("injection_window", window, 0 <= window[0] <= window[1] <= 1, "two fractions of the steps in rising order"),
        ("query_blend", settings.query_blend, all(0 <= v <= 1 for v in settings.query_blend), "shares from 0 to 1"),
        ("query_blend_until", settings.query_blend_until, 0 <= settings.query_blend_until <= 1, "a fraction"),
        ("map_steps", settings.map_steps, settings.map_steps >= 1, "at least 1"),
        ("dift_timestep", settings.dift_timestep, settings.dift_timestep >= 0, "0 or more"),
        ("freeu", settings.freeu, settings.freeu is None or len(settings.freeu) == 4, "(s1, s2, b1, b2) or None"),
    )
    problems = [Problem(name, repr(value), f"must be {fix}") for name, value, holds, fix in checks if not holds]
    if problems:
        raise InputError("the settings cannot be used", problems)
