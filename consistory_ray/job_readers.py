"""From a file or URL to the plain data of a job, whatever the layout.

Layouts, told apart by the file's ending and content:

* ``.yaml``, ``.yml``, ``.json``: a mapping with ``subjects``, as :class:`~consistory_ray.job.RenderJob` describes it.
  YAML follows its 1.2 core schema, so ``no`` and ``12:30`` are text.
* the same endings, ConsiStory+: a mapping of category to a list of ``{subject, concept_token, settings, style}``; the
  first two settings are the anchors. ``name``, ``model`` and a mapping of ``settings`` may stand beside the categories.
* ``.csv``, ``.parquet``: a table of prompts, see :mod:`consistory_ray.job_tables`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from consistory_ray.errors import JobError, Problem
from consistory_ray.job_problems import MAX_PROBLEMS, Loc, did_you_mean, path, shown
from consistory_ray.job_yaml import MAX_DEPTH, MAX_KEYS, read_yaml

MAX_BYTES = {".yaml": 64 << 20, ".yml": 64 << 20, ".json": 48 << 20, ".csv": 512 << 20, ".parquet": 512 << 20}
_JOB_KEYS = frozenset({"name", "model", "settings", "subjects", "on_missing_concept"})
_PLUS_KEYS = ("subject", "concept_token", "settings", "style", "id", "on_missing_concept")
_PLUS_ANCHORS = 2


@dataclass(frozen=True)
class Document:
    """The plain data of a job file, and where in the file each part of it stands."""

    source: str
    data: Any
    problems: tuple[Problem, ...] = ()
    locate: Callable[[Loc], str] = field(default=path)


def read_document(source: str) -> Document:
    """Reads a file or fsspec URL in any of the layouts.

    Raises:
        JobError: it cannot be read, is too large or of no known kind, or is not well-formed.
    """
    suffix = PurePosixPath(source.split("?", 1)[0]).suffix.lower()
    if suffix not in MAX_BYTES:
        raise _unusable(source, shown(suffix or "no ending"), f"give a file ending in {', '.join(MAX_BYTES)}")
    content = _content(source, MAX_BYTES[suffix])
    if suffix in (".csv", ".parquet"):
        from consistory_ray.job_tables import read_csv, read_parquet

        data, problems, rows = read_csv(_decoded(source, content)) if suffix == ".csv" else read_parquet(content)
        return Document(source, data, tuple(problems), rows)
    data, problems = (
        _read_json(_decoded(source, content)) if suffix == ".json" else read_yaml(_decoded(source, content))
    )
    if isinstance(data, Mapping) and _is_consistory_plus(data):
        return _consistory_plus(source, data, problems)
    if data is None and not problems:
        problems = [Problem("the file", "nothing", "write a mapping with name and subjects")]
    return Document(source, data, tuple(problems))


def _content(source: str, limit: int) -> bytes:
    import fsspec

    try:
        with fsspec.open(source, "rb") as stream:
            content: bytes = stream.read(limit + 1)
    except FileNotFoundError:
        raise _unusable(source, "no such file", "check the path") from None
    except ImportError as error:
        raise _unusable(source, str(error), "install the package that reads this kind of URL") from error
    except Exception as error:  # every kind of storage has errors of its own
        value = f"{type(error).__name__}: {error}"[:200]
        raise _unusable(source, value, "check the path and your rights to it") from error
    if len(content) > limit:
        raise _unusable(
            source, f"more than {limit >> 20} MiB", "split the job, or use a Parquet table for many prompts"
        )
    return content


def _decoded(source: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unusable(source, f"a byte that is not UTF-8 at {error.start}", "save the file as UTF-8") from None


def _unusable(source: str, value: str, fix: str) -> JobError:
    return JobError(f"{shown(source)} cannot be read", [Problem("the file", value, fix)])


class _TooManyKeys(Exception):
    """Reading stops here."""


def _read_json(text: str) -> tuple[Any, list[Problem]]:
    problems: list[Problem] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(items) > MAX_KEYS:
            raise _TooManyKeys
        seen = dict(items)
        if len(seen) < len(items) and len(problems) < MAX_PROBLEMS:
            names = [name for name, _ in items]
            twice = sorted({name for name in names if names.count(name) > 1})
            problems.extend(
                Problem(path((name,)), "", "this key occurs twice in one mapping, keep one") for name in twice
            )
        return seen

    try:
        return json.loads(text, object_pairs_hook=pairs), problems
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        return None, [Problem(where, "", f"the JSON is broken here: {error.msg}")]
    except _TooManyKeys:
        return None, [Problem("the file", f"more than {MAX_KEYS} keys", "a mapping of a job has a few keys")]
    except RecursionError:
        return None, [Problem("the file", "", f"nest mappings and lists at most {MAX_DEPTH} deep")]
    except ValueError:
        return None, [Problem("the file", "a number with thousands of digits", "write a smaller number")]


def _is_consistory_plus(data: Mapping[str, Any]) -> bool:
    """Only lists beside the job's own keys, and in them mappings with a concept_token."""
    if not data or "subjects" in data:
        return False
    lists = [value for key, value in data.items() if key not in _JOB_KEYS or isinstance(value, list)]
    return (
        bool(lists)
        and all(isinstance(value, list) for value in lists)
        and any(isinstance(item, Mapping) and "concept_token" in item for value in lists for item in value)
    )


