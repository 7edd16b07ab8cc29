"""The lists that wildcards of dynamic prompts draw from: text files beside a job, read once while the job is read.

``__animals/birds__`` is ``animals/birds.txt`` in the folder ``wildcards`` beside the job file, or in the one that the
job names: a line for each alternative, ``#`` begins a comment, empty lines count for nothing. What was read becomes
part of the job, so that the record of a run needs none of the files. Pure: neither torch nor ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.places import Place, without_credentials
from consistory_ray.guards.problems import MAX_PROBLEMS, path, shown
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.jobs.checks import check_text
from consistory_ray.jobs.dynamic_checks import dynamic_texts
from consistory_ray.jobs.fields import MAX_TEXT
from consistory_ray.jobs.input_files import InputFiles
from consistory_ray.jobs.sources import TooLargeError, read_all, reading_problem
from consistory_ray.jobs.templates import TemplateError, parse, parse_option, wildcards_in

FOLDER = "wildcards"
"""Where lists are looked for, beside the job file."""
MAX_BYTES = 8 << 20
"""Of all the lists of a job together."""
MAX_LISTS = 500


def look_up_wildcards(data: Any, files: InputFiles) -> tuple[Any, list[Problem]]:
    """A job's plain data with the lists of its wildcards in it, and what cannot be used of them.

    Args:
        data: as a job file holds it; lists that are written in it stay as they are.
        files: says where relative addresses lead.
    """
    if not isinstance(data, Mapping) or isinstance(data.get("wildcards"), Mapping):
        return data, []
    given = data.get("wildcards")
    if given is not None and not isinstance(given, str):
        return data, []  # pydantic refuses it
    texts = [(path(loc), text) for loc, text in dynamic_texts(data) if "__" in text and len(text) <= MAX_TEXT]
    if not texts:
        if given is None:
            return data, []
        fix = "leave it out: no prompt has a wildcard such as __animals__, or dynamic_prompts: true is missing"
        return {**data, "wildcards": {}}, [Problem("wildcards", shown(given), fix)]
    try:
        folder = files.place("wildcards", FOLDER if given is None else given)
    except InputError as error:
        return {**data, "wildcards": {}}, list(error.problems)
    reader = _Reader(folder)
    for where, text in texts:
        reader.read(where, text)
    return {**data, "wildcards": reader.lists}, reader.problems[:MAX_PROBLEMS]


class _Reader:
    """Reads the lists that prompts need, and those that these need.

    Attributes:
        lists: by name, their lines.
        problems: what was wrong with them.
    """

    def __init__(self, folder: Place) -> None:
        self.lists: dict[str, list[str]] = {}
        self.problems: list[Problem] = []
        self._folder = folder
        self._left = MAX_BYTES
        self._missing: dict[str, tuple[str, str]] = {}

    def read(self, where: str, text: str) -> None:
        """Everything that a prompt needs; what cannot be read in it is told by whoever checks it."""
        try:
            names = list(wildcards_in(parse(text)))
        except TemplateError:
            return
        waiting = [(where, name) for name in names]
        while waiting and len(self.problems) < MAX_PROBLEMS:
            needed_by, name = waiting.pop()
            if name in self._missing:
                self.problems.append(Problem(needed_by, *self._missing[name]))
            elif name not in self.lists:
                waiting += self._list(needed_by, name)

    def _list(self, where: str, name: str) -> list[tuple[str, str]]:
        """Reads one list; the wildcards in it, each with the place that needs it."""
        try:
            content = self._content(name)
        except _Unusable as error:
            self._missing[name] = (f"__{name}__", str(error))
            self.problems.append(Problem(where, *self._missing[name]))
            return []
        lines = self.lists.setdefault(name, [])
        needed: list[str] = []
        for number, written in enumerate(content.splitlines(), 1):
            line = written.strip()
            if not line or line.startswith("#"):
                continue
            text, fix = check_text(line)
            try:
                needed += list(wildcards_in(parse_option(text).parts)) if fix is None else []
            except TemplateError as error:
                text, fix = error.found, error.fix
            if fix is None:
                lines.append(text)
            else:
                self.problems.append(Problem(f"{self._shown(name)}, line {number}", shown(text), fix))
        return [(self._shown(name), other) for other in dict.fromkeys(needed)]

    def _content(self, name: str) -> str:
        if len(self.lists) >= MAX_LISTS:
            raise _Unusable(f"a job may use {MAX_LISTS} lists at most")
        place = self._folder.below(f"{name}.txt")
        try:
            check_allowed("wildcards", place.url)
            content = read_all(place, self._left)
            self._left -= len(content)
            return content.decode("utf-8-sig")
        except InputError as error:
            raise _Unusable(error.problems[0].fix) from None
        except TooLargeError:
            raise _Unusable(f"use shorter lists, of {MAX_BYTES >> 20} MiB together at most") from None
        except UnicodeDecodeError:
            raise _Unusable(f"save {self._shown(name)} as UTF-8") from None
        except (FileNotFoundError, NotADirectoryError):
            fix = "write it with a line for each alternative, or give the folder of lists as wildcards in the job"
            raise _Unusable(f"there is no file {self._shown(name)}: {fix}") from None
        except Exception as error:  # every kind of storage has errors of its own
            told = reading_problem(error, place)
            value, fix = told or (f"{type(error).__name__}: {error}"[:200], "check the address")
            raise _Unusable(f"{self._shown(name)} cannot be read, {fix} ({value})") from error

    def _shown(self, name: str) -> str:
        return without_credentials(self._folder.below(f"{name}.txt").url)


class _Unusable(Exception):
    """A list that cannot be read; the text says what to do."""
