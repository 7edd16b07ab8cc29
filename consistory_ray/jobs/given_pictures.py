"""Pictures of subjects that a job gives instead of anchors: every address in it becomes a file that was looked at.

Whatever is wrong with any of them is found here, before a model is loaded, and told at once. Pure: neither torch nor
ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Literal

from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.problems import MAX_PROBLEMS, Loc
from consistory_ray.jobs.input_files import InputFiles, Seen
from consistory_ray.jobs.readers import Document

Fit = Literal["crop", "letterbox"]
"""How pictures of another shape are fitted, see :func:`consistory_ray.pictures.fit`."""

_THREADS = 8
_ONE_COLOUR = "give one that shows the subject"


def look_up_pictures(document: Document, data: Any, files: InputFiles) -> tuple[Any, list[Problem]]:
    """A job's plain data with the addresses of all given pictures and masks replaced by what lies there.

    Args:
        document: where the data comes from, for messages.
        data: as a job file holds it; whatever is no address in a picture's place stays as it is.
        files: the pictures of the job.

    Returns:
        The data, and what is wrong with pictures; these stay addresses.
    """
    subjects = data.get("subjects") if isinstance(data, Mapping) else None
    if not isinstance(subjects, (list, tuple)):
        return data, []
    asked = [
        (("subjects", index, "pictures", number), picture)
        for index, subject in enumerate(subjects)
        if isinstance(subject, Mapping) and isinstance(subject.get("pictures"), (list, tuple))
        for number, picture in enumerate(subject["pictures"])
    ]
    if not asked:
        return data, []
    with ThreadPoolExecutor(_THREADS, "pictures") as pool:
        found = list(pool.map(lambda item: _looked_up(files, document, *item), asked))
    problems = [problem for _, some in found for problem in some]
    pictures = iter(picture for picture, _ in found)
    looked_up = [
        {**subject, "pictures": [next(pictures) for _ in subject["pictures"]]}
        if isinstance(subject, Mapping) and isinstance(subject.get("pictures"), (list, tuple))
        else subject
        for subject in subjects
    ]
    return {**data, "subjects": looked_up}, problems[:MAX_PROBLEMS]


def _looked_up(files: InputFiles, document: Document, loc: Loc, given: Any) -> tuple[Any, list[Problem]]:
    """One picture of a subject, with its mask."""
    from consistory_ray.pictures import check_mask  # imports numpy

    picture = {"image": given} if isinstance(given, str) else given
    if not isinstance(picture, Mapping):
        return given, []
    problems: list[Problem] = []
    seen: dict[str, Seen] = {}
    for name in ("image", "mask"):
        if not isinstance(picture.get(name), str):
            continue
        field = document.locate((*loc, name))
        try:
            seen[name] = files.see(field, picture[name])
            if name == "image" and seen[name].is_plain:
                raise InputError("it shows nothing", [Problem(field, "a picture of a single colour", _ONE_COLOUR)])
            if name == "mask" and "image" in seen:
                check_mask(field, seen[name].size, seen["image"].size, is_uniform=seen[name].marks_nothing)
        except InputError as error:
            problems += error.problems
    return {**picture, **{name: asdict(one.file) for name, one in seen.items()}}, problems
