"""What identifies weights: a digest of the files that decide a metric's numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

_BLOCK = 8 << 20


def files_digest(paths: Iterable[Path]) -> str:
    """Of names and contents, in the order of the names: 12 hexadecimal digits of SHA-256.

    Raises:
        OSError: a file cannot be read.
    """
    whole = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.name):
        own = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                own.update(block)
        whole.update(f"{path.name} {own.hexdigest()}\n".encode())
    return whole.hexdigest()[:12]
