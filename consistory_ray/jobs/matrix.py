"""A matrix of scenes: axes such as poses, expressions and places, and a scene for each combination of their values.

    matrix:
      pose: [sitting, running]
      mood: {happy: with a happy face, calm: ""}
      place: [in the forest, on the beach]
      template: "{pose} {place}, {mood}"
      exclude: [{pose: sitting, place: on the beach}]

A scene's id is made of the ids of its values, and its words are theirs: neither depends on what else is in the matrix,
so that a value that is added to an axis, or taken out, makes no other scene another one. Where ids or words of two
scenes would be the same, the matrix is refused, for the one that comes later.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consistory_ray.guards.problems import Loc, did_you_mean, shown
from consistory_ray.jobs.checks import Finding, check_text
from consistory_ray.jobs.fields import MATRIX_WORDS
from consistory_ray.jobs.ids import MAX_ID, id_problem, short_hash, slug

MAX_AXES = 8
MAX_SCENES = 100_000
_AXIS = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_NAMED = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_COMMAS = re.compile(r"\s*,[\s,]*")
_MARK = 9
_AN_AXIS = "write a list of texts such as [sitting, running], or a mapping of ids to texts such as {sit: sitting}"
_EXCLUSIONS = "write a list of combinations such as [{pose: sitting, place: [forest, beach]}]"


@dataclass(frozen=True, slots=True)
class Value:
    """One value of an axis: what scene ids call it, and its words, which may be none."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix that can be used.

    Attributes:
        axes: the values of each, by its name, in the order of the file.
        template: how the words join; None joins them with commas. A value without words takes a comma beside it along.
        excluded: for each exclusion the values that it is about, by axis.
    """

    axes: Mapping[str, tuple[Value, ...]]
    template: str | None
    excluded: tuple[Mapping[str, frozenset[Value]], ...]

    def scenes(self) -> Iterator[tuple[str, str]]:
        """Id and words of each scene, the last axis changing fastest."""
        for values in itertools.product(*self.axes.values()):
            chosen = dict(zip(self.axes, values, strict=True))
            if not any(all(chosen[axis] in some for axis, some in one.items()) for one in self.excluded):
                yield _joined_id(value.id for value in values), self._words(chosen)

    def _words(self, chosen: Mapping[str, Value]) -> str:
        if self.template is None:
            return ", ".join(value.text for value in chosen.values() if value.text)
        text = " ".join(_NAMED.sub(lambda match: chosen[match.group(1)].text, self.template).split())
        if all(value.text for value in chosen.values()):
            return text
        return _COMMAS.sub(", ", text).strip(" ,")  # between which there is nothing any more


def expanded(subject: Any) -> tuple[Any, list[Finding]]:
    """A subject's plain data with its matrix written out as further scenes; what is wrong with the matrix, if anything.

    Args:
        subject: the data of a subject, or anything else, which is returned as it is.
    """
    if not isinstance(subject, Mapping) or subject.get("matrix") is None:
        return subject, []
    matrix, findings = read_matrix(subject["matrix"])
    if matrix is None:
        return subject, findings
    scenes = [{"id": name, "prompt": words} for name, words in matrix.scenes()]
    rest = {key: value for key, value in subject.items() if key != "matrix"}
    given = subject.get("scenes")
    if given is not None and not isinstance(given, (list, tuple)):
        return rest, []  # which has a problem of its own
    return {**rest, "scenes": [*(given or ()), *scenes]}, []


def places_of(subject: Mapping[str, Any]) -> Callable[[Loc], Loc]:
    """From places in a subject whose matrix is :func:`expanded` to places as they were written."""
    given = subject.get("scenes")
    count = len(given) if isinstance(given, (list, tuple)) else 0
    is_listed = given is None or isinstance(given, (list, tuple))

    def place(loc: Loc) -> Loc:
        is_made = is_listed and len(loc) > 1 and loc[0] == "scenes" and isinstance(loc[1], int) and loc[1] >= count
        return ("matrix",) if is_made else loc

    return place


def locating(data: Any, locate: Callable[[Loc], str]) -> Callable[[Loc], str]:
    """The same for a whole job: what is wrong with scenes that a matrix has made is told of the matrix."""

    def where(loc: Loc) -> str:
        if len(loc) > 2 and loc[0] == "subjects" and loc[2] == "scenes" and isinstance(loc[1], int):
            subject = data["subjects"][loc[1]]
            if isinstance(subject, Mapping) and subject.get("matrix") is not None:
                made = subject.get("scenes") is None or places_of(subject)(loc[2:]) == ("matrix",)
                return locate((*loc[:2], "matrix") if made else loc)
        return locate(loc)

    return where


def read_matrix(data: Any) -> tuple[Matrix | None, list[Finding]]:
    """A matrix of plain data; None where something is wrong with it, and what."""
    if not isinstance(data, Mapping):
        fix = "write a mapping of axes such as {pose: [sitting, running], place: [in the forest, on the beach]}"
        return None, [Finding(("matrix",), data, fix)]
    found: list[Finding] = []
    axes = {name: list(_axis(name, value, found)) for name, value in data.items() if name not in MATRIX_WORDS}
    if not axes or len(axes) > MAX_AXES:
        fix = f"write 1 to {MAX_AXES} axes, such as pose: [sitting, running]"
        found.append(Finding(("matrix",), f"{len(axes)} axes", fix))
    if found:
        return None, found
    template = _template(data.get("template"), list(axes), found)
    excluded = tuple(_exclusions(data.get("exclude"), axes, found))
    matrix = Matrix({name: tuple(values) for name, values in axes.items()}, template, excluded)
    if not found:
        found += _collisions(matrix)
    return (None, found) if found else (matrix, [])


def _axis(name: Any, values: Any, found: list[Finding]) -> Iterator[Value]:
    """The values of an axis, as far as they can be used."""
    if not isinstance(name, str) or not _AXIS.fullmatch(name):
        naming = f"name an axis by a word of up to 40 letters, digits and _; {' and '.join(MATRIX_WORDS)} are no axes"
        found.append(Finding(("matrix",), str(name), naming))
        return
    listed: Iterable[tuple[Any, Any]]
    if isinstance(values, Mapping) and values:
        listed = values.items()
    elif isinstance(values, Sequence) and not isinstance(values, str) and values:
        listed = enumerate(values)
    else:
        found.append(Finding(("matrix", name), values, _AN_AXIS))
        return
    ids: dict[str, Any] = {}
    texts: dict[str, Any] = {}
    for key, value in listed:
        loc = ("matrix", name, key if isinstance(key, (str, int)) else str(key))
        has_ids = isinstance(values, Mapping)
        text, fix = _words(value, may_be_none=has_ids)
        own = str(key) if has_ids else slug(text, name)
        if has_ids:
            fix = (id_problem(key) if isinstance(key, str) else "put the id in quotes") or fix
        if fix is None and (other := ids.setdefault(own.lower(), key)) != key:
            fix = f"{_place(name, other)} has the same id, {shown(own)}: write the axis as a mapping of ids to texts"
        elif fix is None and (other := texts.setdefault(text, key)) != key:
            fix = f"{_place(name, other)} has the same words: leave this one out, or write other words"
        if fix is not None:
            found.append(Finding(loc, value, fix))
            continue
        yield Value(own, text)


def _words(value: Any, *, may_be_none: bool) -> tuple[str, str | None]:
    """The words of a value in normal form, and what to change about them."""
    if may_be_none and (value is None or (isinstance(value, str) and not value.strip())):
        return "", None
    if not isinstance(value, str):
        return "", "write text, in quotes if it looks like a number or true or false"
    return check_text(value)


def _template(value: Any, axes: list[str], found: list[Finding]) -> str | None:
    if value is None:
        return None
    text, fix = check_text(value) if isinstance(value, str) else ("", "write text that names the axes")
    named = _NAMED.findall(text)
    if fix is None and (unknown := [name for name in named if name not in axes]):
        fix = f"there is no axis {shown(unknown[0])}{did_you_mean(unknown[0], axes)}"
    elif fix is None and (missing := [name for name in axes if name not in named]):
        fix = f"name every axis, such as {{{missing[0]}}}: scenes that differ in it alone would be the same"
    if fix is not None:
        found.append(Finding(("matrix", "template"), value, fix))
        return None
    return text


def _exclusions(
    data: Any, axes: Mapping[str, Sequence[Value]], found: list[Finding]
) -> Iterator[Mapping[str, frozenset[Value]]]:
    if data is None:
        return
    if not isinstance(data, Sequence) or isinstance(data, str):
        found.append(Finding(("matrix", "exclude"), data, _EXCLUSIONS))
        return
    for index, combination in enumerate(data):
        if not isinstance(combination, Mapping) or not combination:
            found.append(Finding(("matrix", "exclude", index), combination, _EXCLUSIONS))
            continue
        chosen: dict[str, frozenset[Value]] = {}
        for axis, wanted in combination.items():
            loc = ("matrix", "exclude", index, str(axis))
            if axis not in axes:
                fix = f"there is no such axis{did_you_mean(str(axis), axes) or ', there are ' + ', '.join(axes)}"
                found.append(Finding(loc, wanted, fix))
                continue
            known = {key: value for value in axes[axis] for key in (value.text, value.id)}
            several = wanted if isinstance(wanted, (list, tuple)) else [wanted]
            names = [" ".join(one.split()) if isinstance(one, str) else one for one in several]
            wrong = [one for one in names if not isinstance(one, str) or one not in known]
            if wrong or not names:
                fix = f"write values of {axis}, by their ids or texts: {', '.join(value.id for value in axes[axis])}"
                found.append(Finding(loc, wrong[0] if wrong else wanted, fix[:400]))
                continue
            chosen[axis] = frozenset(known[one] for one in names)
        yield chosen


def _collisions(matrix: Matrix) -> Iterator[Finding]:
    """Too many scenes, none, without words, or two that would be the same or have the same name."""
    size = 1
    for values in matrix.axes.values():
        size *= len(values)
    if size > MAX_SCENES:
        yield Finding(("matrix",), f"{size} combinations", f"write fewer values: {MAX_SCENES} combinations at most")
        return
    ids: set[str] = set()
    words: dict[str, str] = {}
    for name, text in matrix.scenes():
        fix = check_text(text)[1] if text else "write words for one of its values: it would have none"
        if fix is None and text in words:
            fix = f"it has the same words as {words[text]}, {shown(text)}: write other words or a template"
        elif fix is None and name.lower() in ids:
            fix = "another combination has this id, too: write axes as mappings of ids to texts"
        words[text] = name
        ids.add(name.lower())
        if fix is not None:
            yield Finding(("matrix",), f"the scene {name}", fix)
            return
    if not ids:
        yield Finding(("matrix", "exclude"), "every combination", "leave one of them in")


def _joined_id(ids: Iterable[str]) -> str:
    """The values' ids, joined; where that is too long, what fits and a short hash of all of it."""
    whole = "-".join(ids)
    return whole if len(whole) <= MAX_ID else f"{whole[: MAX_ID - _MARK].rstrip('-._')}-{short_hash(whole)}"


def _place(name: str, key: Any) -> str:
    return f"{name}[{key}]" if isinstance(key, int) else f"{name}.{key}"
