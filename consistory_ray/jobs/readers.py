"""From a file or URL to the plain data of a job, whatever the layout.

Layouts, told apart by the file's ending and content:

* ``.yaml``, ``.yml``, ``.json``: a mapping with ``subjects``, as :class:`~consistory_ray.jobs.job.RenderJob` describes
  it. YAML follows its 1.2 core schema, so ``no`` and ``12:30`` are text.
* ``.json``: the ``run.json`` of an output; the job in it, which needs none of the files that it was given.
* the same endings, ConsiStory+: a mapping of category to a list of ``{subject, concept_token, settings, style}``; the
  first two settings are the anchors. ``name``, ``model`` and a mapping of ``settings`` may stand beside the categories.
* ``.csv``, ``.tsv``, ``.parquet``: a table of prompts, see :mod:`consistory_ray.jobs.tables`; a folder
  ``prompts.parquet/`` of part files is one table.

A further ending ``.gz`` is unpacked. ``-`` is standard input in any of the layouts.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from consistory_ray.errors import InputError, JobError, Problem
from consistory_ray.guards.places import Place, place_of
from consistory_ray.guards.problems import MAX_PROBLEMS, Loc, did_you_mean, path, shown
from consistory_ray.jobs.sources import TooLargeError, read_all, read_standard_input, reading_problem
from consistory_ray.jobs.yaml_events import MAX_DEPTH, MAX_KEYS, read_yaml

STANDARD_INPUT = "-"
MAX_BYTES = {
    ".yaml": 64 << 20,
    ".yml": 64 << 20,
    ".json": 48 << 20,
    ".csv": 192 << 20,
    ".tsv": 192 << 20,
    ".parquet": 128 << 20,
}
TABLES = (".csv", ".tsv", ".parquet")
_MAX_PARTS = 10_000
_LOOKED_AT = 4096
_JOB_KEYS = frozenset({"name", "model", "settings", "subjects", "on_missing_concept", "dynamic_prompts", "wildcards"})
_RECORD_KEYS = frozenset({"job", "state", "totals", "versions"})
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
    name, suffix, gzipped = _kind(source)
    if suffix not in MAX_BYTES:
        kinds = ", ".join(MAX_BYTES)
        raise _unusable(source, shown(suffix or "no ending"), f"give a file ending in {kinds} (or one of them and .gz)")
    if suffix == ".parquet" and (parts := _spark_parts(source)):
        from consistory_ray.jobs.tables import read_parquet

        contents = (_content(part, MAX_BYTES[suffix], False) for part in parts)
        data, problems, rows = read_parquet(contents)
        return Document(name, data, tuple(problems), rows)
    content = _content(source, MAX_BYTES[suffix], gzipped)
    if source == STANDARD_INPUT:
        suffix = _guessed(content)
    if suffix in TABLES:
        from consistory_ray.jobs.tables import read_csv, read_parquet

        if suffix == ".parquet":
            data, problems, rows = read_parquet([content])
        else:
            data, problems, rows = read_csv(_decoded(source, content), "\t" if suffix == ".tsv" else None)
        return Document(name, data, tuple(problems), rows)
    data, problems = (
        _read_json(_decoded(source, content)) if suffix == ".json" else read_yaml(_decoded(source, content))
    )
    if isinstance(data, Mapping) and data.keys() >= _RECORD_KEYS and isinstance(data["job"], Mapping):
        return Document(name, data["job"], tuple(problems))
    if isinstance(data, Mapping) and _is_consistory_plus(data):
        return _consistory_plus(name, data, problems)
    if data is None and not problems:
        problems = [Problem("the file", "nothing", "write a mapping with name and subjects")]
    return Document(name, data, tuple(problems))


def _kind(source: str) -> tuple[str, str, bool]:
    """The name that messages and the job's default name come from, the ending, and whether it is packed by gzip."""
    if source == STANDARD_INPUT:
        return "standard input", ".csv", False
    path = PurePosixPath(source.split("?", 1)[0] if "://" in source else source)
    gzipped = path.suffix.lower() == ".gz"
    path = path.with_suffix("") if gzipped and path.stem else path
    return str(path) if gzipped else source, path.suffix.lower(), gzipped


def _guessed(content: bytes) -> str:
    """The layout of what came without a name, by how it begins."""
    if content.startswith(b"PAR1"):
        return ".parquet"
    text = content[:_LOOKED_AT].lstrip(codecs.BOM_UTF8).lstrip()
    if text.startswith((b"{", b"[")):
        return ".json"
    first = text.partition(b"\n")[0]
    return ".yaml" if not first or first.startswith((b"#", b"-", b"%")) or b":" in first else ".csv"


def _spark_parts(source: str) -> list[str]:
    """The part files of a folder of Parquet files as Spark and Dask write it; none if this is no local folder."""
    try:
        place = place_of(source, "the file")
    except InputError:
        return []
    if not place.is_local or not os.path.isdir(place.path):
        return []
    with os.scandir(place.path) as entries:
        names = sorted(entry.name for entry in islice(entries, _MAX_PARTS + 1))
    parts = [f"{place.path}/{name}" for name in names if name.endswith(".parquet") and name[0] not in "._"]
    if len(names) > _MAX_PARTS:
        raise _unusable(source, f"more than {_MAX_PARTS} files", "write the table into fewer files")
    if not parts:
        raise _unusable(source, "a folder without .parquet files", "give a file, or a folder of part files")
    return parts


def _content(source: str, limit: int, gzipped: bool) -> bytes:
    place = Place("chain", source)
    try:
        if source == STANDARD_INPUT:
            return read_standard_input(limit)
        place = place_of(source, "the file")
        return read_all(place, limit, gzipped=gzipped)
    except InputError as error:
        raise JobError(f"{shown(source)} cannot be read", error.problems) from None
    except TooLargeError:
        fix = "split the job, or use a Parquet table for many prompts"
        raise _unusable(source, f"more than {limit >> 20} MiB", fix) from None
    except Exception as error:  # every kind of storage has errors of its own
        value, fix = reading_problem(error, place) or (
            f"{type(error).__name__}: {error}"[:200],
            "check the path and your rights to it",
        )
        raise _unusable(source, value, fix) from error


def _decoded(source: str, content: bytes) -> str:
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8-sig" else "UTF-16"
        raise _unusable(source, f"a byte that is not {name} at {error.start}", "save the file as UTF-8") from None


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
