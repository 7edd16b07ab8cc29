"""The hints of a job: their addresses are looked up, and a folder of poses becomes the list of its pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from pydantic import TypeAdapter, ValidationError

from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.places import Place, without_credentials
from consistory_ray.guards.problems import FIXES, MAX_PROBLEMS, Loc, explain, path, shown
from consistory_ray.jobs.controls import MAX_POSES, PoseFolder
from consistory_ray.jobs.ids import Wanted, distinct_names, slug
from consistory_ray.jobs.input_files import InputFiles
from consistory_ray.jobs.sources import reading_problem

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_LED = ("anchors", "pictures", "scenes")
_MAX_ENTRIES = 20_000
_NONE: tuple[Any, ...] = ()
"""In the place of poses that were told to be wrong."""
_SHARED = TypeAdapter(PoseFolder)


def look_up_controls(data: Any, files: InputFiles) -> tuple[Any, list[Problem]]:
    """A job's plain data with the address of every hint replaced by what is there, and what cannot be used.

    Args:
        data: as a job file holds it; what has another shape is left for pydantic to refuse.
        files: looks the hints up.
    """
    subjects = data.get("subjects") if isinstance(data, Mapping) else None
    if not isinstance(subjects, (list, tuple)):
        return data, []
    finder = _Finder(files)
    resolved = [finder.subject(("subjects", index), subject) for index, subject in enumerate(subjects)]
    return {**data, "subjects": resolved}, finder.problems


class _Finder:
    """Walks through a job's subjects.

    Attributes:
        problems: what was wrong with hints, the first ones.
    """

    def __init__(self, files: InputFiles) -> None:
        self._files = files
        self._lists: dict[int, Any] = {}  # lists that stand in several places by an alias are looked through once
        self.problems: list[Problem] = []

    def subject(self, loc: Loc, subject: Any) -> Any:
        if not isinstance(subject, Mapping):
            return subject
        changes: dict[str, Any] = {}
        for name in _LED:
            entries = subject.get(name)
            if isinstance(entries, (list, tuple)):
                if id(entries) not in self._lists:
                    self._lists[id(entries)] = self._entries((*loc, name), entries)
                if (found := self._lists[id(entries)]) is not entries:
                    changes[name] = found
        if "poses" in subject:
            changes["poses"] = self._poses((*loc, "poses"), subject["poses"])
        return {**subject, **changes} if changes else subject

    def _entries(self, loc: Loc, entries: Sequence[Any]) -> Sequence[Any]:
        if not any(_is_led(entry) for entry in entries):
            return entries
        return [
            {**entry, "control": self._control((*loc, index, "control"), entry["control"])} if _is_led(entry) else entry
            for index, entry in enumerate(entries)
        ]

    def _control(self, loc: Loc, control: Any) -> Any:
        if isinstance(control, (list, tuple)):
            return [self._hint((*loc, index), one) for index, one in enumerate(control)]
        return self._hint(loc, control)

    def _hint(self, loc: Loc, hint: Any) -> Any:
        """One control or pose; its address alone stands for the whole."""
        hint = {"image": hint} if isinstance(hint, str) else hint
        if not isinstance(hint, Mapping) or not isinstance(hint.get("image"), str) or len(self.problems) > MAX_PROBLEMS:
            return hint
        try:
            found = self._files.look_up(path((*loc, "image")), hint["image"])
        except InputError as error:
            self.problems.extend(error.problems)
            return hint
        return {**hint, "image": asdict(found)}

    def _poses(self, loc: Loc, poses: Any) -> Any:
        """The list of poses that a folder, a list of addresses, or a mapping with either stands for."""
        shared: dict[str, Any] = {}
        given: Any = poses
        where = loc
        if isinstance(poses, Mapping) and ("folder" in poses or "images" in poses):
            shared = {key: value for key, value in poses.items() if key not in ("folder", "images")}
            key = "folder" if "folder" in poses else "images"
            given, where = poses[key], (*loc, key)
            if "folder" in poses and "images" in poses:
                self.problems.append(Problem(path((*loc, "images")), "", "write folder or images, one of them"))
                return _NONE
            if self._wrong(loc, shared):
                return _NONE
        if isinstance(given, str):
            given = self._in_folder(where, given)
        elif not isinstance(given, (list, tuple)):
            return given
        elif not 0 < len(given) <= MAX_POSES:
            self.problems.append(Problem(path(where), shown(given), FIXES["poses"]))
            return _NONE
        names = iter(_names([pose for pose in given if _address(pose) and not _has_name(pose)], given))
        hints = [self._hint((*where, index), pose) for index, pose in enumerate(given)]
        return [
            {**shared, **hint, **({"name": next(names)} if _address(pose) and not _has_name(pose) else {})}
            if isinstance(hint, Mapping)
            else hint
            for pose, hint in zip(given, hints, strict=True)
        ]

    def _wrong(self, loc: Loc, shared: Mapping[str, Any]) -> bool:
        """Whether what all poses of a folder have cannot be used."""
        try:
            _SHARED.validate_python({**shared, "folder": "poses"})
        except ValidationError as error:
            keys = [name for name in PoseFolder.__dataclass_fields__ if name != "folder"]
            self.problems += explain(error, shared, lambda inner: path((*loc, *inner)), lambda inner: keys)
            return True
        return False

    def _in_folder(self, loc: Loc, address: str) -> list[str]:
        """The addresses of a folder's pictures, sorted; of a picture itself."""
        if PurePosixPath(address).suffix.lower() in SUFFIXES:
            return [address]
        field = path(loc)
        try:
            place = self._files.place(field, address)
            names = _pictures_in(place, field)
        except InputError as error:
            self.problems.extend(error.problems)
            return []
        if len(names) > MAX_POSES:
            self.problems.append(Problem(field, f"{len(names)} pictures", FIXES["poses"]))
            return []
        return [place.below(name).url for name in names]


