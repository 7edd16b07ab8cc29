"""Anchor caches under the run's URL: what the object store holds is only a copy of these files.

Beside each cache lies its SHA-256 in the format of ``sha256sum``; it is written after the cache, so a cache without one
is not finished.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from consistory_ray.engine.rendering import CacheBuffer
from consistory_ray.output.storage import MissingFileError, OutputStore, UnfitFileError, open_output


@dataclass(frozen=True, slots=True)
class StoredCache:
    """What was found in an anchor cache's place.

    Attributes:
        buffer: its bytes, read-only; None where it is missing, unfinished or damaged.
        sha256: as its checksum file says; empty if there is none.
        problem: why it cannot be used; empty where it can, and where there simply is none.
    """

    buffer: CacheBuffer | None = None
    sha256: str = ""
    problem: str = ""


def cache_digest(buffer: CacheBuffer) -> str:
    """SHA-256 of a cache, 64 hexadecimal digits."""
    return hashlib.sha256(buffer.data).hexdigest()


def save_cache(store: OutputStore, path: str, buffer: CacheBuffer, digest: str | None = None) -> str:
    """Write a cache and its checksum; returns the checksum, 64 hexadecimal digits.

    Raises:
        StorageError: the storage failed; a cache without a matching checksum is not loaded.
    """
    digest = digest or cache_digest(buffer)
    store.write_atomic(path, buffer.data)
    store.write_atomic(checksum_path(path), f"{digest}  {path.rsplit('/', 1)[-1]}\n".encode())
    return digest


def load_cache(store: OutputStore, path: str) -> StoredCache:
    """Read a cache.

    Raises:
        StorageError: the storage failed in another way than by not having the file.
    """
    expected = stored_digest(store, path)
    try:
        data = store.read(path)
    except MissingFileError:
        return StoredCache(None, expected)
    except UnfitFileError as error:
        return StoredCache(None, expected, str(error))
    if not expected:  # its writer was killed before it was finished
        return StoredCache()
    if hashlib.sha256(data).hexdigest() != expected:
        problem = f"{path} is damaged (its SHA-256 differs from {checksum_path(path)})"
        return StoredCache(None, expected, problem)
    return StoredCache(np.frombuffer(data, dtype=np.uint8), expected)


def stored_digest(store: OutputStore, path: str) -> str:
    """The SHA-256 that was written beside a cache; empty if there is none, "unreadable" if it cannot be understood.

    Raises:
        StorageError: the storage failed in another way than by not having the file.
    """
    try:
        words = store.read(checksum_path(path)).decode(errors="replace").split()
    except MissingFileError:
        return ""
    except UnfitFileError:
        return "unreadable"
    return words[0] if words else "unreadable"


def load_source(url: str) -> StoredCache:
    """Read a cache that another run has stored, by the URL of its file.

    Raises:
        StorageError, InputError: it cannot be read from there.
    """
    folder, _, name = url.rpartition("/")
    return load_cache(open_output(folder or "."), name)


def checksum_path(path: str) -> str:
    """Where the checksum of the cache at ``path`` lies."""
    return f"{path}.sha256"