def _consistory_plus(source: str, data: Mapping[str, Any], problems: list[Problem]) -> Document:
    """The shared benchmark layout as the data of a job; problems keep naming the author's own keys."""
    job = {key: value for key, value in data.items() if key in _JOB_KEYS and not isinstance(value, list)}
    subjects: list[Any] = []
    places: list[Loc] = []
    for category, items in data.items():
        if category in job:
            continue
        for index, item in enumerate(items):
            places.append((category, index))
            subjects.append(_plus_subject(item, (category, index), problems))

    def locate(loc: Loc) -> str:
        if len(loc) < 2 or loc[0] != "subjects" or not isinstance(loc[1], int):
            return path(loc)
        inner = list(loc[2:])
        if inner and inner[0] == "concept":
            inner[0] = "concept_token"
        elif inner and inner[0] in ("anchors", "scenes"):
            shift = 0 if inner[0] == "anchors" else _PLUS_ANCHORS
            inner = ["settings", *(part + shift if isinstance(part, int) else part for part in inner[1:2])]
        return path((*places[loc[1]], *inner))

    return Document(source, {**job, "subjects": subjects}, tuple(problems), locate)


def _plus_subject(item: Any, place: Loc, problems: list[Problem]) -> Any:
    if not isinstance(item, Mapping):
        return item
    for key in item:
        if key not in _PLUS_KEYS:
            fix = f"remove this key{did_you_mean(key, _PLUS_KEYS) or ', known are ' + ', '.join(_PLUS_KEYS)}"
            problems.append(Problem(path((*place, key)), shown(item[key]), fix))
    settings = item.get("settings")
    if not isinstance(settings, list) or len(settings) <= _PLUS_ANCHORS:
        fix = f"write a list of at least {_PLUS_ANCHORS + 1} scenes, the first {_PLUS_ANCHORS} are the anchors"
        problems.append(Problem(path((*place, "settings")), shown(settings), fix))
        settings = None
    subject = {key: item[key] for key in ("subject", "style", "on_missing_concept") if key in item}
    if isinstance(item.get("id"), str):
        subject["id"] = item["id"]
    if "concept_token" in item:
        subject["concept"] = item["concept_token"]
    if settings is not None:
        subject |= {"anchors": settings[:_PLUS_ANCHORS], "scenes": settings[_PLUS_ANCHORS:]}
    return subject