def _pictures_in(place: Place, field: str) -> list[str]:
    """The names of a folder's pictures.

    Raises:
        InputError: it cannot be listed, or has none.
    """
    shown_place = without_credentials(place.url)
    try:
        if place.is_local:
            with os.scandir(place.path) as entries:
                found = [entry.name for entry in islice(entries, _MAX_ENTRIES) if entry.is_file()]
        else:
            fs, folder = place.filesystem()
            found = [PurePosixPath(str(one)).name for one in islice(fs.ls(folder, detail=False), _MAX_ENTRIES)]
    except FileNotFoundError:
        fix = "there is no such folder, check the path (it is relative to the job file)"
        raise InputError("no poses", [Problem(field, shown_place, fix)]) from None
    except NotADirectoryError:
        raise InputError("no poses", [Problem(field, shown_place, "this is a file, give a folder")]) from None
    except Exception as error:  # every kind of storage has errors of its own
        told = reading_problem(error, place)
        value, fix = told or (f"{type(error).__name__}: {str(error)[:200]}", "check the address and your rights to it")
        raise InputError("no poses", [Problem(field, shown_place, f"{fix} ({value})")]) from error
    names = sorted(name for name in found if name.lower().endswith(SUFFIXES) and not name.startswith("."))
    if not names:
        fix = "put at least one PNG, JPEG or WebP file into this folder"
        raise InputError("no poses", [Problem(field, shown_place, fix)])
    return names


def _address(pose: Any) -> str:
    """The address of a pose as it was written; empty where it has none."""
    address = pose.get("image") if isinstance(pose, Mapping) else pose
    return address if isinstance(address, str) else ""


def _is_led(entry: Any) -> bool:
    """Whether an anchor or scene has a control; most are words, which are told first."""
    return not isinstance(entry, str | int) and isinstance(entry, Mapping) and "control" in entry


def _has_name(pose: Any) -> bool:
    return isinstance(pose, Mapping) and pose.get("name") is not None


def _names(unnamed: Sequence[Any], poses: Sequence[Any]) -> list[str]:
    """Names of the poses without one, made of their files' names."""
    files = [PurePosixPath(_address(pose).split("?", 1)[0]).name for pose in unnamed]
    wanted = [Wanted(slug(PurePosixPath(file).stem, "pose"), file) for file in files]
    given = [pose["name"] for pose in poses if _has_name(pose) and isinstance(pose["name"], str)]
    return [names[0] for names in distinct_names(wanted, given)]
