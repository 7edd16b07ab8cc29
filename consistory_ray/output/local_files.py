"""Files on a mounted file system: written to a temporary name in the same folder, synced, then renamed or linked.

What is listed and read are regular files only: links, pipes and devices are told, never followed or opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from consistory_ray.guards.outside import kind_of, open_regular, read_regular
from consistory_ray.output.files import Buffer, StoredFile, temporary_name

_T = TypeVar("_T")
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


@dataclass(frozen=True)
class LocalFiles:
    """The files of a local output, see :class:`~consistory_ray.output.files.Files`.

    Attributes:
        before_folders: is called before a folder is made; may raise.
    """

    before_folders: Callable[[], None]
    leaves_temporaries = True

    def read(self, full: str, limit: int | None) -> bytes:
        return read_regular(full, limit)

    def open(self, full: str) -> BinaryIO:
        return open_regular(full)

    def is_file(self, full: str) -> bool:
        return stat.S_ISREG(os.lstat(full).st_mode)

    def replace(self, full: str, data: Buffer) -> None:
        """When this returns the file is on the disk, its folder too."""
        with self._temporary(full, data) as temporary:
            os.replace(temporary, full)
        _sync_folder(os.path.dirname(full))

    def create(self, full: str, data: Buffer) -> None:
        with self._temporary(full, data) as temporary:
            try:
                os.link(temporary, full)
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                # no hard links here (some network and FAT mounts): exclusive, though not whole if killed right now
                _write_synced(full, data)
        _sync_folder(os.path.dirname(full))

    def copy(self, source: str, target: str) -> None:
        """A hard link where there are such."""
        folder, name = os.path.split(target)
        temporary = os.path.join(folder, temporary_name(name))
        try:
            self._making_folder(folder, lambda: os.link(source, temporary))
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            self.replace(target, self.read(source, None))
            return
        os.replace(temporary, target)
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # rename does nothing where both are the same file
        _sync_folder(folder)

    def delete(self, full: str) -> None:
        os.unlink(full)

    def written_at(self, full: str) -> float:
        return os.stat(full).st_mtime

    def below(self, folder: str, prefix: str) -> list[StoredFile]:
        return list(_walk(folder, prefix))

    def in_folder(self, folder: str, prefix: str) -> tuple[list[StoredFile], list[str]]:
        folders: list[str] = []
        return list(_walk(folder, prefix, folders)), folders

    @contextmanager
    def _temporary(self, full: str, data: Buffer) -> Iterator[str]:
        """A synced temporary file with ``data`` beside ``full``; removed at the end if it is still there."""
        folder, name = os.path.split(full)
        temporary = os.path.join(folder, temporary_name(name))
        try:
            self._making_folder(folder, lambda: _write_synced(temporary, data))
            yield temporary
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def _making_folder(self, folder: str, action: Callable[[], _T]) -> _T:
        """Run ``action``, making its folder only when it turns out to be missing: one system call less per file."""
        try:
            return action()
        except FileNotFoundError:
            self.before_folders()
            os.makedirs(folder, exist_ok=True)
            return action()


def strangers(root: str) -> dict[str, str]:
    """What lies below a folder and is neither a file nor a folder, with what it is, by path.

    A link is not followed; one to a folder that lies below ``root`` is none.
    """
    found: dict[str, str] = {}
    for _ in _walk(root, "", strangers=found):
        pass
    places = {path: os.path.join(root, path) for path, kind in found.items() if kind == "a link"}
    inside = {path for path, place in places.items() if os.path.isdir(place) and leads_inside(root, place)}
    return {path: kind for path, kind in found.items() if path not in inside}


def first_bad_link(root: str, folders: list[str]) -> str:
    """The first of nested folders that is a link to nowhere or to a place that is not below ``root``; empty for none.

    Args:
        root: the outermost folder, which may be a link.
        folders: their names, from the outside in; those that are not there yet are fine.
    """
    place = root.rstrip("/")
    for folder in folders:
        place = f"{place}/{folder}"
        try:
            is_link = stat.S_ISLNK(os.lstat(place).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            break
        if is_link and not (os.path.exists(place) and leads_inside(root, place)):
            return place
    return ""


def leads_inside(root: str, place: str) -> bool:
    """Whether a path with its links resolved lies below a folder."""
    inside = os.path.realpath(root)
    return os.path.commonpath([inside, os.path.realpath(place)]) == inside


def _write_synced(path: str, data: Buffer) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: str) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network mounts cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _walk(
    start: str, prefix: str, below: list[str] | None = None, *, strangers: dict[str, str] | None = None
) -> Iterator[StoredFile]:
    """Files at any depth; with ``below`` only those right here, and the folders' paths are added to it.

    Links, pipes and devices are none; with ``strangers`` what they are is added to it by their paths.
    """
    folders = [(start, prefix)]
    while folders:
        folder, relative = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            path = f"{relative}/{entry.name}" if relative else entry.name
            with suppress(FileNotFoundError):  # renamed or removed since it was listed
                if entry.is_dir(follow_symlinks=False):
                    if below is None:
                        folders.append((entry.path, path))
                    else:
                        below.append(path)
                elif entry.is_file(follow_symlinks=False):
                    yield StoredFile(path, entry.stat(follow_symlinks=False).st_size)
                elif strangers is not None:
                    strangers[path] = kind_of(entry.stat(follow_symlinks=False).st_mode)
