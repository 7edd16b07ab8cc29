"""Files that users give and workers read: known by their content, copied to the output before anything is rendered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consistory_ray.jobs.input_files import InputFile
    from consistory_ray.jobs.subject import GivenPicture

INPUT_FOLDER = "inputs"
"""The folder of an output with the copies."""


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file.

    Attributes:
        url: where the original lies, or lay; nothing depends on it.
        sha256: of its content, 64 hexadecimal digits.
        nbytes: its size.
        format: the ending of its copy's name.
    """

    url: str = field(compare=False)
    sha256: str
    nbytes: int
    format: str

    @property
    def path(self) -> str:
        """Of its copy, below the output."""
        return f"{INPUT_FOLDER}/{self.sha256}.{self.format}"


@dataclass(frozen=True, slots=True)
class PlannedPicture:
    """A picture that a subject is made of.

    Attributes:
        image: the picture.
        mask: where the subject is in it; None where it is found, or the picture's own transparency says it.
        fit: how it becomes one of the job's size, see :func:`consistory_ray.pictures.fit`.
    """

    image: PlannedFile
    mask: PlannedFile | None
    fit: str

    @property
    def files(self) -> tuple[PlannedFile, ...]:
        """The picture and its mask."""
        return (self.image,) if self.mask is None else (self.image, self.mask)

    @property
    def identity(self) -> list[Any]:
        """What decides pixels: content, never an address or a name."""
        return [self.image.sha256, None if self.mask is None else self.mask.sha256, self.fit]


def planned(file: InputFile) -> PlannedFile:
    """A file that a job refers to."""
    return PlannedFile(file.url, file.sha256, file.bytes, file.format)


def planned_picture(picture: GivenPicture) -> PlannedPicture:
    """A picture that a job gives."""
    mask = None if picture.mask is None else planned(picture.mask)
    return PlannedPicture(planned(picture.image), mask, picture.fit)
