"""Where a run's files live: paths below one output, writes whole or absent, errors with their address and cause.

Local files are written to a temporary name in the same folder, synced, and renamed (:mod:`.local_files`). Object stores
replace an object in one PUT, which is atomic by itself (:mod:`.driver_files`). Nothing here relies on the order of a
listing.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from consistory_ray.errors import ConsistoryError, DiskFullError, InputError, Problem, StorageError
from consistory_ray.guards.outside import NotAFile, TooLarge, kind_of
from consistory_ray.guards.places import place_of, without_user
from consistory_ray.output.driver_files import DriverFiles, driver
from consistory_ray.output.files import Buffer, Files, StoredFile, bounded_map
from consistory_ray.output.local_files import LocalFiles, first_bad_link, strangers

_BLOCK = 8 << 20
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
_MOST_BYTES = {"run.json": 1 << 30, "subject.json": 1 << 20, "sha256": 4 << 10, "png": 256 << 20, "json": 64 << 20}
_MOST_BYTES |= {"jpg": 256 << 20, "webp": 256 << 20}
"""By a file's name, else by its ending. A job of a million scenes makes a run.json of a fifth of that."""
FOLDERS = ("anchors", "dataset", "evaluation", "gallery", "images", "index", "inputs", "lease")
"""The folders of an output that only runs write to."""
PICTURE_FOLDERS = ("anchors", "images")
"""Those of them that hold pictures."""
SET_ASIDE = "damaged"
"""The folder that what cannot be used is moved to."""
_log = logging.getLogger(__name__)


class MissingFileError(StorageError):
    """The file asked for is not there."""


class UnfitFileError(StorageError):
    """What is in a file's place cannot be that file: a link, a pipe, a device, a folder, or far too large."""

    lasting = True


class LinkedFolderError(StorageError):
    """A folder of the output is a link that leads out of it: nothing is read or written there."""

    lasting = True


class VanishedError(StorageError):
    """The output that was begun is not there any more: it was deleted, moved, or its file system unmounted."""


