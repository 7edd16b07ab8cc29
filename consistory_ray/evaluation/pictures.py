"""A folder of rendered pictures and masks that an interrupted benchmark goes on from."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Rendered:
    """A picture with its subject masks by level, bool ``[rows, columns]`` (maybe none)."""

    image: Image.Image
    masks: Mapping[str, np.ndarray]


class PictureStore:
    """Pictures by everything that decides them.

    Args:
        folder: where they lie; None keeps nothing.
        fingerprint: of the model; each model has a subfolder of its own.
    """

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self.folder = None if folder is None else folder / fingerprint[:16]
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: Mapping[str, object]) -> Path:
        """Where a picture lies; ``key`` must be JSON-ready."""
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.npz"

    def get(self, key: Mapping[str, object]) -> Rendered | None:
        """A stored picture, or None."""
        if self.folder is None or not self.path(key).exists():
            return None
        with np.load(self.path(key)) as arrays:
            image = Image.fromarray(arrays["image"])
            return Rendered(
                image, {name.removeprefix("mask-"): arrays[name] for name in arrays.files if name != "image"}
            )

    def get_all(self, keys: Sequence[Mapping[str, object]]) -> list[Rendered] | None:
        """All of several pictures, or None if one is absent."""
        found = [self.get(key) for key in keys]
        return None if None in found else [picture for picture in found if picture is not None]

    def put(self, key: Mapping[str, object], picture: Rendered) -> None:
        """Store a picture; other writers never see half of one."""
        if self.folder is None:
            return
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"mask-{level}": mask for level, mask in picture.masks.items()}
        np.savez_compressed(buffer, image=np.asarray(picture.image.convert("RGB")), **arrays)
        temporary = self.path(key).with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(self.path(key))
