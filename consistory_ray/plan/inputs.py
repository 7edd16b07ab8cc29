"""The files that a plan's pictures are made from, besides words: known by their content, wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass

from consistory_ray.jobs.input_files import InputFile


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A picture that a user gives: where it lay when the job was read, its SHA-256, its size in bytes, its format."""

    url: str
    sha256: str
    nbytes: int
    format: str

    @property
    def path(self) -> str:
        """Of its copy, relative to the output URL."""
        return f"inputs/{self.sha256}.{self.format}"


def planned(file: InputFile) -> PlannedFile:
    """A file of a job, as a plan has it."""
    return PlannedFile(file.url, file.sha256, file.bytes, file.format)
