"""Stored subjects of different runs that meet in the same pictures: do they fit, and in what words. Pure.

``from: [out/a/anchors/moss-dragon, out/b/anchors/tin-robot]`` is one subject with the concepts and the anchors of both,
in this order. What must be the same is told here as far as ``subject.json`` says it, before any model is loaded; the
rest when the caches are joined (:mod:`consistory_ray.consistory.cache.joining`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from consistory_ray.errors import Problem
from consistory_ray.guards.problems import shown
from consistory_ray.jobs.checks import join_prompt, scene_head
from consistory_ray.jobs.ids import MAX_ID
from consistory_ray.settings import MethodSettings

MOST_JOINED = 8
"""Subjects that may meet in one picture."""

_Record = Mapping[str, Any]


def differences(where: str, subject: Mapping[str, Any], records: Sequence[_Record]) -> list[Problem]:
    """What keeps stored subjects from meeting.

    Args:
        where: the subject's place in the job.
        subject: as the job has it.
        records: what ``subject.json`` says of each.
    """
    problems: list[Problem] = []
    for index, record in enumerate(records[1:], 1):
        problems += _differences(f"{where}.from[{index}]", records[0], record)
    styles = list(dict.fromkeys(_text(record, "style") for record in records))
    if "style" not in subject and len(styles) > 1:
        fix = f"give one, the subjects were stored with {' and '.join(map(shown, styles))}"
        problems.append(Problem(f"{where}.style", "", fix))
    return problems + list(_called_alike(where, records))


def _differences(place: str, first: _Record, other: _Record) -> Iterator[Problem]:
    model, others = str(first.get("model_fingerprint")), str(other.get("model_fingerprint"))
    if model != others:
        fix = f"make it again with the model of from[0], {shown(first.get('model'))} of fingerprint {shown(model[:12])}"
        yield Problem(place, f"model: {shown(other.get('model'))} of fingerprint {shown(others[:12])}", fix)
    try:
        mine, theirs = (_settings(record) for record in (first, other))
    except (TypeError, ValueError):
        return  # a setting that cannot be used is told where each one is looked at
    for name in mine:
        unsaid = name in ("height", "width") and None in (mine[name], theirs[name])  # the model's own, maybe the same
        if mine[name] != theirs[name] and not unsaid:
            fix = f"make it again with settings.{name}: {shown(mine[name])}, as from[0] was"
            yield Problem(place, f"settings.{name}: {shown(theirs[name])}", fix)


def _settings(record: _Record) -> dict[str, Any]:
    """All settings, also those that are as in the exact profile."""
    settings = MethodSettings.from_dict(record["settings"])
    values = {name: getattr(settings, name) for name in MethodSettings.__dataclass_fields__}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _called_alike(where: str, records: Sequence[_Record]) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, record in enumerate(records):
        for concept in dict.fromkeys(_concepts(record)):
            other = first.setdefault(concept.lower(), index)
            if other != index:
                own = shown(f"red {concept}")
                fix = f"make it again under a name of its own such as {own}, from[{other}] is called like that too"
                yield Problem(f"{where}.from[{index}]", f"concept: {shown(concept)}", fix)


def joined_words(records: Sequence[_Record]) -> dict[str, Any]:
    """What a job says of subjects that meet, unless it says it itself: id, style, subject, concepts and anchors."""
    texts = [
        scene_head("", _text(record, "subject"), _text(record, "details"), _concepts(record)) for record in records
    ]
    words = {"style": _text(records[0], "style"), "subject": " and ".join(texts) if all(texts) else ""}
    name = "-and-".join(str(record.get("subject_id")) for record in records)
    identity: dict[str, Any] = {"id": name} if len(name) <= MAX_ID else {}
    identity["concept"] = [concept for record in records for concept in _concepts(record)]
    identity["anchors"] = [
        {**anchor, "prompt": _caption(record, anchor)}
        for record in records
        for anchor in record.get("anchors") or ()
        if isinstance(anchor, Mapping)
    ]
    return {key: value for key, value in words.items() if value} | identity


def _named(record: _Record) -> str:
    """A subject in the words of its scenes, without the style."""
    return scene_head("", _text(record, "subject"), _text(record, "details"), _concepts(record))


def _caption(record: _Record, anchor: Mapping[str, Any]) -> str:
    """The whole prompt of an anchor, or what a picture shows."""
    return join_prompt(_text(record, "style"), _text(record, "subject"), _text(anchor, "prompt")) or "alone"


def _text(record: _Record, name: str) -> str:
    return str(record.get(name) or "")


def _concepts(record: _Record) -> list[str]:
    concepts = record.get("concept")
    return [str(concept) for concept in concepts] if isinstance(concepts, list) else []
