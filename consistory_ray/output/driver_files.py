"""Objects behind an fsspec driver: replaced by one PUT where the storage takes whole objects, else moved into place.

Listings are never remembered. Large data is not copied as a whole on its way into a driver.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from fsspec.dircache import DirCache

from consistory_ray.guards.outside import refuse_size
from consistory_ray.guards.places import Place
from consistory_ray.output.files import Buffer, StoredFile, temporary_name

LARGE = 128 << 20
"""Bytes from which on the drivers upload in several parts, and a copy begins to matter."""

_WHOLE_PUTS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "memory"})
_SLICED = frozenset({"s3", "s3a"})  # botocore takes bytes and bytearrays for a part's body, and no views
_VIEWED = frozenset({"gs", "gcs", "memory"})


@dataclass(frozen=True)
class DriverFiles:
    """The objects of an output that is not local, see :class:`~consistory_ray.output.files.Files`.

    Attributes:
        fs: the fsspec file system.
        before_folders: is called before a folder is made, where there are folders; may raise.
    """

    fs: Any
    before_folders: Callable[[], None]

    @property
    def leaves_temporaries(self) -> bool:
        return not protocols(self.fs) & _WHOLE_PUTS

    def read(self, full: str, limit: int | None) -> bytes:
        if limit is not None and (size := int(self.fs.info(full).get("size") or 0)) > limit:
            refuse_size(size, limit)
        return bytes(self.fs.cat_file(full))

    def open(self, full: str) -> BinaryIO:
        return cast("BinaryIO", self.fs.open(full, "rb"))

    def is_file(self, full: str) -> bool:
        return bool(self.fs.info(full)["type"] == "file")  # isfile takes every error for an absent file

    def replace(self, full: str, data: Buffer) -> None:
        if not self.leaves_temporaries:
            self.fs.pipe_file(full, payload(self.fs, data))
            return
        folder, name = full.rsplit("/", 1)
        temporary = f"{folder}/{temporary_name(name)}"
        self.before_folders()
        self.fs.makedirs(folder, exist_ok=True)
        try:
            self.fs.pipe_file(temporary, bytes(data))
            self.fs.mv(temporary, full)
        except BaseException:
            with suppress(Exception):
                self.fs.rm_file(temporary)
            raise

    def create(self, full: str, data: Buffer) -> None:
        try:
            self.fs.pipe_file(full, bytes(data), mode="create")
        except OSError as error:
            if error.errno != errno.EINVAL:  # what some S3 servers' "precondition failed" becomes
                raise
            try:
                self.fs.info(full)
            except FileNotFoundError:
                raise error from None
            raise FileExistsError(errno.EEXIST, "it is there already", full) from error

    def copy(self, source: str, target: str) -> None:
        self.fs.cp_file(source, target)

    def delete(self, full: str) -> None:
        self.fs.rm_file(full)

    def written_at(self, full: str) -> float:
        return float(self.fs.modified(full).timestamp())

    def below(self, folder: str, prefix: str) -> list[StoredFile]:
        start = folder.rstrip("/") + "/"
        try:
            found = self.fs.find(folder, detail=True)
        except FileNotFoundError:
            return []
        named = f"{prefix}/" if prefix else ""
        return [
            StoredFile(named + name[len(start) :], int(info["size"]))
            for name, info in found.items()
            if name.startswith(start)
        ]

    def in_folder(self, folder: str, prefix: str) -> tuple[list[StoredFile], list[str]]:
        files, folders = [], []
        try:
            found = self.fs.ls(folder, detail=True)
        except FileNotFoundError:
            return [], []
        for info in found:
            if not (name := str(info["name"]).rstrip("/").rsplit("/", 1)[-1]):
                continue
            if info["type"] == "directory":
                folders.append(f"{prefix}/{name}")
            else:
                files.append(StoredFile(f"{prefix}/{name}", int(info["size"] or 0)))
        return files, folders


def driver(place: Place, options: dict[str, Any]) -> tuple[Any, str]:
    """The file system of an address, told to remember no listings, which would hide what others wrote; and its path.

    File systems are shared within a process: whatever an earlier output made one remember is forgotten.

    Raises:
        ImportError: the driver is not installed.
        ValueError: there is no such kind of URL.
    """
    try:
        fs, root = place.filesystem(**{"use_listings_cache": False, **options})
    except TypeError:  # one that does not know the option, or hands it on to its client
        fs, root = place.filesystem(**options)
    if getattr(getattr(fs, "dircache", None), "use_listings_cache", False):
        fs.dircache = DirCache(use_listings_cache=False)
    fs.invalidate_cache()
    return fs, root


def protocols(fs: Any) -> set[str]:
    """What a file system's URLs begin with."""
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


class Pieces:
    """Bytes of which only those asked for are copied; what a multipart upload needs of ``bytes``."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def __len__(self) -> int:
        return self._data.nbytes

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self._data[part])


def payload(fs: Any, data: Buffer) -> Any:
    """What ``fs.pipe_file`` is given for ``data``: the bytes, or what stands for them where the driver is known.

    Args:
        fs: an fsspec file system of an object store.
        data: the object's content; must not change until it is uploaded.
    """
    if isinstance(data, bytes):
        return data
    view = memoryview(data).cast("B")
    if view.nbytes >= LARGE and protocols(fs) & _SLICED:
        return Pieces(view)
    if view.nbytes >= LARGE and protocols(fs) & _VIEWED:
        return view
    return bytes(view)