@dataclass(frozen=True)
class OutputStore:
    """The files of one output URL. It can be pickled and used from several threads.

    All paths are relative to the root, use ``/`` and may not leave the root. Every method raises StorageError, with the
    URL and the cause, when the storage fails; DiskFullError, which is one, when there is no space left.

    Attributes:
        fs: the fsspec file system.
        root: the output's folder as ``fs`` names it, without a trailing slash; absolute for local files.
        marker: a path below the root without which no folder is made: where an output has begun, see :meth:`begun`.
    """

    fs: Any
    root: str
    marker: str = field(default="", kw_only=True)

    def begun(self, marker: str) -> OutputStore:
        """The same store, of which ``marker`` is known to be there: once it is gone, so is the output.

        Where there are folders, one that is missing is then made only beside the marker. So whoever goes on writing
        after a deletion or ``umount`` is told, and leaves nothing in a bare mount point.
        """
        return replace(self, marker=marker)

    @property
    def is_local(self) -> bool:
        """Whether the files are on a mounted file system, where rename and hard links are atomic."""
        return isinstance(self.fs, LocalFileSystem)

    @property
    def _files(self) -> Files:
        made = self._refuse_if_vanished
        return LocalFiles(made) if self.is_local else DriverFiles(self.fs, made)

    @property
    def url(self) -> str:
        """The output's address, absolute, without credentials: what to show, and to hand to another process."""
        return self.root if self.is_local else without_user(str(self.fs.unstrip_protocol(self.root)))

    def join(self, path: str) -> str:
        """The full path of a file, as ``fs`` names it.

        Raises:
            InputError: ``path`` is absolute, empty, has a scheme, or has a part that could leave the root.
        """
        parts = path.split("/")
        bad_part = any(part in ("", ".", "..") for part in parts)
        if bad_part or "\\" in path or not path.isprintable() or _SCHEME.match(path):
            fix = "use a relative path below the output, with / between its parts and no '.' or '..' among them"
            raise InputError("a path would leave the output", [Problem("path", ascii(path), fix)])
        return f"{self.root}/{path}" if self.root not in ("", "/") else f"{self.root}{path}"

    def read(self, path: str) -> bytes:
        """The whole content of a file.

        Raises:
            MissingFileError: there is no such file.
            UnfitFileError: it is larger than a file of its name can be, see :func:`most_bytes`, or something else than
                a file has its place.
            LinkedFolderError: a link among its folders leads out of the output.
        """
        full = self._place(path, "read")
        with self._errors("read", path):
            return self._files.read(full, most_bytes(path))

    def sha256(self, path: str) -> str:
        """SHA-256 of a file of any size, 64 hexadecimal digits, read a few megabytes at a time.

        Raises:
            MissingFileError: there is no such file.
        """
        full, digest = self._place(path, "read"), hashlib.sha256()
        with self._errors("read", path), self._files.open(full) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def exists(self, path: str) -> bool:
        """Whether there is a file of that name right now. A storage that fails is an error, not an absent file."""
        full = self._place(path, "look up")
        with self._errors("look up", path):
            try:
                return self._files.is_file(full)
            except (FileNotFoundError, NotADirectoryError):
                return False

    def write_atomic(self, path: str, data: Buffer) -> None:
        """Write a file so that a reader sees the old content or the new, never a part; parents are made.

        When this returns, a local file is on the disk (synced, its folder too).
        """
        full = self._place(path, "write")
        with self._errors("write", path):
            self._with_a_clear_way(path, lambda: self._files.replace(full, data))

    def create_exclusive(self, path: str, data: Buffer) -> bool:
        """Write a file only if there is none: of several writers exactly one creates it.

        Returns:
            True when the file now holds ``data``, False when it holds something else. Two writers of *equal* bytes both
            get True (a retried request cannot be told from its own first try): a lease must hold a unique token.
        """
        full = self._place(path, "create")
        with self._errors("create", path):
            try:
                self._with_a_clear_way(path, lambda: self._files.create(full, data))
                return True
            except FileExistsError:
                return self.read(path) == data

    def copy(self, path: str, other: str) -> None:
        """Give a file a second name: a hard link where there are such, else a copy on the storage's side.

        What was there under the other name is replaced, whole; parents are made.
        """
        source, target = self._place(path, "copy"), self._place(other, "write")
        with self._errors("copy", path):
            self._files.copy(source, target)

    def is_obstructed(self, path: str) -> bool:
        """Whether something that is no file of its own has that name: a folder, a link, a pipe, a device."""
        if not self.is_local:  # object stores have nothing else; elsewhere it shows when the file is made
            return False
        try:
            return not stat.S_ISREG(os.lstat(self.join(path)).st_mode)
        except OSError:
            return False

    def list_files(self, prefix: str = "") -> list[StoredFile]:
        """All files below a folder, at any depth, sorted by path; none when the folder is missing."""
        return [file for file in self._walk(prefix) if not file.is_temporary]

    def iter_files(self, prefix: str) -> Iterator[StoredFile]:
        """:meth:`list_files` in no order, one folder below ``prefix`` after the other, so that memory stays bounded."""
        start = self._place(prefix, "list", and_itself=True)
        with self._errors("list", prefix):
            files, folders = self._files.in_folder(start, prefix)
        yield from (file for file in files if not file.is_temporary)
        for listed in bounded_map(self.list_files, folders):
            yield from listed

    def delete(self, path: str) -> None:
        """Remove a file; one that is already gone is no error."""
        full = self._place(path, "delete")
        with self._errors("delete", path), suppress(FileNotFoundError):
            self._files.delete(full)

    def sweep_temporaries(self, older_than_seconds: float = 3600.0) -> int:
        """Remove temporary files that killed writers left behind; returns how many. Object stores have none."""
        if not self._files.leaves_temporaries:
            return 0
        limit = time.time() - older_than_seconds
        swept = 0
        for file in self._walk(""):
            if not file.is_temporary:
                continue
            with self._errors("sweep", file.path), suppress(FileNotFoundError):
                full = self.join(file.path)
                if self._files.written_at(full) <= limit:
                    self._files.delete(full)
                    swept += 1
        return swept

    def strangers(self) -> dict[str, str]:
        """What lies in a local output and is neither a file nor a folder, with what it is, by path.

        A link is not followed; one to a folder of the same output is none. Object stores have none of these.
        """
        if not self.is_local:
            return {}
        with self._errors("list", ""):
            return strangers(self.root)

    def move_aside(self, path: str) -> str:
        """Move whatever has a place, a file or not, to the folder ``damaged``; only in local outputs.

        Returns:
            Where it is now; empty when there was nothing.
        """
        full = self._place(path, "move")
        aside = f"{SET_ASIDE}/{path}-{uuid.uuid4().hex[:8]}"
        with self._errors("move", path), suppress(FileNotFoundError):
            os.makedirs(os.path.dirname(self._place(aside, "write")), exist_ok=True)
            os.rename(full, self.join(aside))
            return aside
        return ""

    def _place(self, path: str, action: str, *, and_itself: bool = False) -> str:
        """:meth:`join`, for a local output only if no folder on the way leads out of it."""
        full = self.join(path)
        if self.is_local:
            with self._errors(action, path):
                parts = path.split("/")
                link = first_bad_link(self.root, parts if and_itself else parts[:-1])
                if link and not os.path.exists(link):  # as a mount that is gone, and may come back
                    what = f"{link} is a link to a place that is not there"
                    raise StorageError(f"could not {action} {self._name(path)}: {what}")
                if link:
                    advice = "remove the link, or render into the place that it leads to"
                    what = f"{link} is a link that leads out of the output"
                    raise LinkedFolderError(f"could not {action} {self._name(path)}: {what}; {advice}")
        return full

    def _with_a_clear_way(self, path: str, action: Callable[[], None]) -> None:
        """Write a file; what is no file in its place on a disk, and no folder before it, goes aside."""
        if not self.is_local:
            action()
            return
        try:
            action()
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            parts = path.split("/")
            ways = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
            moved = [self.move_aside(way) for way in ways if self._is_in_the_way(way, is_folder=way != path)]
            if not moved:
                raise
            _log.warning("%s was in the way of a file and was moved to %s", self._name(path), self._name(moved[-1]))
            action()

    def _is_in_the_way(self, path: str, *, is_folder: bool) -> bool:
        try:
            mode = os.lstat(self.join(path)).st_mode
        except OSError:
            return False
        if not is_folder:
            return bool(kind_of(mode))
        return path.split("/")[0] in FOLDERS and kind_of(mode) not in ("a folder", "a link")

    def _refuse_if_vanished(self) -> None:
        """Go on only if this output is still the one that was begun.

        Raises:
            VanishedError: its marker is gone.
        """
        if not self.marker:
            return
        marker = self.join(self.marker)
        if not (os.path.lexists(marker) if self.is_local else self.fs.exists(marker)):
            why = "it was deleted, moved, or is not mounted any more"
            raise VanishedError(f"{self.url} is not the output that was begun, there is no {self.marker}: {why}")

    def _walk(self, prefix: str) -> list[StoredFile]:
        start = self._place(prefix, "list", and_itself=True) if prefix else self.root
        with self._errors("list", prefix):
            return sorted(self._files.below(start, prefix), key=lambda file: file.path)

    @contextmanager
    def _errors(self, action: str, path: str) -> Iterator[None]:
        try:
            yield
        except ConsistoryError:
            raise
        except FileNotFoundError as error:
            kind = MissingFileError if action == "read" else StorageError
            raise kind(f"could not {action} {self._name(path)}: {_cause(error)}") from error
        except (NotAFile, TooLarge) as error:
            raise UnfitFileError(f"could not {action} {self._name(path)}: {error.strerror}") from error
        except Exception as error:  # drivers raise their own families: botocore, aiohttp, gcsfs, timeouts
            if isinstance(error, OSError) and error.errno in _NO_SPACE:
                advice = "make room there, then the same command resumes"
                raise DiskFullError(f"could not {action} {self._name(path)}: {_cause(error)}; {advice}") from error
            raise StorageError(f"could not {action} {self._name(path)}: {_cause(error)}") from error

    def _name(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}" if path else self.url


