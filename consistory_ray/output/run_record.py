"""``run.json``: what was asked for, with what, and how far it came. Replaced whole on every update."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from consistory_ray.guards.outside import Limits, parse_json
from consistory_ray.guards.redaction import redacted
from consistory_ray.output.storage import MissingFileError, OutputStore, UnfitFileError, as_store

RUN_RECORD = "run.json"
RECORD_VERSION = 1
_log = logging.getLogger(__name__)
State = Literal["running", "complete", "failed", "interrupted"]
_LIMITS = Limits(bytes=1 << 30, values=16_000_000, depth=32)
SAME_AGAIN = (1, 2, 76)
"""Exit codes of runs that a scheduler is not to repeat: they would end the same way, or cost as much again."""
_PACKAGES = ("consistory-ray", "torch", "diffusers", "transformers", "ray", "pyarrow", "pillow")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a picture's pixels, without importing them."""
    return dict(_installed_versions())


@cache
def _installed_versions() -> dict[str, str]:
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
        submission: what a scheduler calls this run and its own repetitions of it; None for a run of a person.
        exit_code: of a run that would end the same way again, 1 or 2, or was stopped by its ``max_cost``, 76; None for
            all others.
        forecast: what was expected at its start, see :class:`~consistory_ray.engine.events.RunSummary`.
        currency: of money in the forecast and in ``totals``, which have ``device_hours`` and ``cost``.
        controlnets: fingerprints of the ControlNets that lead pictures, by what the job calls them, once a worker has
            loaded them.
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
    submission: str | None = None
    exit_code: int | None = None
    controlnets: Mapping[str, str] = field(default_factory=dict)
    forecast: Mapping[str, float] = field(default_factory=dict)
    currency: str = ""
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


def _time(text: str) -> str:
    when = datetime.fromisoformat(text)
    if when.tzinfo is None or not 1970 <= when.year < 9999:
        raise ValueError("it has no time zone or no year that could be right")
    return text


_Time = Annotated[str, AfterValidator(_time)]
_Text = Annotated[str, Field(max_length=100_000)]


class _Stored(BaseModel):
    """The fields of a run record as a file has to hold them."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    name: _Text
    model: _Text
    job: dict[str, Any]
    state: State = "running"
    totals: dict[str, float] = {}
    model_fingerprint: _Text | None = None
    versions: dict[str, _Text] = {}
    started_at: _Time
    updated_at: _Time
    finished_at: _Time | None = None
    error: _Text | None = None
    submission: _Text | None = None
    exit_code: int | None = None
    controlnets: dict[str, _Text] = {}
    forecast: dict[str, float] = {}
    currency: Annotated[str, Field(max_length=12)] = ""
    version: int = RECORD_VERSION


@dataclass(frozen=True)
class SeenRecord:
    """What was found in the run record's place.

    Attributes:
        record: what it says; None where there is none or it cannot be understood.
        problem: why it cannot be understood; empty where it can, and where there is none.
    """

    record: RunRecord | None = None
    problem: str = ""


def write_run_record(output: str | os.PathLike[str] | OutputStore, record: RunRecord) -> None:
    """Write ``run.json`` atomically.

    Raises:
        StorageError: the storage failed.
        TypeError: the job or the totals are not JSON-ready.
    """
    values = {item.name: getattr(record, item.name) for item in dataclasses.fields(record)}
    values |= {"model": redacted(record.model), "job": _without_secrets(record.job)}
    values["controlnets"] = {redacted(name): fingerprint for name, fingerprint in record.controlnets.items()}
    values["error"] = None if record.error is None else redacted(record.error)
    text = json.dumps(values, indent=2, ensure_ascii=True)
    as_store(output).write_atomic(RUN_RECORD, (text + "\n").encode())


def look_for_record(output: str | os.PathLike[str] | OutputStore) -> SeenRecord:
    """The output's run record, and what is wrong with it. Fields of newer versions are left out.

    Raises:
        StorageError: the storage failed.
    """
    store = as_store(output)
    try:
        values = parse_json(store.read(RUN_RECORD), _LIMITS)
        return SeenRecord(RunRecord(**dict(_Stored.model_validate(values))))
    except MissingFileError:
        return SeenRecord()
    except UnfitFileError as error:
        return SeenRecord(None, str(error.__cause__.strerror if isinstance(error.__cause__, OSError) else error))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return SeenRecord(None, f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"[:300])
    except ValueError as error:
        return SeenRecord(None, str(error)[:300])


def read_run_record(output: str | os.PathLike[str] | OutputStore) -> RunRecord | None:
    """The output's run record; None when nothing ran there yet, or when it is damaged, which is logged.

    Raises:
        StorageError: the storage failed.
    """
    store = as_store(output)
    seen = look_for_record(store)
    if seen.problem:
        _log.warning("%s/%s is damaged and is not taken into account: %s", store.url, RUN_RECORD, seen.problem)
    return seen.record


def ended_the_same(record: RunRecord, there: RunRecord | None) -> int | None:
    """The exit code of an earlier try of the same submission, if this one would only end in the same way.

    Args:
        record: of the run that is about to begin.
        there: what the output has.

    Returns:
        One of :data:`SAME_AGAIN`; None where it has to be tried: nobody calls it a repetition, or job or packages have
        changed.
    """
    if record.submission is None or there is None or there.submission != record.submission:
        return None
    job = json.loads(json.dumps(_without_secrets(record.job)))
    same = (there.job, there.versions) == (job, record.versions)
    return there.exit_code if same and there.exit_code in SAME_AGAIN else None


def _without_secrets(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job as given, with no passwords and signatures in the addresses that it names; its words stay as they are."""
    told = dict(job)
    if isinstance(told.get("model"), str):
        told["model"] = redacted(told["model"])
    if isinstance(told.get("vae"), str):
        told["vae"] = redacted(told["vae"])
    for name in {"loras", "embeddings"} & told.keys():
        told[name] = _adapters_without_secrets(told[name])
    if isinstance(told.get("subjects"), list | tuple):
        told["subjects"] = [_subject_without_secrets(subject) for subject in told["subjects"]]
    return told


def _adapters_without_secrets(given: Any) -> Any:
    """LoRAs and embeddings with their addresses redacted; each may be its address alone."""
    if isinstance(given, list | tuple):
        return [_adapters_without_secrets(one) for one in given]
    if isinstance(given, str):
        return redacted(given)
    return {**given, "path": redacted(given["path"])} if isinstance(given, Mapping) and "path" in given else given


def _subject_without_secrets(subject: Any) -> Any:
    if not isinstance(subject, Mapping):
        return subject
    told = dict(subject)
    if isinstance(subject.get("from"), str):
        told["from"] = redacted(subject["from"])
    for name in {"from", "anchors", "pictures", "scenes", "poses"} & told.keys():
        told[name] = _file_without_secrets(told[name])
    return told


def _file_without_secrets(value: Any) -> Any:
    """What a job says of a stored subject or of hints, with the addresses of files redacted."""
    if isinstance(value, list | tuple):
        return [_file_without_secrets(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if isinstance(value.get("url"), str):
        return {**value, "url": redacted(value["url"])}
    files = {name: _file_without_secrets(value[name]) for name in ("image", "mask", "control") if name in value}
    return {**value, **files} if files else value
