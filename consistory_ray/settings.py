"""The method's settings: one frozen value that the plan hashes, the pipeline obeys and the cache remembers.

Constants are those of the paper (Tewel et al., SIGGRAPH 2024) unless a model brings its own in a file named
``consistory.json`` beside its ``model_index.json``. This module is pure: no torch, so that planning stays fast.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from consistory_ray.errors import CheckpointError, Problem
from consistory_ray.guards.choices import (
    CacheCodec,
    FirstPass,
    PromptSyntax,
    Scheduler,
    SigmaSchedule,
    TimestepSpacing,
)
from consistory_ray.guards.outside import open_regular

MODEL_SETTINGS_FILE = "consistory.json"
BUNDLED_MODEL = "miniature"

_REVISION_BYTES = 1 << 20
_MAX_SETTINGS_BYTES = 64 << 10
_MAX_MODEL_FILES = 20_000
_MAX_MODEL_DEPTH = 8
_SHOWN = 20

FreeU = tuple[float, float, float, float]


@dataclass(frozen=True)
class MethodSettings:
    """Everything besides prompts, seeds and weights that decides how a subject's pictures look.

    Attributes:
        num_inference_steps: denoising steps n.
        guidance_scale: classifier-free guidance; 1 or less renders without the unconditional half.
        height, width: picture size in pixels; None is the model's own size.
        negative_prompt: text of the unconditional half; None is SDXL's zero embedding.
        mask_dropout: probability that a subject token of an anchor is *not* shared at a step (section 3.2).
        sdsa, query_blending, injection: the parts of the method, each can be switched off.
        freeu: FreeU's (s1, s2, b1, b2), or None for off.
        query_blend: v at step 0 and at the last blended step (section 3.3).
        query_blend_until: the last blended step is ``int(n * query_blend_until)``.
        injection_window: injection runs from step ``int(n * first)`` to ``int(n * last)``, inclusive (section 3.4).
        injection_alpha: share of the source feature in an injected token.
        map_steps: how many of the last steps' cross-attention maps make the subject mask (section 3.1).
        dift_timestep: the timestep whose features give the correspondences (section 3.4).

    How scenes are made cheaper (section 12 of docs/method.md); anchors never are. A profile is a set of these:

    Attributes:
        first_pass: where a scene's mask and correspondences come from: ``full`` is the paper's pass 1, ``lookahead``
            a few calls that jump ahead from the fork, ``live`` each injection step's predecessor.
        lookahead: the timesteps of those calls after the one at the fork, falling; the last one gives the features.
        lookahead_maps: of how many of the last of those calls the attention maps make the mask.
        reuse_deep: (from, period): from step ``int(n * from)`` on only every ``period``-th call is made in full, the
            others reuse what it computed in the deep layers. Of vanilla pictures too. None is off.
        shared_every: anchors' tokens of only every so manieth step are kept and shared, by the steps after it too.
        scene_blending: whether queries are blended in scenes (where they are in anchors).
        guidance_interval: classifier-free guidance from step ``int(n * first)`` up to before ``int(n * last)``; at
            other steps the conditional half alone is computed. Of vanilla pictures too.
        cache_codec: how the anchor cache is packed: ``none``, ``int8``, ``fp8`` or ``int4``.

    How the model is sampled, of anchors and scenes alike:

    Attributes:
        scheduler: ``ddim``, another of diffusers' samplers, or ``model`` for the checkpoint's own.
        sigma_schedule: how noise levels are spaced: ``karras``, ``exponential``, or None for the timesteps' own.
        timestep_spacing: how timesteps are spaced: ``leading``, ``trailing`` or ``linspace``; None is the
            checkpoint's.
        timesteps: the timesteps themselves, falling, as many as there are steps; None spaces them.
        eta: how much new noise DDIM adds at every step, 0 to 1; TCD's gamma.
        guidance_rescale: share of the rescaled guidance (arXiv 2305.08891, section 3.4), 0 is off.

    Of the anchors alone:

    Attributes:
        led_anchors: whether each anchor looks only at those before it, so that the first one, which is then a plain
            picture, decides the individual; otherwise they look at each other, and meet in the middle.

    Of anchors and scenes:

    Attributes:
        anchor_weight: how much an anchor's shared token counts in others' attention, beside their own tokens, which
            count once: w is what w equal tokens would come to, 1 the paper's (section 3.2).

    What the text encoders are told besides the prompts:

    Attributes:
        prompt_syntax: ``plain`` text, or ``compel``: weights, and prompts of any length.
        negative_prompt_2: of the unconditional half for the second text encoder; None is ``negative_prompt``.
        clip_skip: how many of the text encoders' last layers are skipped, besides the one that SDXL skips.
        original_size, target_size: (height, width) that the model is told; None is the picture's own size.
        crops_coords_top_left: (top, left) of the crop that the model is told.
    """

    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    height: int | None = None
    width: int | None = None
    negative_prompt: str | None = None
    mask_dropout: float = 0.5
    sdsa: bool = True
    query_blending: bool = True
    injection: bool = True
    freeu: FreeU | None = (0.6, 0.4, 1.1, 1.2)
    query_blend: tuple[float, float] = (0.9, 0.81836735)
    query_blend_until: float = 1 / 10
    injection_window: tuple[float, float] = (1 / 10, 1 / 3)
    injection_alpha: float = 0.8
    map_steps: int = 20
    dift_timestep: int = 261
    first_pass: FirstPass = "full"
    lookahead: tuple[int, ...] = (651, 451, 251)
    lookahead_maps: int = 2
    reuse_deep: tuple[float, int] | None = None
    shared_every: int = 1
    scene_blending: bool = True
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    cache_codec: CacheCodec = "none"
    scheduler: Scheduler = "ddim"
    sigma_schedule: SigmaSchedule | None = None
    timestep_spacing: TimestepSpacing | None = None
    timesteps: tuple[int, ...] | None = None
    eta: float = 0.0
    guidance_rescale: float = 0.0
    prompt_syntax: PromptSyntax = "plain"
    negative_prompt_2: str | None = None
    clip_skip: int | None = None
    original_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] | None = None
    led_anchors: bool = False
    anchor_weight: float = 1.0

    def __post_init__(self) -> None:
        """As many steps as timesteps, where these are given."""
        if self.timesteps is not None:
            object.__setattr__(self, "num_inference_steps", len(self.timesteps))

    @property
    def last_blended_step(self) -> int:
        """Last step with query blending, inclusive."""
        return share_of(self.num_inference_steps, self.query_blend_until)

    @property
    def injection_steps(self) -> tuple[int, int]:
        """First and last step of feature injection, both inclusive."""
        first, last = self.injection_window
        return share_of(self.num_inference_steps, first), share_of(self.num_inference_steps, last)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields, in declaration order.

        Those that came later are left out at their defaults: what was made before there were any keeps its identity.
        """
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}  # flat: no deep copies
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in _LATER or value != _LATER[name]
        }

    def with_profile(self, profile: str) -> MethodSettings:
        """A copy with all settings of a profile.

        Raises:
            KeyError: there is no such profile.
        """
        return self.replace(**PROFILES[profile])

    def with_strength(self, strength: str) -> MethodSettings:
        """A copy with all settings of a strength.

        Raises:
            KeyError: there is no such strength.
        """
        return self.replace(**STRENGTHS[strength])

    @property
    def exact(self) -> MethodSettings:
        """A copy as anchors are rendered, whatever is saved on their scenes."""
        return self.with_profile("exact")

    @property
    def profile(self) -> str | None:
        """Name of the profile that scenes are rendered by, however the cache is packed; None for no such."""
        for name in PROFILES:
            if self == self.with_profile(name).replace(cache_codec=self.cache_codec):
                return name
        return None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MethodSettings:
        """The inverse of :meth:`to_dict`; unknown keys raise TypeError. 5 and 5.0 are the same guidance scale."""
        floats = {field.name for field in dataclasses.fields(cls) if field.type == "float"}
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else float(value) if key in floats else value
            for key, value in values.items()
        }
        return cls(**fields)

    def replace(self, **changes: Any) -> MethodSettings:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def digest(self) -> str:
        """SHA-256 over the canonical JSON of all fields, as 64 hexadecimal digits."""
        return self._digest

    @functools.cached_property  # of the value itself: settings that are equal, 5 and 5.0, need not be written alike
    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


