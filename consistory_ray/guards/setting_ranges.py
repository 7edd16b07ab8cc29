"""The ranges of the method's settings, from wherever they come: a job, a model's file, a stored subject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError

from consistory_ray.errors import Problem
from consistory_ray.guards.choices import (
    CacheCodec,
    FirstPass,
    Profile,
    PromptSyntax,
    Scheduler,
    SigmaSchedule,
    Strength,
    TimestepSpacing,
)
from consistory_ray.guards.problems import FIXES, explain, fault, path


def _ordered(name: str) -> AfterValidator:
    def check(value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise fault(FIXES[name])
        return value

    return AfterValidator(check)


Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Switch = Annotated[bool, Strict()]
Share = Annotated[Number, Field(ge=0, le=1)]
Pixels = Annotated[Whole, Field(ge=64, le=8192, multiple_of=8)]
Steps = Annotated[Whole, Field(ge=1, le=1000)]
Guidance = Annotated[Number, Field(ge=0, le=100)]
Timestep = Annotated[Whole, Field(ge=0, le=999)]
AnchorWeight = Annotated[Number, Field(gt=0, le=16)]
FreeUFactor = Annotated[Number, Field(gt=0, le=10)]
Window = Annotated[tuple[Share, Share], _ordered("injection_window")]
Interval = Annotated[tuple[Share, Share], _ordered("guidance_interval")]


def _falling(name: str) -> AfterValidator:
    def check(value: tuple[int, ...]) -> tuple[int, ...]:
        if list(value) != sorted(set(value), reverse=True):
            raise fault(FIXES[name])
        return value

    return AfterValidator(check)


LookAhead = Annotated[tuple[Timestep, ...], Field(min_length=1, max_length=16), _falling("lookahead")]
Timesteps = Annotated[tuple[Timestep, ...], Field(min_length=1, max_length=1000), _falling("timesteps")]
ClipSkip = Annotated[Whole, Field(ge=1, le=24)]
_Length = Annotated[Whole, Field(ge=1, le=65536)]
_Offset = Annotated[Whole, Field(ge=0, le=65536)]
Size = tuple[_Length, _Length]
Corner = tuple[_Offset, _Offset]
Period = Annotated[Whole, Field(ge=1, le=16)]
Reuse = tuple[Share, Period]


class _Ranges(BaseModel):
    model_config = ConfigDict(extra="forbid")

    profile: Profile = "exact"
    strength: Strength = "paper"
    num_inference_steps: Steps = 1
    guidance_scale: Guidance = 0
    height: Pixels | None = None
    width: Pixels | None = None
    negative_prompt: str | None = None
    mask_dropout: Share = 0
    sdsa: Switch = True
    query_blending: Switch = True
    injection: Switch = True
    freeu: tuple[FreeUFactor, FreeUFactor, FreeUFactor, FreeUFactor] | None = None
    query_blend: tuple[Share, Share] = (0, 0)
    query_blend_until: Share = 0
    injection_window: Window = (0, 0)
    injection_alpha: Share = 0
    map_steps: Steps = 1
    dift_timestep: Timestep = 0
    first_pass: FirstPass = "full"
    lookahead: LookAhead = (0,)
    lookahead_maps: Period = 1
    reuse_deep: Reuse | None = None
    shared_every: Period = 1
    scene_blending: Switch = True
    guidance_interval: Interval = (0, 1)
    cache_codec: CacheCodec = "none"
    scheduler: Scheduler = "ddim"
    sigma_schedule: SigmaSchedule | None = None
    timestep_spacing: TimestepSpacing | None = None
    timesteps: Timesteps | None = None
    eta: Share = 0
    guidance_rescale: Share = 0
    prompt_syntax: PromptSyntax = "plain"
    negative_prompt_2: str | None = None
    clip_skip: ClipSkip | None = None
    original_size: Size | None = None
    crops_coords_top_left: Corner = (0, 0)
    target_size: Size | None = None
    led_anchors: Switch = False
    anchor_weight: AnchorWeight = 1


def setting_problems(values: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the method's settings as JSON holds them; some may be left out."""
    try:
        _Ranges.model_validate(values)
    except ValidationError as error:
        return explain(error, values, path, lambda loc: _Ranges.model_fields)
    return []
