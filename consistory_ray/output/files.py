"""What files on a disk and objects behind a driver have in common: the few things a store does with either.

The two kinds are in :mod:`.local_files` and :mod:`.driver_files`. Their paths are full ones, as file systems name them.
"""

from __future__ import annotations

import re
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeVar

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")
R = TypeVar("R")

THREADS = 16
_WAITING_PER_THREAD = 4
_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{32}\.tmp$")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file under an output: its path relative to the root, and its size in bytes."""

    path: str
    size: int

    @property
    def is_temporary(self) -> bool:
        """Whether it is a file that :func:`temporary_name` named: being written, or left by a killed writer."""
        return _TEMPORARY.match(self.path.rsplit("/", 1)[-1]) is not None


class Files(Protocol):
    """One kind of storage. Every method raises what its file system raises: OSError, or a driver's own family."""

    @property
    def leaves_temporaries(self) -> bool:
        """Whether a killed writer may leave a temporary file behind."""
        ...

    def read(self, full: str, limit: int | None) -> bytes:
        """A file's content, which is refused beyond ``limit`` bytes with :class:`.guards.outside.TooLarge`."""
        ...

    def open(self, full: str) -> BinaryIO:
        """A file to be read piece by piece."""
        ...

    def is_file(self, full: str) -> bool:
        """Whether it is a file; what is not there raises FileNotFoundError or NotADirectoryError."""
        ...

    def replace(self, full: str, data: Buffer) -> None:
        """Write a file whole: a reader sees what was there before or this."""
        ...

    def create(self, full: str, data: Buffer) -> None:
        """Write a file that is not there; FileExistsError where it is."""
        ...

    def copy(self, source: str, target: str) -> None:
        """Give a file a second name, on the storage's side."""
        ...

    def delete(self, full: str) -> None:
        """Remove a file."""
        ...

    def written_at(self, full: str) -> float:
        """When a file was last written, in seconds since 1970."""
        ...

    def below(self, folder: str, prefix: str) -> list[StoredFile]:
        """All files below a folder at any depth, named from ``prefix`` on; none where there is no such folder."""
        ...

    def in_folder(self, folder: str, prefix: str) -> tuple[list[StoredFile], list[str]]:
        """The files right in a folder, and the folders in it, named from ``prefix`` on."""
        ...


def temporary_name(name: str) -> str:
    """What a file is called while it is written, beside its place."""
    # starts with a dot and does not end like the file, so that no reader's pattern picks it up; at most 255 bytes
    return f".{name.encode()[:200].decode(errors='ignore')}.{uuid.uuid4().hex}.tmp"


def bounded_map(action: Callable[[T], R], items: Iterable[T], threads: int = THREADS) -> Iterator[R]:
    """``map`` in threads, for many small operations on a storage, with a bound on how many results wait.

    Results come in the order of ``items``, which are taken only a little ahead of the results.

    Raises:
        Exception: the first that ``action`` raised, in the order of ``items``; what was not started is not.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(action, item))
                if len(waiting) >= threads * _WAITING_PER_THREAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
