"""The ConsiStory method for models of the SDXL architecture. Names are imported when first used: torch is heavy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consistory_ray.consistory.cache.anchor_cache import AnchorCache
    from consistory_ray.consistory.cache.estimates import estimate_cache_bytes
    from consistory_ray.consistory.method.hints import ControlHint
    from consistory_ray.consistory.method.trace import Trace
    from consistory_ray.consistory.pipeline import ConsiStoryPipeline
    from consistory_ray.consistory.results import RenderResult, SubjectResult

__all__ = [
    "AnchorCache",
    "ConsiStoryPipeline",
    "ControlHint",
    "RenderResult",
    "SubjectResult",
    "Trace",
    "estimate_cache_bytes",
]

_MODULES = {
    "AnchorCache": "cache.anchor_cache",
    "ConsiStoryPipeline": "pipeline",
    "ControlHint": "method.hints",
    "RenderResult": "results",
    "SubjectResult": "results",
    "Trace": "method.trace",
    "estimate_cache_bytes": "cache.estimates",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
