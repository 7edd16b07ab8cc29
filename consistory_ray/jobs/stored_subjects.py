"""Subjects that an earlier run has made and a later job takes up again: the same individual in new scenes.

Beside a subject's anchor cache lies ``subject.json``, which says in words what the cache holds. A job names the folder,
``from: s3://bucket/run/anchors/moss-dragon``, and gets concept, texts, anchors and settings from there; what decides
its pictures is the cache's content, by its SHA-256, wherever it lies. Pure: neither torch nor ray.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, Protocol

from consistory_ray.errors import InputError, JobError, Problem
from consistory_ray.guards.outside import parse_json
from consistory_ray.guards.places import place_of
from consistory_ray.guards.redaction import redacted
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.jobs.joined_subjects import MOST_JOINED, differences, joined_words
from consistory_ray.jobs.sources import reading_problem
from consistory_ray.settings import MethodSettings

SUBJECT_FILE = "subject.json"
LIBRARY_VARIABLE = "CONSISTORY_SUBJECTS"
"""Environment variable with the folder or URL in which ``from: name`` is looked up."""
FORMAT = 1

_MAX_BYTES = 1 << 20
_FILE_NAME = re.compile(r"[0-9a-f]{8,64}\.safetensors")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIVEN_BY_STORE = ("concept", "anchors", "pictures")


class Pictured(Protocol):
    """A picture that was given; :class:`~consistory_ray.plan.inputs.PlannedPicture` is one."""

    @property
    def identity(self) -> Sequence[Any]: ...


class Loading(Protocol):
    """What is loaded with a model; :class:`~consistory_ray.plan.loaded.Loaded` is one."""

    def told(self) -> dict[str, Any]: ...


class Worded(Protocol):
    """What a picture is told besides its prompt; :class:`~consistory_ray.plan.plan.Words` is one."""

    def to_dict(self) -> dict[str, str]: ...


class Described(Protocol):
    """What is told about a subject; :class:`~consistory_ray.plan.plan.SubjectPlan` has it."""

    @property
    def subject_id(self) -> str: ...
    @property
    def concepts(self) -> Sequence[str]: ...
    @property
    def style(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def anchor_prompts(self) -> Sequence[tuple[str, int]]: ...
    @property
    def anchor_words(self) -> Sequence[Worded]: ...
    @property
    def cache_settings(self) -> MethodSettings: ...
    @property
    def details(self) -> str: ...
    @property
    def pictures(self) -> Sequence[Pictured]: ...
    @property
    def cache_path(self) -> str: ...
    @property
    def loaded(self) -> Loading: ...


def subject_file(cache_path: str) -> str:
    """Where the words about the cache at ``cache_path`` lie."""
    return f"{cache_path.rpartition('/')[0]}/{SUBJECT_FILE}"


def describe_subject(subject: Described, model: str, fingerprint: str, sha256: str, nbytes: int) -> bytes:
    """The content of ``subject.json``.

    Args:
        subject: whose cache it is.
        model, fingerprint: which model made it.
        sha256, nbytes: of the cache file.
    """
    record = {
        "format": FORMAT,
        "subject_id": subject.subject_id,
        "concept": list(subject.concepts),
        "style": subject.style,
        "subject": subject.text,
        "anchors": [
            {"prompt": prompt, "seed": seed, **(words.to_dict() if words else {})}
            for (prompt, seed), words in zip_longest(subject.anchor_prompts, subject.anchor_words)
        ],
        "settings": subject.cache_settings.to_dict(),
        **({"details": subject.details} if subject.details else {}),
        **({"pictures": [_told(picture) for picture in subject.pictures]} if subject.pictures else {}),
        "model": redacted(model),
        "model_fingerprint": fingerprint,
        **({"loaded": told} if (told := subject.loaded.told()) else {}),
        "cache": {"file": subject.cache_path.rpartition("/")[2], "sha256": sha256, "bytes": nbytes},
    }
    return _written(record)


def _written(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def _told(picture: Pictured) -> dict[str, Any]:
    return dict(zip(("sha256", "mask_sha256", "fit"), picture.identity, strict=True))


def resolve_stored(source: str, data: Any) -> Any:
    """A job's plain data with every ``from: URL``, and every list of them, replaced by what is stored there.

    Args:
        source: of the job, for messages.
        data: as a job file holds it; whatever is no such mapping is returned as it is.

    Raises:
        JobError: a stored subject cannot be read or used, or is given what it brings itself.
    """
    subjects = data.get("subjects") if isinstance(data, Mapping) else None
    if not isinstance(subjects, (list, tuple)):
        return data
    problems: list[Problem] = []
    resolved = [_resolve(f"subjects[{index}]", subject, problems) for index, subject in enumerate(subjects)]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise JobError(f"{source} cannot be rendered: {count}", problems)
    return {**data, "subjects": resolved}


def _resolve(where: str, subject: Any, problems: list[Problem]) -> Any:
    if not isinstance(subject, Mapping) or not (addresses := _addresses(subject.get("from"))):
        return subject
    given = [name for name in _GIVEN_BY_STORE if name in subject]
    if given:
        fix = "leave it out, the stored subject brings its own"
        problems.extend(Problem(f"{where}.{name}", "", fix) for name in given)
        return subject
    found = []
    for index, address in enumerate(addresses):
        place = f"{where}.from" if isinstance(subject["from"], str) else f"{where}.from[{index}]"
        try:
            found.append(read_stored(place, address))
        except InputError as error:
            problems.extend(error.problems or [Problem(place, ascii(address)[:200], error.message)])
    if len(found) < len(addresses):
        return subject
    stored = [_stored(folder, record) for folder, record in found]
    if len(found) == 1:
        return {**_words(found[0][1]), **subject, "from": stored[0]}
    records = [record for _, record in found]
    unfit = differences(where, subject, records)
    problems.extend(unfit)
    return subject if unfit else {**joined_words(records), **subject, "from": stored}


def _addresses(given: Any) -> list[str]:
    """Those that ``from`` names; none where it was resolved before, or is wrong in a way that others tell."""
    named = [given] if isinstance(given, str) else given
    if not isinstance(named, (list, tuple)) or len(named) > MOST_JOINED:
        return []
    return list(named) if all(isinstance(address, str) for address in named) else []


def packed_words(record: Mapping[str, Any], settings: MethodSettings, file: str, sha256: str, nbytes: int) -> bytes:
    """The content of ``subject.json`` where a subject's cache was packed in another way.

    Args:
        record: what it said before.
        settings: of the new cache.
        file, sha256, nbytes: of the new cache's file.
    """
    cache = {"file": file, "sha256": sha256, "bytes": nbytes}
    return _written({**record, "settings": settings.to_dict(), "cache": cache})


def read_stored(where: str, address: str) -> tuple[str, Mapping[str, Any]]:
    """The folder of a stored subject, and its record.

    Args:
        where: what the address was given as, for messages.
        address: as ``from:`` takes it.

    Raises:
        InputError: there is none, or it cannot be used.
    """
    folder = stored_folder(address)
    check_allowed(where, folder)
    shown = ascii(address)[:200]
    place = place_of(folder, where)
    try:
        with place.below(SUBJECT_FILE).open(follow=False) as stream:
            content: bytes = stream.read(_MAX_BYTES + 1)
        record: Any = parse_json(content)
    except FileNotFoundError:
        fix = f"give a folder of an earlier run such as out/run/anchors/my-subject, with {SUBJECT_FILE} in it"
        fix += "; a large run keeps it only with --keep-anchors all"
        raise InputError("no stored subject", [Problem(where, shown, fix)]) from None
    except json.JSONDecodeError as error:
        raise InputError("damaged", [Problem(where, shown, f"{SUBJECT_FILE} there is no JSON: {error}")]) from error
    except RecursionError:
        raise InputError("damaged", [Problem(where, shown, f"{SUBJECT_FILE} there is nested too deeply")]) from None
    except Exception as error:  # every kind of storage has errors of its own
        if told := reading_problem(error, place):
            value, fix = told
            raise InputError("unreadable", [Problem(where, shown, f"{fix} ({value})")]) from error
        fix = f"check the address and your rights to it ({type(error).__name__}: {str(error)[:200]})"
        raise InputError("unreadable", [Problem(where, shown, fix)]) from error
    problem = _record_problem(record)
    if problem:
        raise InputError("unusable", [Problem(where, shown, f"{SUBJECT_FILE} there cannot be used: {problem}")])
    found: Mapping[str, Any] = record
    return folder, found


def stored_folder(address: str) -> str:
    """The folder that the address of a stored subject, or of a file of it, means."""
    address = address.strip().rstrip("/")
    if address.endswith((".safetensors", ".json")):
        address = address.rpartition("/")[0] or "."
    library = os.environ.get(LIBRARY_VARIABLE, "").strip().rstrip("/")
    if library and "/" not in address and not os.path.isdir(address):
        return f"{library}/{address}"
    return address


def _record_problem(record: Any) -> str:
    if not isinstance(record, Mapping) or record.get("format") != FORMAT:
        return f"it is not of format {FORMAT}"
    cache = record.get("cache")
    if not isinstance(cache, Mapping):
        return "it names no cache"
    if not _FILE_NAME.fullmatch(str(cache.get("file"))) or not _SHA256.fullmatch(str(cache.get("sha256"))):
        return "its cache has no proper name or checksum"
    if not isinstance(cache.get("bytes"), int) or isinstance(cache["bytes"], bool) or cache["bytes"] < 0:
        return "its cache has no size"
    return "" if isinstance(record.get("settings"), Mapping) else "it has no settings"


def _stored(folder: str, record: Mapping[str, Any]) -> dict[str, Any]:
    cache, loaded = record["cache"], record.get("loaded")
    return {
        **({"loaded": dict(loaded)} if isinstance(loaded, Mapping) else {}),
        "url": f"{folder}/{cache['file']}",
        "sha256": cache["sha256"],
        "bytes": cache["bytes"],
        "settings": record["settings"],
    }


def _words(record: Mapping[str, Any]) -> dict[str, Any]:
    anchors = record.get("anchors")
    if isinstance(record.get("pictures"), list) and isinstance(anchors, list):  # these need no words of their own
        alone = record.get("subject") or "alone"
        anchors = [
            {**one, "prompt": one.get("prompt") or alone} if isinstance(one, Mapping) else one for one in anchors
        ]
    texts = {key: record[key] for key in ("style", "subject", "details") if record.get(key)}
    identity = {"id": record.get("subject_id"), "concept": record.get("concept"), "anchors": anchors}
    return texts | identity