Output = str | os.PathLike[str] | OutputStore
"""An output, or its address."""


def most_bytes(path: str) -> int | None:
    """How large a file of an output can be, by its name; None where there is no limit, as for anchor caches."""
    if path.startswith("lease/"):
        return 64 << 10
    name = path.rsplit("/", 1)[-1]
    return _MOST_BYTES.get(name, _MOST_BYTES.get(name.rsplit(".", 1)[-1]))


def open_output(url: str | os.PathLike[str], **storage_options: Any) -> OutputStore:
    """Open an output by its address; nothing is created or contacted yet.

    Args:
        url: a folder, or any fsspec URL such as ``s3://bucket/run``.
        storage_options: passed to the fsspec file system (an endpoint, credentials).

    Raises:
        InputError: the address cannot be understood, or its driver is not installed.
    """
    text = os.fspath(url)
    if not text.strip() or "\0" in text or "::" in text:
        raise _bad_url(text, "give a folder or an fsspec URL such as s3://bucket/run (chained URLs are not supported)")
    place = place_of(text, "output")
    try:
        fs, root = place.filesystem(**storage_options) if place.is_local else driver(place, storage_options)
    except ImportError as error:
        raise _bad_url(text, f"install the driver for {place.scheme}:// ({error})") from error
    except ValueError as error:
        raise _bad_url(text, f"give a folder or a known fsspec URL ({error})") from error
    return OutputStore(fs, root.rstrip("/") or root)


def as_store(output: Output) -> OutputStore:
    """``output`` itself when it is a store, else the store at that address."""
    return output if isinstance(output, OutputStore) else open_output(output)


def _bad_url(url: str, fix: str) -> InputError:
    return InputError("the output cannot be used", [Problem("output", ascii(without_user(url)), fix)])


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
