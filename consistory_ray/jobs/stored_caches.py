"""What a subject's ``from`` becomes: the anchor caches that other runs have left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, PlainSerializer, Strict, TypeAdapter
from pydantic.dataclasses import dataclass

from consistory_ray.guards.problems import FIXES, fault
from consistory_ray.guards.setting_ranges import Whole
from consistory_ray.jobs.render_settings import STRICT, RenderSettings
from consistory_ray.jobs.validation import Text
from consistory_ray.settings import MethodSettings


def _of_the_method(settings: RenderSettings) -> dict[str, Any]:
    """Stored settings as plain values: in the ranges of a job's, and without what only a job has."""
    others = sorted(settings.model_fields_set - MethodSettings.__dataclass_fields__.keys())
    if others:
        raise fault(f"remove {', '.join(others)}: no stored subject has that")
    return settings.model_dump(exclude_unset=True)


if TYPE_CHECKING:
    StoredSettings = dict[str, Any]
else:
    StoredSettings = Annotated[RenderSettings, AfterValidator(_of_the_method), PlainSerializer(dict)]


@dataclass(frozen=True, slots=True, config=STRICT)
class StoredCache:
    """An anchor cache that another run has left: what ``from`` becomes once it was looked up."""

    url: Text
    """Address of the cache file."""
    sha256: Annotated[str, Strict(), Field(pattern="^[0-9a-f]{64}$")]
    """Its content; the subject's pictures depend on this, not on the address."""
    bytes: Annotated[Whole, Field(ge=0, lt=2**63)]
    """Its size."""
    settings: StoredSettings
    """The method's settings that it was made with, and with which its scenes are rendered."""
    loaded: dict[str, Any] | None = None
    """What was loaded with the model that made it: LoRAs, embeddings, another VAE."""


def as_sources(value: Any) -> Any:
    """One or several; addresses were looked up before (:mod:`consistory_ray.jobs.stored_subjects`)."""
    if isinstance(value, (list, tuple)):
        if not value:
            raise fault(FIXES["from"])
        return value
    return () if value is None else (value,)


def as_written(sources: tuple[StoredCache, ...]) -> Any:
    """One is written without a list."""
    written = TypeAdapter(tuple[StoredCache, ...]).dump_python(sources, mode="json")
    return written[0] if len(written) == 1 else written or None
