"""What leads the layout of a job's pictures: ControlNets, hints for them, and poses that a subject takes in each scene.

A hint is a picture. In a file it is an address, which :mod:`consistory_ray.jobs.control_files` looks up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic.dataclasses import dataclass

from consistory_ray.guards.problems import FIXES, fault
from consistory_ray.guards.setting_ranges import Number, Whole
from consistory_ray.jobs.input_files import File
from consistory_ray.jobs.model_names import controlnet_name
from consistory_ray.jobs.validation import Id, Text

MAX_CONTROLNETS = 8
MAX_CONTROLS = 8
MAX_POSES = 1_000

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _after_start(value: float, info: ValidationInfo) -> float:
    if value <= info.data.get("start", 0.0):
        raise fault(FIXES["end"])
    return value


def _controlnet(value: str) -> str:
    name, fix = controlnet_name(value)
    if fix:
        raise fault(fix)
    return name


_IMAGE = (
    "Path or URL of the hint, as its ControlNet was trained to see it, or of what preprocess makes one of: PNG, JPEG "
    "or WebP of any size. A relative path is relative to the job file."
)
Hint = Annotated[File, Field(description=_IMAGE)]


_SCALE = "How strongly it leads: 1 is what the ControlNet was trained for."
_START = "From when it leads, as a share of all steps."
_END = "Until when it leads, as a share of all steps: with 0.6 the last steps are free to draw details."
_PREPROCESS = (
    "What makes a hint of the picture: none takes it as it is, canny finds its edges, silhouette and outline find what "
    "is opaque or stands out from a plain background, invert makes white on black of black on white."
)
_NET = "Which of the job's controlnets: its place, from 0, or its name."
_MODE = "Of a ControlNet union the kind of hint: its name, such as depth, or its number. Others have none."
Scale = Annotated[Number, Field(ge=0, le=10, description=_SCALE)]
Start = Annotated[Number, Field(ge=0, lt=1, description=_START)]
End = Annotated[Number, Field(gt=0, le=1, description=_END), AfterValidator(_after_start)]
Preprocess = Literal["none", "invert", "canny", "silhouette", "outline"]
Prepared = Annotated[Preprocess, Field(description=_PREPROCESS)]
Net = Annotated[Annotated[Whole, Field(ge=0, lt=MAX_CONTROLNETS)] | Text, Field(description=_NET)]
Mode = Annotated[Annotated[Whole, Field(ge=0, lt=64)] | Text | None, Field(description=_MODE)]


@dataclass(frozen=True, slots=True, config=_CONFIG)
class ControlNet:
    """A network that leads pictures by hints. The name alone can be written instead."""

    model: Annotated[Text, Field(max_length=1000), AfterValidator(_controlnet)]
    """"miniature" (bundled, for the bundled model: silhouettes, outlines, skeletons), a Hugging Face id, a folder or a
    .safetensors file: a ControlNet, or a ControlNet union, for the job's model."""
    name: Annotated[Text, Field(max_length=100)] | None = None
    """What controls call it under net; left out, it is called like its model."""

    @property
    def called(self) -> str:
        """What controls call it."""
        return self.name or self.model


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Control:
    """A hint: a picture that leads another one's layout. The address alone can be written instead."""

    image: Hint
    scale: Scale = 1.0
    start: Start = 0.0
    end: End = 1.0
    preprocess: Prepared = "none"
    net: Net = 0
    mode: Mode = None


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Pose(Control):
    """A hint that every scene of a subject is rendered with."""

    name: Id | None = None
    """What pictures in this pose are called, after their scene's id and a dot; left out, it is made of the file's
    name."""


@dataclass(frozen=True, slots=True, config=_CONFIG)
class PoseFolder:
    """A folder of hints with what all of them have; it becomes the list of its pictures."""

    folder: Text
    """Path or URL; its PNG, JPEG and WebP files are the poses, sorted by name."""
    scale: Scale = 1.0
    start: Start = 0.0
    end: End = 1.0
    preprocess: Prepared = "none"
    net: Net = 0
    mode: Mode = None


def listed(value: Any) -> Any:
    """One thing or a list of them, as a list."""
    return [value] if isinstance(value, str | Mapping | Control | ControlNet) else value


def named(value: Any) -> Any:
    """A ControlNet, which may be its model's name alone."""
    return {"model": value} if isinstance(value, str) else value


Controls = Annotated[
    tuple[Control, ...],
    Field(max_length=MAX_CONTROLS),
    BeforeValidator(listed, json_schema_input_type=str | Control | list[str | Control]),
]