SCENE_SETTINGS = (
    "first_pass",
    "lookahead",
    "lookahead_maps",
    "reuse_deep",
    "shared_every",
    "scene_blending",
    "guidance_interval",
)
"""Those that anchors do not have: scenes may be rendered with others than their cache was made for, if it suffices."""

_PROFILED = (*SCENE_SETTINGS, "cache_codec")
_DEFAULTS = {item.name: item.default for item in dataclasses.fields(MethodSettings)}
_EXACT: Mapping[str, Any] = MappingProxyType({name: _DEFAULTS[name] for name in _PROFILED})
_LATER: Mapping[str, Any] = MappingProxyType(
    {name: _DEFAULTS[name] for name in list(_DEFAULTS)[list(_DEFAULTS).index("first_pass") :]}
)
"""Defaults of the settings that the first versions did not have, those of profiles among them."""
PROFILES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "exact": _EXACT,
        "fast": MappingProxyType(
            {
                **_EXACT,
                "first_pass": "lookahead",
                "lookahead": (801, 701, 601, 501, 376, 251),
                "lookahead_maps": 1,
                "reuse_deep": (0.35, 2),
                "shared_every": 2,
                "cache_codec": "int8",
            }
        ),
        "turbo": MappingProxyType(
            {
                **_EXACT,
                "first_pass": "lookahead",
                "lookahead": (651, 451, 251),
                "lookahead_maps": 1,
                "reuse_deep": (0.35, 3),
                "shared_every": 2,
                "scene_blending": False,
                "cache_codec": "int8",
            }
        ),
    }
)
"""The settings of each profile, all of those that save something on scenes: what a profile does not name it resets."""

