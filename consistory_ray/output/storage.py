"""Where a run's files live: a thin layer over fsspec that makes every write whole or absent.

Local files are written to a temporary name in the same folder, synced, and renamed. Object stores replace an object
in one PUT, which is atomic by itself. Nothing here relies on the order of a listing.
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
from typing import Any, TypeVar

from fsspec.dircache import DirCache
from fsspec.implementations.local import LocalFileSystem

from consistory_ray.errors import ConsistoryError, DiskFullError, InputError, Problem, StorageError
from consistory_ray.guards.outside import NotAFile, TooLarge, kind_of, open_regular, read_regular, refuse_size
from consistory_ray.guards.places import Place, place_of
from consistory_ray.output.parallel import bounded_map
from consistory_ray.output.uploads import payload

Buffer = bytes | bytearray | memoryview
_T = TypeVar("_T")

_WHOLE_PUT_PROTOCOLS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "memory"})
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_BLOCK = 8 << 20
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{32}\.tmp$")
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")
_MOST_BYTES = {"run.json": 1 << 30, "subject.json": 1 << 20, "sha256": 4 << 10, "png": 256 << 20, "json": 64 << 20}
"""By a file's name, else by its ending. A job of a million scenes makes a run.json of a fifth of that."""
FOLDERS = ("anchors", "dataset", "gallery", "images", "index", "lease")
"""The folders of an output that only runs write to."""
SET_ASIDE = "damaged"
"""The folder that what cannot be used is moved to."""
_log = logging.getLogger(__name__)
_USER_INFO = re.compile(r"://[^/@\s]*@")


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


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file under an output: its path relative to the root, and its size in bytes."""

    path: str
    size: int


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
    def url(self) -> str:
        """The output's address, absolute, without credentials: what to show, and to hand to another process."""
        return self.root if self.is_local else _redact(str(self.fs.unstrip_protocol(self.root)))

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
        full, limit = self._place(path, "read"), most_bytes(path)
        with self._errors("read", path):
            if self.is_local:
                return read_regular(full, limit)
            if limit is not None and (size := int(self.fs.info(full).get("size") or 0)) > limit:
                refuse_size(size, limit)
            return bytes(self.fs.cat_file(full))

    def sha256(self, path: str) -> str:
        """SHA-256 of a file of any size, 64 hexadecimal digits, read a few megabytes at a time.

        Raises:
            MissingFileError: there is no such file.
        """
        full, digest = self._place(path, "read"), hashlib.sha256()
        with (
            self._errors("read", path),
            open_regular(full) if self.is_local else self.fs.open(full, "rb") as file,
        ):
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def exists(self, path: str) -> bool:
        """Whether there is a file of that name right now. A storage that fails is an error, not an absent file."""
        full = self._place(path, "look up")
        with self._errors("look up", path):
            try:
                if self.is_local:
                    return stat.S_ISREG(os.lstat(full).st_mode)
                return bool(self.fs.info(full)["type"] == "file")  # isfile takes every error for an absent file
            except (FileNotFoundError, NotADirectoryError):
                return False

    def write_atomic(self, path: str, data: Buffer) -> None:
        """Write a file so that a reader sees the old content or the new, never a part; parents are made.

        When this returns, a local file is on the disk (synced, its folder too).
        """
        full = self._place(path, "write")
        with self._errors("write", path):
            if self.is_local:
                self._with_a_clear_way(path, lambda: _replace_local(full, data, self._make_folder))
            elif self._puts_whole_objects():
                self.fs.pipe_file(full, payload(self.fs, data))
            else:
                self._write_by_move(full, data)

    def create_exclusive(self, path: str, data: Buffer) -> bool:
        """Write a file only if there is none: of several writers exactly one creates it.

        Returns:
            True when the file now holds ``data``, False when it holds something else. Two writers of *equal* bytes both
            get True (a retried request cannot be told from its own first try): a lease must hold a unique token.
        """
        full = self._place(path, "create")
        with self._errors("create", path):
            try:
                if self.is_local:
                    self._with_a_clear_way(path, lambda: _create_local(full, data, self._make_folder))
                else:
                    self.fs.pipe_file(full, bytes(data), mode="create")
                return True
            except FileExistsError:
                return self.read(path) == data
            except OSError as error:
                if error.errno != errno.EINVAL:  # what some S3 servers' "precondition failed" becomes
                    raise
                try:
                    return self.read(path) == data
                except MissingFileError:
                    raise error from None

    def copy(self, path: str, other: str) -> None:
        """Give a file a second name: a hard link where there are such, else a copy on the storage's side.

        What was there under the other name is replaced, whole; parents are made.
        """
        source, target = self._place(path, "copy"), self._place(other, "write")
        with self._errors("copy", path):
            if not self.is_local:
                self.fs.cp_file(source, target)
                return
            folder, name = os.path.split(target)
            temporary = os.path.join(folder, _temporary_name(name))
            try:
                _making_folder(folder, lambda: os.link(source, temporary), self._make_folder)
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                self.write_atomic(other, self.read(path))
                return
            os.replace(temporary, target)
            with suppress(FileNotFoundError):
                os.unlink(temporary)  # rename does nothing where both are the same file
            _sync_folder(folder)

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
        return [file for file in self._walk(prefix) if not _TEMPORARY.match(file.path.rsplit("/", 1)[-1])]

    def iter_files(self, prefix: str) -> Iterator[StoredFile]:
        """:meth:`list_files` in no order, one folder below ``prefix`` after the other, so that memory stays bounded."""
        start = self._place(prefix, "list", and_itself=True)
        with self._errors("list", prefix):
            if self.is_local:
                folders: list[str] = []
                entries = [StoredFile(file.path, file.size) for file in _walk_local(start, prefix, folders)]
            else:
                found = self._entries(start)
                entries = [StoredFile(f"{prefix}/{name}", size) for name, size, folder in found if not folder]
                folders = [f"{prefix}/{name}" for name, _, folder in found if folder]
        yield from (file for file in entries if not _TEMPORARY.match(file.path.rsplit("/", 1)[-1]))
        for listed in bounded_map(self.list_files, folders):
            yield from listed

    def _entries(self, start: str) -> list[tuple[str, int, bool]]:
        try:
            found = self.fs.ls(start, detail=True)
        except FileNotFoundError:
            return []
        names = ((str(info["name"]).rstrip("/").rsplit("/", 1)[-1], info) for info in found)
        return [(name, int(info["size"] or 0), info["type"] == "directory") for name, info in names if name]

    def delete(self, path: str) -> None:
        """Remove a file; one that is already gone is no error."""
        full = self._place(path, "delete")
        with self._errors("delete", path), suppress(FileNotFoundError):
            os.unlink(full) if self.is_local else self.fs.rm_file(full)

    def sweep_temporaries(self, older_than_seconds: float = 3600.0) -> int:
        """Remove temporary files that killed writers left behind; returns how many. Object stores have none."""
        if self._puts_whole_objects():
            return 0
        limit = time.time() - older_than_seconds
        swept = 0
        for file in self._walk(""):
            if not _TEMPORARY.match(file.path.rsplit("/", 1)[-1]):
                continue
            with self._errors("sweep", file.path), suppress(FileNotFoundError):
                full = self.join(file.path)
                if self.fs.modified(full).timestamp() <= limit:
                    self.fs.rm_file(full)
                    swept += 1
        return swept

    def strangers(self) -> dict[str, str]:
        """What lies in a local output and is neither a file nor a folder, with what it is, by path.

        A link is not followed; one to a folder of the same output is none. Object stores have none of these.
        """
        if not self.is_local:
            return {}
        found: dict[str, str] = {}
        with self._errors("list", ""):
            for _ in _walk_local(self.root, "", strangers=found):
                pass
        links = (path for path, kind in found.items() if kind == "a link")
        folders = {path for path in links if os.path.isdir(self.join(path)) and self._leads_inside(self.join(path))}
        return {path: kind for path, kind in found.items() if path not in folders}

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
                place = self.root.rstrip("/")
                for part in parts if and_itself else parts[:-1]:
                    place = f"{place}/{part}"
                    try:
                        is_link = stat.S_ISLNK(os.lstat(place).st_mode)
                    except (FileNotFoundError, NotADirectoryError):
                        break
                    if is_link and not os.path.exists(place):  # as a mount that is gone, and may come back
                        what = f"{place} is a link to a place that is not there"
                        raise StorageError(f"could not {action} {self._name(path)}: {what}")
                    if is_link and not self._leads_inside(place):
                        advice = "remove the link, or render into the place that it leads to"
                        what = f"{place} is a link that leads out of the output"
                        raise LinkedFolderError(f"could not {action} {self._name(path)}: {what}; {advice}")
        return full

    def _leads_inside(self, place: str) -> bool:
        inside = os.path.realpath(self.root)
        return os.path.commonpath([inside, os.path.realpath(place)]) == inside

    def _with_a_clear_way(self, path: str, action: Callable[[], None]) -> None:
        """Do something that writes a local file; what is no file in its place, and no folder before it, goes aside."""
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

    def _puts_whole_objects(self) -> bool:
        protocol = self.fs.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        return bool(names & _WHOLE_PUT_PROTOCOLS)

    def _write_by_move(self, full: str, data: Buffer) -> None:
        folder, name = full.rsplit("/", 1)
        temporary = f"{folder}/{_temporary_name(name)}"
        self._make_folder(folder)
        try:
            self.fs.pipe_file(temporary, bytes(data))
            self.fs.mv(temporary, full)
        except BaseException:
            with suppress(Exception):
                self.fs.rm_file(temporary)
            raise

    def _make_folder(self, folder: str) -> None:
        """Make a folder, if this output is still the one that was begun.

        Raises:
            VanishedError: its marker is gone.
        """
        if self.marker:
            marker = self.join(self.marker)
            if not (os.path.lexists(marker) if self.is_local else self.fs.exists(marker)):
                why = "it was deleted, moved, or is not mounted any more"
                raise VanishedError(f"{self.url} is not the output that was begun, there is no {self.marker}: {why}")
        os.makedirs(folder, exist_ok=True) if self.is_local else self.fs.makedirs(folder, exist_ok=True)

    def _walk(self, prefix: str) -> list[StoredFile]:
        start = self._place(prefix, "list", and_itself=True) if prefix else self.root
        with self._errors("list", prefix):
            if self.is_local:
                return sorted(_walk_local(start, prefix), key=lambda file: file.path)
            try:
                found = self.fs.find(start, detail=True)
            except FileNotFoundError:
                return []
        cut = len(self.root.rstrip("/")) + 1
        below = start.rstrip("/") + "/"
        files = [StoredFile(name[cut:], int(info["size"])) for name, info in found.items() if name.startswith(below)]
        return sorted(files, key=lambda file: file.path)

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
    protocol = place.scheme
    try:
        fs, root = _file_system(place, storage_options)
    except ImportError as error:
        raise _bad_url(text, f"install the driver for {protocol}:// ({error})") from error
    except ValueError as error:
        raise _bad_url(text, f"give a folder or a known fsspec URL ({error})") from error
    root = str(root)
    fs.invalidate_cache()  # file systems are shared within a process: whatever an earlier output made them remember
    return OutputStore(fs, root.rstrip("/") or root)


