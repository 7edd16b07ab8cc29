"""Anchor caches under the run's URL: what the object store holds is only a copy of these files.

Beside each cache lies its SHA-256 in the format of ``sha256sum``; it is written after the cache, so a cache without one
is not finished.
"""

from __future__ import annotations

import hashlib

import numpy as np

from consistory_ray.engine.renderer import CacheBuffer
from consistory_ray.output.storage import MissingFileError, OutputStore


def save_cache(store: OutputStore, path: str, buffer: CacheBuffer) -> str:
    """Write a cache and its checksum; returns the checksum, 64 hexadecimal digits.

    Raises:
        StorageError: the storage failed; a cache without a matching checksum is not loaded.
    """
    data = buffer.data
    digest = hashlib.sha256(data).hexdigest()
    store.write_atomic(path, data)
    store.write_atomic(checksum_path(path), f"{digest}  {path.rsplit('/', 1)[-1]}\n".encode())
    return digest


def load_cache(store: OutputStore, path: str) -> tuple[CacheBuffer | None, str]:
    """Read a cache.

    Returns:
        The buffer, read-only, and ``""``; or None and why there is none: missing, unfinished, or damaged.

    Raises:
        StorageError: the storage failed in another way.
    """
    try:
        expected = store.read(checksum_path(path)).decode(errors="replace").split()
        data = store.read(path)
    except MissingFileError:
        return None, ""
    if not expected or hashlib.sha256(data).hexdigest() != expected[0]:
        return None, f"{path} is damaged (its SHA-256 differs from {checksum_path(path)})"
    return np.frombuffer(data, dtype=np.uint8), ""


def checksum_path(path: str) -> str:
    """Where the checksum of the cache at ``path`` lies."""
    return f"{path}.sha256"
