"""``run.json``: what was asked for, with what, and how far it came. Replaced whole on every update."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from typing import Any, Literal, get_args

from consistory_ray.errors import StorageError
from consistory_ray.output.storage import MissingFileError, OutputStore, as_store

RUN_RECORD = "run.json"
RECORD_VERSION = 1
State = Literal["running", "complete", "failed", "interrupted"]
_PACKAGES = ("consistory-ray", "torch", "diffusers", "transformers", "ray", "pyarrow", "pillow")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a picture's pixels, without importing them."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class RunRecord:
    """One run of a job into an output.

    Attributes:
        name: the job's name.
        model, model_fingerprint: which model; the fingerprint is None until a worker has loaded it.
        job: the job as given, JSON-ready.
        state: ``running`` (or killed), ``complete``, ``failed`` (over, with failed assets), ``interrupted``.
        totals: counts such as assets, done, rendered, failed, recovered; and seconds.
        versions: packages, see :func:`installed_versions`.
        started_at, updated_at, finished_at: UTC, ISO 8601; finished_at is None while running.
        error: why the run stopped early, if it did; while it is running, why it waits for its output.
    """

    name: str
    model: str
    job: Mapping[str, Any]
    state: State = "running"
    totals: Mapping[str, float] = field(default_factory=dict)
    model_fingerprint: str | None = None
    versions: Mapping[str, str] = field(default_factory=installed_versions)
    started_at: str = field(default_factory=_now)
    updated_at: str = field(default_factory=_now)
    finished_at: str | None = None
    error: str | None = None
    version: int = RECORD_VERSION

    def __post_init__(self) -> None:
        if self.state not in get_args(State):
            raise ValueError(f"state must be one of {', '.join(get_args(State))}, got {self.state!r}")

    def update(self, **changes: Any) -> RunRecord:
        """A copy with some fields changed and the times set."""
        now = _now()
        changes.setdefault("updated_at", now)
        if changes.get("state", self.state) != "running":
            changes.setdefault("finished_at", now)
        return dataclasses.replace(self, **changes)


def write_run_record(output: str | os.PathLike[str] | OutputStore, record: RunRecord) -> None:
    """Write ``run.json`` atomically.

    Raises:
        StorageError: the storage failed.
        TypeError: the job or the totals are not JSON-ready.
    """
    text = json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=True)
    as_store(output).write_atomic(RUN_RECORD, (text + "\n").encode())


def read_run_record(output: str | os.PathLike[str] | OutputStore) -> RunRecord | None:
    """The output's run record, or None when nothing ran there yet. Fields of newer versions are left out.

    Raises:
        StorageError: the storage failed, or the file is no run record.
    """
    store = as_store(output)
    try:
        text = store.read(RUN_RECORD)
    except MissingFileError:
        return None
    known = {item.name for item in dataclasses.fields(RunRecord)}
    try:
        values = json.loads(text)
        return RunRecord(**{key: value for key, value in values.items() if key in known})
    except (ValueError, TypeError, AttributeError) as error:
        message = f"{store.url}/{RUN_RECORD} is not a run record, move it away and run again: {error}"
        raise StorageError(message) from error