_STRONG: Mapping[str, Any] = MappingProxyType({"anchor_weight": 2.0, "injection_window": (1 / 10, 3 / 5)})
STRENGTHS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"paper": MappingProxyType({name: _DEFAULTS[name] for name in _STRONG}), "strong": _STRONG}
)
"""The settings of each strength: how much of an individual is held on to, in anchors and scenes alike."""


def share_of(steps: int, fraction: float) -> int:
    """``steps * fraction`` rounded down, immune to 1/10 and 1/3 not being exact in binary."""
    return int(steps * fraction + 1e-9)


def model_path(model: str) -> str:
    """A model's name as it is looked up: of ``file:///models/xl`` and ``~/xl`` the path, all others unchanged."""
    name = model.removeprefix("file://")
    return os.path.expanduser(name) if name.startswith("~") else name


def model_defaults(model: str) -> MethodSettings:
    """The default settings of a model, without loading it.

    Args:
        model: ``"miniature"``, a local folder, or anything else a pipeline can be loaded from.

    Returns:
        The paper's constants, overridden by the model's ``consistory.json`` where it has one.

    Raises:
        CheckpointError: that file exists but is not a JSON object of known settings.
    """
    if model == BUNDLED_MODEL:
        text = resources.files("consistory_ray.miniature").joinpath("weights", MODEL_SETTINGS_FILE).read_text()
        return _parse(text, MODEL_SETTINGS_FILE)
    path = os.path.join(model_path(model), MODEL_SETTINGS_FILE)
    if "\0" in model or not os.path.exists(path):
        return MethodSettings()
    try:
        with open_regular(path, follow=True) as stream:
            content = stream.read(_MAX_SETTINGS_BYTES + 1)
        if len(content) > _MAX_SETTINGS_BYTES:
            raise ValueError(f"it has more than {_MAX_SETTINGS_BYTES} bytes")
        return _parse(content.decode("utf-8-sig"), path)
    except (OSError, ValueError) as error:
        raise _unusable([Problem(path, str(error)[:200], "write a small UTF-8 file with a JSON object")]) from error


