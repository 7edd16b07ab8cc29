"""What a driver is handed as a whole object: large data must not be copied as a whole to get there."""

from __future__ import annotations

from typing import Any

Buffer = bytes | bytearray | memoryview

LARGE = 128 << 20
"""Bytes from which on the drivers upload in several parts, and a copy begins to matter."""

_SLICED = frozenset({"s3", "s3a"})  # botocore takes bytes and bytearrays for a part's body, and no views
_VIEWED = frozenset({"gs", "gcs", "memory"})


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
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if view.nbytes >= LARGE and protocols & _SLICED:
        return Pieces(view)
    if view.nbytes >= LARGE and protocols & _VIEWED:
        return view
    return bytes(view)