def _file_system(place: Place, options: dict[str, Any]) -> tuple[Any, str]:
    """The file system of an address, told to remember no listings: they would hide what another process wrote."""
    if place.is_local:
        return place.filesystem(**options)
    try:
        fs, root = place.filesystem(**{"use_listings_cache": False, **options})
    except TypeError:  # one that does not know the option, or hands it on to its client
        fs, root = place.filesystem(**options)
    if getattr(getattr(fs, "dircache", None), "use_listings_cache", False):
        fs.dircache = DirCache(use_listings_cache=False)
    return fs, root


def as_store(output: str | os.PathLike[str] | OutputStore) -> OutputStore:
    """``output`` itself when it is a store, else the store at that address."""
    return output if isinstance(output, OutputStore) else open_output(output)


def _bad_url(url: str, fix: str) -> InputError:
    return InputError("the output cannot be used", [Problem("output", ascii(_redact(url)), fix)])


def _redact(url: str) -> str:
    return _USER_INFO.sub("://", url)


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _temporary_name(name: str) -> str:
    # starts with a dot and does not end like the file, so that no reader's pattern picks it up; at most 255 bytes
    return f".{name.encode()[:200].decode(errors='ignore')}.{uuid.uuid4().hex}.tmp"


@contextmanager
def _local_temporary(full: str, data: Buffer, make_folder: Callable[[str], None]) -> Iterator[str]:
    """A synced temporary file with ``data`` beside ``full``; removed at the end if it is still there."""
    folder, name = os.path.split(full)
    temporary = os.path.join(folder, _temporary_name(name))
    try:
        with _making_folder(folder, lambda: open(temporary, "xb"), make_folder) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _making_folder(folder: str, action: Callable[[], _T], make_folder: Callable[[str], None]) -> _T:
    """Run ``action``, making its folder only when it turns out to be missing: one system call less per file."""
    try:
        return action()
    except FileNotFoundError:
        make_folder(folder)
        return action()


def _replace_local(full: str, data: Buffer, make_folder: Callable[[str], None]) -> None:
    with _local_temporary(full, data, make_folder) as temporary:
        os.replace(temporary, full)
    _sync_folder(os.path.dirname(full))


def _create_local(full: str, data: Buffer, make_folder: Callable[[str], None]) -> None:
    with _local_temporary(full, data, make_folder) as temporary:
        try:
            os.link(temporary, full)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # no hard links here (some network and FAT mounts): exclusive, though not whole if killed right now
            with open(full, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    _sync_folder(os.path.dirname(full))


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


def _walk_local(
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
