"""How a job is rendered: the settings a user writes, and the small types that jobs are made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator
from typing_extensions import Self

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
from consistory_ray.guards.numerics import whole_number
from consistory_ray.guards.problems import FIXES, fault
from consistory_ray.guards.sampling import sampling_problems
from consistory_ray.guards.setting_ranges import (
    AnchorWeight,
    ClipSkip,
    Corner,
    FreeUFactor,
    Guidance,
    Interval,
    LookAhead,
    Period,
    Pixels,
    Reuse,
    Share,
    Size,
    Steps,
    Switch,
    Timestep,
    Timesteps,
    Window,
)
from consistory_ray.jobs.checks import MAX_SEED, Finding, check_text
from consistory_ray.jobs.validation import invalid
from consistory_ray.settings import PROFILES, SCENE_SETTINGS, STRENGTHS, MethodSettings, model_defaults


def _text_or_none(value: str) -> str:
    cleaned, fix = check_text(value) if value.strip() else ("", None)
    if fix:
        raise fault(fix)
    return cleaned


def _as_whole(value: Any) -> Any:
    number = whole_number(value)
    return value if number is None else number


TextOrNothing = Annotated[str, Strict(), AfterValidator(_text_or_none)]
_Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Seed = Annotated[_Seed, Strict(), BeforeValidator(_as_whole, json_schema_input_type=_Seed)]

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)
FROZEN = ConfigDict(frozen=True, **STRICT)


class RenderSettings(BaseModel):
    """How a job is rendered. What is left out is the model's own default; ``freeu: null`` switches FreeU off.

    Every name that :class:`~consistory_ray.settings.MethodSettings` also has means the same there.
    """

    model_config = FROZEN

    seed: Seed = 0
    """Seed from which the seeds of all anchors and scenes without one are derived."""
    torch_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the networks; auto is float16 on CUDA and float32 on CPU."""
    batch_size: Annotated[int, Strict(), Field(ge=1, le=256)] | Literal["auto"] = "auto"
    """Scenes rendered together by a worker; it changes how numbers are rounded, and nothing else of a picture."""
    png_level: Annotated[int, Strict(), Field(ge=0, le=9)] = 1
    """How hard picture files are compressed, 0 to 9; changes no pixel, and pictures that are there are kept."""
    num_inference_steps: Steps | None = None
    """Denoising steps n."""
    scheduler: Scheduler | None = None
    """Which sampler of diffusers makes the steps: "ddim" (the default), "euler", "euler_a", "dpmpp_2m",
    "dpmpp_2m_sde", "unipc", "lcm", "tcd", or "model" for the checkpoint's own."""
    sigma_schedule: SigmaSchedule | None = None
    """How noise levels are spaced: "karras" or "exponential"; null is as the timesteps are."""
    timestep_spacing: TimestepSpacing | None = None
    """How timesteps are spaced: "leading", "trailing" or "linspace"; null is the checkpoint's own."""
    timesteps: Timesteps | None = None
    """The timesteps themselves, falling, as distilled models want them: there are as many steps then."""
    eta: Share | None = None
    """How much new noise DDIM adds at every step, 0 to 1; the gamma of TCD."""
    guidance_rescale: Share | None = None
    """Share of the rescaled guidance that models with zero terminal SNR want, such as 0.7; 0 is off."""
    guidance_scale: Guidance | None = None
    """Classifier-free guidance; 1 or less renders without the unconditional half."""
    height: Pixels | None = None
    """Picture height in pixels, a multiple of 8; null is the model's own."""
    width: Pixels | None = None
    """Picture width in pixels, a multiple of 8; null is the model's own."""
    negative_prompt: TextOrNothing | None = None
    """What pictures should not show; null is the zero embedding, "" the embedding of the empty text."""
    negative_prompt_2: TextOrNothing | None = None
    """The same for the second text encoder alone; null is as negative_prompt."""
    prompt_syntax: PromptSyntax | None = None
    """"plain" text up to what the text encoders read, or "compel": weights such as (green)1.3, and any length."""
    clip_skip: ClipSkip | None = None
    """How many more of the text encoders' last layers are skipped than SDXL skips; null is none."""
    original_size: Size | None = None
    """Height and width that the model is told a picture had before it was scaled; null is the picture's own."""
    crops_coords_top_left: Corner | None = None
    """Where, from the top and from the left, the model is told that a picture was cut; [0, 0] is nowhere."""
    target_size: Size | None = None
    """Height and width that the model is told a picture has; null is the picture's own."""
    strength: Strength | None = None
    """How alike a subject's pictures are: "paper" is the method as published; in "strong" anchors count twice
    in attention, and features are injected for longer, up to 0.6 of the steps. A strength sets anchor_weight and
    injection_window, which win over it where they are written down, too. Left out, it is the model's own, "paper" with
    nearly all."""
    mask_dropout: Share | None = None
    """Probability that a subject token of an anchor is not shared at a step (section 3.2): lower is more alike, higher
    more varied."""
    led_anchors: Switch | None = None
    """Whether each anchor looks only at those before it, so that the first one decides the individual; otherwise all
    look at each other, and meet in the middle."""
    anchor_weight: AnchorWeight | None = None
    """How much an anchor's token counts in attention, beside a picture's own, which count once: more is more alike."""
    sdsa: Switch | None = None
    """Subject-driven self-attention on or off (section 3.2)."""
    query_blending: Switch | None = None
    """Vanilla query blending on or off (section 3.3)."""
    injection: Switch | None = None
    """Feature injection on or off (section 3.4)."""
    freeu: tuple[FreeUFactor, FreeUFactor, FreeUFactor, FreeUFactor] | None = None
    """FreeU's s1, s2, b1, b2; null is off."""
    query_blend: tuple[Share, Share] | None = None
    """Weight of the vanilla queries at the first and at the last blended step (section 3.3)."""
    query_blend_until: Share | None = None
    """Last blended step, as a share of all steps (section 3.3)."""
    injection_window: Window | None = None
    """First and last step of feature injection, as shares of all steps, the first not above the last (section 3.4)."""
    injection_alpha: Share | None = None
    """Share of the anchor's feature in an injected token (section 3.4)."""
    map_steps: Steps | None = None
    """How many of the last steps' attention maps make the subject mask (section 3.1)."""
    dift_timestep: Timestep | None = None
    """Timestep whose features give the correspondences (section 3.4)."""
    profile: Profile | None = None
    """What is saved on scenes: "exact" is the method as published; "fast" costs less than half of it and is as alike;
    "turbo" costs still less, and layouts vary less. A profile sets all of the settings below; each one that is written
    down, too, wins over it. Left out, it is the model's own, "exact" with nearly all."""
    first_pass: FirstPass | None = None
    """Where a scene's mask and correspondences come from: "full" is the paper's pass 1, "lookahead" a few calls that
    jump ahead, "live" the step before."""
    lookahead: LookAhead | None = None
    """Timesteps of the look-ahead's calls, falling; the last one gives the features."""
    lookahead_maps: Period | None = None
    """Of how many of the last of those calls the attention maps make the mask."""
    reuse_deep: Reuse | None = None
    """From which share of the steps on the network's deep layers are computed only every how many steps, such as
    [0.35, 2]; null is off."""
    shared_every: Period | None = None
    """Every how many steps the anchors' tokens are kept; the steps in between share them too."""
    scene_blending: Switch | None = None
    """Whether queries are blended in scenes, where they are in anchors (section 3.3)."""
    guidance_interval: Interval | None = None
    """From which to which share of the steps there is classifier-free guidance."""
    cache_codec: CacheCodec | None = None
    """How the anchor cache is packed: "none", "int8", "fp8" or "int4"."""

    @model_validator(mode="after")
    def _only_nullable_nulls(self) -> Self:
        nulls = [name for name in self.model_fields_set - _NULLABLE if getattr(self, name) is None]
        if nulls:
            raise invalid(type(self), [Finding((name,), None, FIXES[name]) for name in sorted(nulls)])
        steps = self.num_inference_steps
        if self.timesteps is not None and steps not in (None, len(self.timesteps)):
            fix = f"leave it out: timesteps has {len(self.timesteps)} steps"
            raise invalid(type(self), [Finding(("num_inference_steps",), steps, fix)])
        # the model's own settings may name the sampler: then the plan sees what does not go together
        values = {"scheduler": "model"} | {name: getattr(self, name) for name in self.model_fields_set}
        if found := sampling_problems(values):
            raise invalid(type(self), [Finding((item.path,), values[item.path], item.fix) for item in found])
        return self

    def for_model(self, model: str) -> MethodSettings:
        """The model's defaults with everything that was set here on top: strength, profile, and single ones.

        Raises:
            CheckpointError: the model's own settings file cannot be used.
        """
        return model_defaults(model).replace(**self._asked())

    def for_scenes_of(self, made: MethodSettings) -> MethodSettings:
        """What scenes of a stored subject are rendered with: what is saved on scenes may be asked for anew.

        Args:
            made: the settings that the subject was stored with.
        """
        return made.replace(**{name: value for name, value in self._asked().items() if name in SCENE_SETTINGS})

    def _asked(self) -> dict[str, Any]:
        """Settings of the method that were set here, those of the strength and the profile beneath single ones."""
        strength = {} if self.strength is None else STRENGTHS[self.strength]
        profile = {} if self.profile is None else PROFILES[self.profile]
        fields = MethodSettings.__dataclass_fields__.keys() & self.model_fields_set
        return {**strength, **profile, **{name: getattr(self, name) for name in fields}}


_NULLABLE = frozenset(
    {
        "height",
        "width",
        "negative_prompt",
        "negative_prompt_2",
        "freeu",
        "reuse_deep",
        "sigma_schedule",
        "timestep_spacing",
        "timesteps",
        "clip_skip",
        "original_size",
        "target_size",
    }
)
