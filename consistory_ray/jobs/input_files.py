"""Pictures that a job refers to by address: read once while the job is read, and known by their content from then on.

A relative address is relative to the job file. Pure: neither torch nor ray.
"""

from __future__ import annotations

import hashlib
import posixpath
from threading import Lock
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.places import Place, place_of, without_credentials
from consistory_ray.guards.problems import fault
from consistory_ray.guards.setting_ranges import Whole
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.jobs.readers import STANDARD_INPUT
from consistory_ray.jobs.sources import TooLargeError, read_all, reading_problem
from consistory_ray.jobs.validation import Text

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
    format: Literal["png", "jpg", "webp"]
    """What it is, whatever it is called."""


def _looked_up(value: Any) -> Any:
    """An address was looked up before, unless it could not be read."""
    if isinstance(value, str):
        raise fault("load_job and parse_job look addresses up: give the whole job to one of them")
    return value


File = Annotated[InputFile, BeforeValidator(_looked_up, json_schema_input_type=str | InputFile)]
"""A field in which users write an address."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture that was looked up, and what was seen of it.

    Attributes:
        file: what the job refers to from now on.
        size: width and height in pixels, upright.
        is_plain: whether all of it has one colour.
        marks_nothing: whether it would be the same everywhere as a mask.
    """

    file: InputFile
    size: tuple[int, int]
    is_plain: bool
    marks_nothing: bool


class InputFiles:
    """The pictures of one job, each of them read once however often, and from whichever threads, it is referred to.

    Args:
        source: path or URL of the job file, which relative addresses go by; anything that is no file goes by the
            working directory.
    """

    def __init__(self, source: str) -> None:
        self._folder = _folder_of(source)
        self._looked_up: dict[str, _LookUp] = {}
        self._lock = Lock()

    def place(self, field: str, address: str) -> Place:
        """Where an address leads, if that is allowed.

        Args:
            field: what it was given as, for the message.
            address: a path or URL as it was written.

        Raises:
            InputError: it cannot be used, or is not allowed.
        """
        place = place_of(self.beside(address), field)
        check_allowed(field, place.url)
        return place

    def beside(self, address: str) -> str:
        """An address as it is opened: a relative one goes by the job file, if there is one."""
        written = address.strip()
        is_relative = "://" not in written and ":" not in written.split("/")[0] and not written.startswith(("/", "~"))
        return posixpath.join(self._folder, written) if is_relative and written and self._folder else written

    def look_up(self, field: str, address: str) -> InputFile:
        """A picture, if it can be read.

        Raises:
            InputError: it cannot be reached, is not allowed, or is no picture that can be used.
        """
        return self.see(field, address).file

    def see(self, field: str, address: str) -> Seen:
        """:meth:`look_up`, and what was seen of it.

        Raises:
            InputError: see there.
        """
        place = self.place(field, address)
        with self._lock:
            looked_up = self._looked_up.get(place.url)
            if looked_up is None:
                if len(self._looked_up) >= MAX_FILES:
                    fix = f"split the job, it may refer to {MAX_FILES} pictures at most"
                    raise InputError("these are too many pictures", [Problem(field, "one more", fix)])
                looked_up = self._looked_up[place.url] = _LookUp(place, field)
        return looked_up.found(field)


class _LookUp:
    """One picture, which several threads may ask for."""

    def __init__(self, place: Place, field: str) -> None:
        self._place = place
        self._field = field
        self._lock = Lock()
        self._result: Seen | InputError | None = None

    def found(self, field: str) -> Seen:
        """What it is; what is wrong with it is told of every field that refers to it."""
        with self._lock:
            if self._result is None:
                try:
                    self._result = self._read()
                except InputError as error:
                    self._result = error
        if isinstance(self._result, Seen):
            return self._result
        again = [Problem(field, problem.value, problem.fix) for problem in self._result.problems]
        raise InputError(self._result.message, again)

    def _read(self) -> Seen:
        from consistory_ray.pictures import open_picture, read_header, shown_by  # imports numpy

        data = read_picture(self._place, self._field)
        picture = open_picture(data, self._field)
        kind, marked = read_header(data, self._field).format, shown_by(picture)
        file = InputFile(self._place.url, hashlib.sha256(data).hexdigest(), len(data), kind)
        is_plain = picture.image.getcolors(1) is not None
        return Seen(file, picture.size, is_plain, bool(marked.all() or not marked.any()))


def read_picture(place: Place, field: str) -> bytes:
    """The bytes of a picture file.

    Raises:
        InputError: it cannot be read, or is too large.
    """
    from consistory_ray.pictures.formats import MAX_BYTES  # imports Pillow

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
