"""What a job loads with its model: LoRAs, embeddings, another VAE. In a file each may be its address alone.

Addresses are looked up by :mod:`consistory_ray.jobs.adapter_files`, which puts the content's SHA-256 beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from consistory_ray.guards.problems import FIXES, fault
from consistory_ray.guards.setting_ranges import Number
from consistory_ray.jobs.adapter_names import adapter_name, called_by, vae_name
from consistory_ray.jobs.input_files import Sha256
from consistory_ray.jobs.validation import Text

MAX_LORAS = 32
MAX_EMBEDDINGS = 64

_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _adapter(value: str) -> str:
    name, fix = adapter_name(value)
    if fix:
        raise fault(fix)
    return name


def _vae(value: str) -> str:
    name, fix = vae_name(value)
    if fix:
        raise fault(fix)
    return name


def _one_word(value: str) -> str:
    if " " in value:
        raise fault(FIXES["token"])
    return value


Vae = Annotated[Text, Field(max_length=1000), AfterValidator(_vae)]
"""A VAE as a job names it."""
_SHA256 = "Of the file; load_job puts it there. Written down, it is what the file must have."
_Content = Annotated[Sha256 | None, Field(description=_SHA256)]
_Path = Annotated[Text, Field(max_length=1000), AfterValidator(_adapter)]


@dataclass(frozen=True, slots=True, config=_CONFIG)
class LoRA:
    """A LoRA that is fused into the model when that is loaded. The address alone can be written instead."""

    path: _Path
    """A .safetensors file or a folder with one, by path or URL; a Hugging Face id, or a file in one such as
    owner/name/file.safetensors; or a bundled one of the bundled model: "miniature/distilled-8". A relative path is
    relative to the job file."""
    weight: Annotated[Number, Field(ge=-100, le=100)] = 1.0
    """How strongly it acts: 1 is what it was trained for, 0 is off, below 0 it acts the other way."""
    name: Annotated[Text, Field(max_length=100)] | None = None
    """What plan and index call it; left out, it is called like its file."""
    sha256: _Content = None

    @property
    def called(self) -> str:
        """What plan and index call it."""
        return self.name or called_by(self.path)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Embedding:
    """A textual inversion: a word that the text encoders are taught. The address alone can be written instead."""

    path: _Path
    """As of a LoRA: a .safetensors file for both of SDXL's text encoders."""
    token: Annotated[Text, Field(max_length=100), AfterValidator(_one_word)] | None = None
    """The word that stands for it in prompts; left out, the file's name without its ending."""
    sha256: _Content = None

    @property
    def called(self) -> str:
        """The word that stands for it in prompts."""
        return self.token or called_by(self.path).replace(" ", "-")


def listed(value: Any) -> Any:
    """One adapter or a list of them, as a list."""
    return [value] if isinstance(value, str | Mapping | LoRA | Embedding) else value


def with_path(value: Any) -> Any:
    """An adapter, which may be its address alone."""
    return {"path": value} if isinstance(value, str) else value
