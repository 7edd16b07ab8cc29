"""What must hold between the fields that say what is loaded: names differ, and each fits the kind of model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from consistory_ray.guards.problems import shown
from consistory_ray.jobs.adapter_names import called_by, is_bundled_name
from consistory_ray.jobs.checks import Finding
from consistory_ray.jobs.fields import entries, field, text_field
from consistory_ray.jobs.model_names import is_hub_id
from consistory_ray.settings import BUNDLED_MODEL


def loading_findings(job: Any) -> Iterator[Finding]:
    """Problems of what is loaded with a model, of models and plain dicts alike."""
    yield from _called_alike(job, "loras", "name", "give it a name of its own: {} is called so")
    yield from _called_alike(job, "embeddings", "token", "give it a token of its own: {} has this one", 2)
    model = text_field(job, "model") or BUNDLED_MODEL
    for index, entry in entries(job, "loras") if model != BUNDLED_MODEL else ():
        address = entry if isinstance(entry, str) else text_field(entry, "path")
        if is_bundled_name(address):
            fix = f"leave it out, or set model: {BUNDLED_MODEL}: it was made for the bundled model"
            yield Finding(("loras", index, "path"), address, fix)
    here = model == BUNDLED_MODEL or not is_hub_id(model) or os.path.isdir(model)
    if (revision := text_field(job, "revision")) and here:
        fix = "leave it out: only a model from the Hugging Face hub has revisions"
        yield Finding(("revision",), revision, fix)
    is_file = model == BUNDLED_MODEL or model.lower().endswith(".safetensors")
    if (variant := text_field(job, "variant")) and is_file:
        fix = "leave it out: only a folder or a model from the Hugging Face hub has variants of its files"
        yield Finding(("variant",), variant, fix)


def _called_alike(job: Any, kind: str, key: str, fix: str, most: int = 1) -> Iterator[Finding]:
    """Names that stand more often than they may: a token may have a file for each of the two text encoders."""
    first: dict[str, int] = {}
    times = Counter[str]()
    for index, entry in entries(job, kind):
        address = entry if isinstance(entry, str) else text_field(entry, "path")
        given = field(entry, key)
        name = given if isinstance(given, str) else called_by(address) if address else ""
        times[name.lower()] += 1
        if name and first.setdefault(name.lower(), index) != index and times[name.lower()] > most:
            place = (kind, index, key) if given else (kind, index)
            yield Finding(place, name, fix.format(shown(f"{kind}[{first[name.lower()]}]").strip('"')))
