"""Pictures that a job refers to by address: read once while the job is read, and known by their content from then on.

A relative address is relative to the job file. Pure: neither torch nor ray.
"""

from __future__ import annotations

import hashlib
import posixpath
from typing import Annotated

from pydantic import ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.places import Place, place_of, without_credentials
from consistory_ray.guards.setting_ranges import Whole
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.jobs.readers import STANDARD_INPUT
from consistory_ray.jobs.sources import TooLargeError, read_all, reading_problem
from consistory_ray.jobs.validation import Text
from consistory_ray.pictures import MAX_BYTES, open_picture

MAX_FILES = 10_000
Sha256 = Annotated[str, Strict(), Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class InputFile:
    """A picture that was looked up: what an address in a job file becomes."""

    url: Text
    """Where it lies."""
    sha256: Sha256
    """Its content; pictures depend on this, not on the address."""
    bytes: Annotated[Whole, Field(ge=0, lt=2**63)]
    """Its size."""


class InputFiles:
    """The pictures of one job, each of them read once however often it is referred to.

    Args:
        source: path or URL of the job file, which relative addresses go by; anything that is no file goes by the
            working directory.
    """

    def __init__(self, source: str) -> None:
        self._folder = _folder_of(source)
        self._found: dict[str, InputFile] = {}
        self._broken: dict[str, InputError] = {}

    def place(self, field: str, address: str) -> Place:
        """Where an address leads, if that is allowed.

        Args:
            field: what it was given as, for the message.
            address: a path or URL as it was written.

        Raises:
            InputError: it cannot be used, or is not allowed.
        """
        written = address.strip()
        is_relative = "://" not in written and ":" not in written.split("/")[0] and not written.startswith(("/", "~"))
        joined = posixpath.join(self._folder, written) if is_relative and written and self._folder else written
        place = place_of(joined, field)
        check_allowed(field, place.url)
        return place

    def look_up(self, field: str, address: str) -> InputFile:
        """A picture, if it can be read.

        Raises:
            InputError: it cannot be reached, is not allowed, or is no picture that can be used.
        """
        place = self.place(field, address)
        if (broken := self._broken.get(place.url)) is not None:
            again = [Problem(field, problem.value, problem.fix) for problem in broken.problems]
            raise InputError(broken.message, again)
        if place.url not in self._found:
            if len(self._found) >= MAX_FILES:
                fix = f"split the job, it may refer to {MAX_FILES} pictures at most"
                raise InputError("these are too many pictures", [Problem(field, "one more", fix)])
            try:
                data = read_picture(place, field)
                open_picture(data, field)
            except InputError as error:
                self._broken[place.url] = error
                raise
            self._found[place.url] = InputFile(place.url, hashlib.sha256(data).hexdigest(), len(data))
        return self._found[place.url]


def read_picture(place: Place, field: str) -> bytes:
    """The bytes of a picture file.

    Raises:
        InputError: it cannot be read, or is too large.
    """
    shown = without_credentials(place.url)
    try:
        return read_all(place, MAX_BYTES)
    except TooLargeError:
        fix = f"give a smaller file, of {MAX_BYTES >> 20} MiB at most"
        raise InputError("this picture cannot be read", [Problem(field, shown, fix)]) from None
    except Exception as error:  # every kind of storage has errors of its own
        told = reading_problem(error, place)
        value, fix = told or (f"{type(error).__name__}: {str(error)[:200]}", "check the address and your rights to it")
        raise InputError("this picture cannot be read", [Problem(field, shown, f"{fix} ({value})")]) from error


def _folder_of(source: str) -> str:
    """The folder or URL that relative addresses in a job file are below; empty for the working directory."""
    if source == STANDARD_INPUT or "/" not in source:
        return ""
    return source.split("?", 1)[0].rpartition("/")[0] or "/" if "://" in source else source.rpartition("/")[0] or "/"
