"""Where a job's LoRAs, embeddings and VAE lie: relative paths begin at the job file, and contents are read once.

Pure: neither torch nor ray.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from consistory_ray.adapters import file_digest
from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.problems import path
from consistory_ray.jobs.adapter_names import adapter_name, is_bundled_name, is_hub_file
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.jobs.input_files import InputFiles
from consistory_ray.jobs.model_names import is_hub_id

_FIELDS = ("loras", "embeddings")
_MOST = 100


def look_up_adapters(data: Any, files: InputFiles) -> tuple[Any, list[Problem]]:
    """A job's plain data with every LoRA's and embedding's address made absolute, and the SHA-256 of what is there.

    What is not there is told by :func:`consistory_ray.plan.adapter_checks.check_adapters`, so that a run's own record
    can be read where its files are gone.

    Args:
        data: as a job file holds it; what has another shape is left for pydantic to refuse.
        files: of the job, which relative addresses go by.
    """
    if not isinstance(data, Mapping):
        return data, []
    changes: dict[str, Any] = {}
    problems: list[Problem] = []
    for name in _FIELDS:
        given = data.get(name)
        entries = [given] if isinstance(given, (str, Mapping)) else given
        if isinstance(entries, (list, tuple)) and len(entries) <= _MOST:
            changes[name] = [_entry((name, index), one, files, problems) for index, one in enumerate(entries)]
    if isinstance(data.get("vae"), str):
        changes["vae"] = _placed(data["vae"], files)
    return ({**data, **changes} if changes else data), problems


def _entry(loc: tuple[str, int], entry: Any, files: InputFiles, problems: list[Problem]) -> Any:
    known = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(known, Mapping) or not isinstance(known.get("path"), str):
        return entry
    place = _placed(known["path"], files)
    found = {**known, "path": place}
    if known.get("sha256") is not None or adapter_name(place)[1]:
        return found
    field = path((*loc, "path"))
    try:
        check_adapter_allowed(place, field)
        digest = file_digest(place)
    except InputError as error:
        problems.extend(Problem(field, problem.value, problem.fix) for problem in error.problems)
        return found
    return found if digest is None else {**found, "sha256": digest}


def check_adapter_allowed(place: str, field: str) -> None:
    """Refuse a LoRA, embedding or VAE that lies in a place that is not allowed.

    Raises:
        InputError: see :func:`consistory_ray.jobs.allowlist.check_allowed`.
    """
    if is_bundled_name(place):
        return
    on_hub = (is_hub_id(place) or is_hub_file(place)) and not os.path.exists(place)
    check_allowed(field, f"hf://{place}" if on_hub else place)


def _placed(address: str, files: InputFiles) -> str:
    """An address as it is opened: of what lies beside the job file the whole path, of all else as it is written."""
    written = address.strip()
    beside = files.beside(written)
    if beside == written or is_bundled_name(written):
        return written
    named = is_hub_id(written) or is_hub_file(written)
    if "://" in beside:
        return written if named else beside
    return os.path.abspath(beside) if os.path.exists(beside) or not named else written
