"""What must hold between the fields that say what is loaded: names differ, and each fits the kind of model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from consistory_ray.guards.problems import shown
from consistory_ray.jobs.adapter_names import called_by, is_bundled_name
from consistory_ray.jobs.checks import MAX_TEXT, Finding
from consistory_ray.jobs.model_names import is_hub_id
from consistory_ray.settings import BUNDLED_MODEL


def loading_findings(job: Any) -> Iterator[Finding]:
    """Problems of what is loaded with a model, of models and plain dicts alike."""
    yield from _called_alike(job, "loras", "name", "give it a name of its own: {} is called so")
    yield from _called_alike(job, "embeddings", "token", "give it a token of its own: {} has this one", 2)
    model = _string(job, "model") or BUNDLED_MODEL
    for index, entry in _items(job, "loras") if model != BUNDLED_MODEL else ():
        address = entry if isinstance(entry, str) else _string(entry, "path")
        if is_bundled_name(address):
            fix = f"leave it out, or set model: {BUNDLED_MODEL}: it was made for the bundled model"
            yield Finding(("loras", index, "path"), address, fix)
    here = model == BUNDLED_MODEL or not is_hub_id(model) or os.path.isdir(model)
    if (revision := _string(job, "revision")) and here:
        fix = "leave it out: only a model from the Hugging Face hub has revisions"
        yield Finding(("revision",), revision, fix)
    is_file = model == BUNDLED_MODEL or model.lower().endswith(".safetensors")
    if (variant := _string(job, "variant")) and is_file:
        fix = "leave it out: only a folder or a model from the Hugging Face hub has variants of its files"
        yield Finding(("variant",), variant, fix)


def _called_alike(job: Any, field: str, key: str, fix: str, most: int = 1) -> Iterator[Finding]:
    """Names that stand more often than they may: a token may have a file for each of the two text encoders."""
    first: dict[str, int] = {}
    times = Counter[str]()
    for index, entry in _items(job, field):
        address = entry if isinstance(entry, str) else _string(entry, "path")
        given = _get(entry, key)
        name = given if isinstance(given, str) else called_by(address) if address else ""
        times[name.lower()] += 1
        if name and first.setdefault(name.lower(), index) != index and times[name.lower()] > most:
            place = (field, index, key) if given else (field, index)
            yield Finding(place, name, fix.format(shown(f"{field}[{first[name.lower()]}]").strip('"')))


def _get(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)


def _string(item: Any, name: str) -> str:
    """A text field, or "" where it is absent, has another type or is too long to be used."""
    value = _get(item, name)
    return value if isinstance(value, str) and len(value) <= MAX_TEXT else ""


def _items(owner: Any, name: str) -> Iterator[tuple[int, Any]]:
    value = _get(owner, name)
    return enumerate(value if isinstance(value, Sequence) and not isinstance(value, str) else ())