def model_revision(model: str) -> str | None:
    """Which weights a name stands for at present, so that retrained weights are another model.

    Args:
        model: as for :func:`model_defaults`.

    Returns:
        Hexadecimal digits made of the weight files' names, sizes, beginnings and ends, and of the configurations; None
        for anything that is not on this machine, such as a hub id.
    """
    if model == BUNDLED_MODEL:
        with resources.as_file(resources.files("consistory_ray.miniature").joinpath("weights")) as folder:
            return _revision(folder)
    path = model_path(model)
    return _revision(Path(path)) if os.path.exists(path) else None


def controlnet_revision(net: str) -> str | None:
    """The same of a ControlNet; "miniature" is the bundled one."""
    if net == BUNDLED_MODEL:
        with resources.as_file(resources.files("consistory_ray.miniature").joinpath("controlnet")) as folder:
            return _revision(folder)
    return model_revision(net)


def configuration_revision(config: str) -> str | None:
    """Which configurations and tokenizers lie in a folder, wherever it lies; None for what is not on this machine."""
    path = Path(model_path(config))
    return _revision(path, (".json", ".txt")) if path.is_dir() else None


def _revision(path: Path, suffixes: tuple[str, ...] = (".safetensors", ".json", ".txt")) -> str | None:
    files = [path] if path.is_file() else _files_below(path)
    if files is None:
        return None
    digest = hashlib.sha256()
    for file in files:
        if file.suffix not in suffixes:
            continue
        with file.open("rb") as stream:
            digest.update(f"{file.relative_to(path).as_posix()}:{file.stat().st_size};".encode())
            digest.update(stream.read(_REVISION_BYTES))
            if file.stat().st_size > 2 * _REVISION_BYTES:
                stream.seek(-_REVISION_BYTES, 2)
            digest.update(stream.read())
    return digest.hexdigest()[:16]


def _files_below(folder: Path) -> list[Path] | None:
    """The files of a model's folder, sorted; None if it holds more than models do, such as a whole disk."""
    found: list[Path] = []
    waiting, seen = [(folder, 0)], 0
    while waiting:
        place, depth = waiting.pop()
        try:
            entries = list(islice(os.scandir(place), _MAX_MODEL_FILES + 1))
        except OSError:
            continue
        seen += len(entries)
        if seen > _MAX_MODEL_FILES or depth > _MAX_MODEL_DEPTH:
            return None
        found += [Path(entry.path) for entry in entries if entry.is_file()]
        waiting += [(Path(entry.path), depth + 1) for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(found)


def _parse(text: str, where: str) -> MethodSettings:
    """Settings from JSON, in the ranges that a job's settings have."""
    from consistory_ray.guards.setting_ranges import setting_problems  # pydantic, for settings from files only

    names = ["profile", "strength", *(field.name for field in dataclasses.fields(MethodSettings))]
    fix = f"write a JSON object whose keys are among {', '.join(names)}"
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unusable([Problem(where, str(error)[:200], fix)]) from error
    if not isinstance(values, dict):
        raise _unusable([Problem(where, f"a {type(values).__name__}", fix)])
    unknown = sorted(values.keys() - set(names))
    if unknown:
        raise _unusable([Problem(f"{where}: {ascii(name)[1:-1][:60]}", "", fix) for name in unknown[:_SHOWN]])
    if found := setting_problems(values):
        raise _unusable([Problem(f"{where}: {item.path}", item.value, item.fix) for item in found])
    profile, strength = PROFILES[values.pop("profile", "exact")], STRENGTHS[values.pop("strength", "paper")]
    return MethodSettings.from_dict({**strength, **profile, **values})


def _unusable(problems: list[Problem]) -> CheckpointError:
    return CheckpointError("the model's settings file cannot be used", problems)
