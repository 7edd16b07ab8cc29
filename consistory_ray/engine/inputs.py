"""Files that users give, copied to the output before workers start, and read by workers from there.

A copy's name is its SHA-256: a run that goes on needs nothing but its output, and whoever reads a copy knows at once
whether it is what the plan means. Copies are created exclusively, whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from consistory_ray.engine.outages import with_backoff
from consistory_ray.errors import AssetError, InputError, Problem
from consistory_ray.guards.places import place_of, without_credentials
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.jobs.input_files import read_picture
from consistory_ray.output.files import bounded_map
from consistory_ray.output.lease.fencing import Lost, refuse_if_lost
from consistory_ray.output.storage import MissingFileError, OutputStore, UnfitFileError, open_output
from consistory_ray.plan.inputs import INPUT_FOLDER

if TYPE_CHECKING:
    from consistory_ray.pictures import Picture
    from consistory_ray.plan.inputs import PlannedFile, PlannedPicture

_THREADS = 8
_KEPT_BYTES = 64 << 20


def copy_inputs(store: OutputStore, files: Iterable[PlannedFile], lost: Lost = str) -> int:
    """Copy what a plan needs and the output lacks; returns how many files that were.

    What is there is known by its name and size; workers look at its content.

    Args:
        store: the output; the caller is its only writer.
        files: what the plan needs.
        lost: why the output may no longer be written to; empty while it may.

    Raises:
        InputError: some are neither in the output nor where the job has found them, or are others by now.
        RunError: the output is lost.
        StorageError: the output failed.
    """
    wanted = list(files)
    if not wanted:
        return 0
    there = {file.path: file.size for file in store.list_files(INPUT_FOLDER)}
    missing = [file for file in wanted if there.get(file.path) != file.nbytes]
    problems = [problem for problem in bounded_map(lambda file: _copy(store, file, lost), missing, _THREADS) if problem]
    if problems:
        raise InputError("some of the job's pictures cannot be copied to the output", problems)
    return len(missing)


def _copy(store: OutputStore, file: PlannedFile, lost: Lost) -> Problem | None:
    shown = without_credentials(file.url)
    try:
        check_allowed("the picture", file.url)
        data = read_picture(place_of(file.url, "the picture"), shown)
    except InputError as error:
        (problem, *_) = error.problems
        return Problem(shown, problem.value if problem.value != shown else "", f"{problem.fix}; {_OR}")
    if hashlib.sha256(data).hexdigest() != file.sha256:
        return Problem(shown, "another picture than when the job was read", "render again: it is read anew")
    refuse_if_lost(lost, f"{store.url}/{file.path} was not written")
    if not with_backoff(lambda: store.create_exclusive(file.path, data)):  # something else has its place
        with_backoff(lambda: store.write_atomic(file.path, data))
    return None


_OR = f"or put the file into the output's folder {INPUT_FOLDER} yourself, named by its SHA-256"


def fitted(reader: InputReader, given: PlannedPicture, width: int, height: int) -> Picture:
    """A given picture, with its mask, as it is rendered with.

    Raises:
        AssetError: it cannot be read.
        InputError: it cannot be used.
        StorageError: the output failed.
    """
    from consistory_ray.pictures import FITS, fit, open_masked

    image, mask = reader.read(given.image), None if given.mask is None else reader.read(given.mask)
    (how,) = (how for how in FITS if how == given.fit)
    mask_name = "" if given.mask is None else given.mask.path
    return fit(open_masked(image, mask, given.image.path, mask_name), width, height, how)


class InputReader:
    """Reads copies; the last few stay in memory.

    Args:
        url: of the output.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._store: OutputStore | None = None
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def read(self, file: PlannedFile) -> bytes:
        """The content of a file that the plan names.

        Raises:
            AssetError: it is not in the output, or damaged there.
            StorageError: the output failed.
        """
        if file.sha256 in self._kept:
            self._kept.move_to_end(file.sha256)
            return self._kept[file.sha256]
        if self._store is None:
            self._store = open_output(self._url)
        store = self._store
        again = "delete it, and the same command copies it again"
        try:
            data = with_backoff(lambda: store.read(file.path))
        except (MissingFileError, UnfitFileError) as error:
            raise AssetError(f"{store.url}/{file.path} cannot be read ({error}): {again}") from error
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise AssetError(f"{store.url}/{file.path} is damaged, its SHA-256 is not its name: {again}")
        self._kept[file.sha256] = data
        while len(self._kept) > 1 and sum(map(len, self._kept.values())) > _KEPT_BYTES:
            self._kept.popitem(last=False)
        return data
