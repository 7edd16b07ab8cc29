"""What is too much to be looked at: counted in a job's plain data before anything in it is checked or copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consistory_ray.errors import Problem
from consistory_ray.jobs.checks import MAX_PICTURES
from consistory_ray.jobs.problems import FIXES, Loc

_MOST = {"concept": 16, "anchors": 64}
_TOLD = 20


def oversized(data: Any) -> list[tuple[Loc, Problem]]:
    """Where a job has more pictures, anchors or concepts than any may have.

    Lists that stand in several places of a file by an alias are counted once and added up, so that this takes as long
    as the file took to read, whatever it would be written out.

    Args:
        data: the plain data of a job.
    """
    subjects = data.get("subjects") if isinstance(data, Mapping) else None
    if not isinstance(subjects, (list, tuple)):
        return []
    found: list[tuple[Loc, Problem]] = []
    counted: dict[int, int] = {}
    pictures = 0
    for index, subject in enumerate(subjects):
        if not isinstance(subject, Mapping):
            continue
        for name, most in _MOST.items():
            value = subject.get(name)
            if isinstance(value, (list, tuple)) and len(value) > most and len(found) < _TOLD:
                found.append((("subjects", index, name), Problem("", f"a list of {len(value)}", FIXES[name])))
        scenes = subject.get("scenes")
        if isinstance(scenes, (list, tuple)):
            if id(scenes) not in counted:
                counted[id(scenes)] = len(scenes) if len(scenes) > MAX_PICTURES else sum(map(_count, scenes))
            pictures += counted[id(scenes)]
    if max(pictures, len(subjects)) > MAX_PICTURES:
        value = f"{pictures} pictures" if pictures > MAX_PICTURES else f"{len(subjects)} subjects"
        fix = f"split the job, it may have {MAX_PICTURES} pictures at most"
        found.append((("subjects",), Problem("", value, fix)))
    return found


def _count(scene: Any) -> int:
    count = scene.get("count") if type(scene) is dict else None
    return count if isinstance(count, int) and count > 0 else 1
