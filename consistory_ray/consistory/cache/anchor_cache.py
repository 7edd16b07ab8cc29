"""The anchor cache: everything of a subject's anchors that a scene can ever read (section 3.2 and 3.4 of the paper)."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from torch import Tensor

from consistory_ray.consistory.cache.codecs import CODECS, NONE
from consistory_ray.consistory.cache.safetensors_file import Buffer, deserialise, pack, serialise
from consistory_ray.consistory.method.layout import Level
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.errors import CacheMismatchError, Problem, StorageError
from consistory_ray.guards.outside import parse_json
from consistory_ray.guards.places import place_of
from consistory_ray.settings import MethodSettings

FORMAT_VERSION = 2
"""Of the files that are written. Version 1 had no positions and no codec, and ``fine`` was the level of the features;
it is read like version 2, and a cache that was read from it is written as version 1 again. Packed caches, and those
that hold what one profile reads, are of version 2 too: it says how tensors are named and laid out. Their codec and
their settings are words that an older reader does not know and refuses; what it does know it reads as before."""
READABLE_VERSIONS = ("1", "2")
_FORMAT = "consistory_ray anchor cache"


@dataclass(frozen=True)
class AnchorCache:
    """A subject, ready to be rendered in any scene.

    Tensors are in the model's dtype, on the CPU unless :meth:`to` brought them elsewhere, and must not be written to:
    they may be memory-mapped or shared between processes. With A anchors, h halves (2 with classifier-free guidance), L
    layers of a level and K tokens kept at a step (those of all anchors one after the other):

        pass{1,2}.step{SSS}.shared.{level}     [L, h, K, C]  hidden states before to_k/to_v; pass 2 holds only the steps
                                                             after it left pass 1
        pass{1,2}.step{SSS}.positions.{level}  [K]           which tokens those are, anchor * tokens + token, int32
        pass2.step{SSS}.injected.{features}    [L, M, C]     injected outputs at the M mask tokens of all anchors
        features.{features}                    [M, C]        DIFT features of length one at those tokens
        mask.{level}                           [A, tokens]   final subject masks, bool

    ``{features}`` is the level of the features. The M tokens are those of its mask, in order, so that their positions
    need no room of their own. What is shared and injected is packed by the codec; another one than ``none`` may put
    more tensors in the place of one, whose names it makes longer.

    Attributes:
        settings: the settings that made it, height and width filled in; scenes are rendered with the same.
        fingerprint: of the model that made it.
        concepts, prompts: of the anchors.
        seeds: of the anchors, or None where latents were given.
        grids: level -> (rows, columns) of its tokens, in the order of the model's levels.
        tensors: as above, in the order of the file.
        feature_level: the level of the features.
        codec: name of how tensors are packed.
        version: of the file's format.
        pictures: SHA-256 of the pixels of each picture that was given as an anchor; none where anchors were sampled.
        levels: how noisy each step is, which says where windows of steps lie; see
            :class:`~consistory_ray.consistory.method.latents.Schedule`. None on the reference schedule.
    """

    settings: MethodSettings
    fingerprint: str
    concepts: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] | None
    grids: Mapping[Level, tuple[int, int]]
    tensors: Mapping[str, Tensor] = field(repr=False)
    feature_level: Level = "fine"
    codec: str = NONE.name
    version: int = FORMAT_VERSION
    pictures: tuple[str, ...] = ()
    levels: tuple[float, ...] | None = None

    @property
    def anchors(self) -> int:
        """Number of anchors."""
        return len(self.prompts)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """Name of the dtype of the model that made it, e.g. ``"float16"``."""
        floating = (
            tensor.dtype for tensor in self.tensors.values() if tensor.is_floating_point() and tensor.itemsize > 1
        )
        return str(next(floating, torch.float32)).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next((tensor.device for tensor in self.tensors.values()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> AnchorCache:
        """The same with its tensors on a device, where scenes then need not fetch them; itself if they are there."""
        if torch.device(device) == self.device:
            return self
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})

    @property
    def features(self) -> Tensor:
        """DIFT features at the anchors' mask tokens, [M, C] of length one.

        Raises:
            KeyError: the cache was made without injection.
        """
        return self.tensors[features_name(self.feature_level)]

    @property
    def injected_positions(self) -> Tensor:
        """Which tokens :attr:`features` and :meth:`injected` are of, anchor * tokens + token: int64 [M]."""
        return self.tensors[mask_name(self.feature_level)].flatten().nonzero()[:, 0]

    def shared(self, at: Pass) -> dict[Level, Tensor]:
        """Hidden states shared at a step: level -> [L, h, K, C]. Pass 2's earlier steps are pass 1's."""
        name = self.shared_part(at)
        return {level: self.unpacked(f"{name}.{level}", self.tensors) for level in self.grids}

    def positions(self, at: Pass) -> dict[Level, Tensor] | None:
        """Which tokens those are, anchor * tokens + token: level -> int32 [K]. None where version 1 did not say."""
        if self.version == 1:
            return None
        name = self._recorded(at, "positions")
        return {level: self.tensors[f"{name}.{level}"] for level in self.grids}

    def injected(self, step: int) -> Tensor:
        """Injected outputs of a step of pass 2, [L, M, C]."""
        return self.unpacked(f"{self.injected_part(step)}.{self.feature_level}", self.tensors)

    def has(self, at: Pass, kind: str) -> bool:
        """Whether it holds a kind of a step's tensors, of pass 2 or else of pass 1."""
        return self._recorded(at, kind) in self._parts

    def shared_part(self, at: Pass) -> str:
        """What the names of a step's shared tensors begin with, ``.{level}`` follows; see :meth:`part`."""
        return self._recorded(at, "shared")

    def injected_part(self, step: int) -> str:
        """The same of injected outputs, ``.{features}`` follows."""
        return step_name(Pass(2, step), "injected")

    def features_part(self, at: Pass | None) -> str:
        """The same of the features of a step, or of the DIFT step; they are not packed."""
        return "features" if at is None else self._recorded(at, "features")

    def part(self, name: str) -> dict[str, Tensor]:
        """All tensors whose names begin with a name and a dot, and the one of that name, as they are packed."""
        return {each: self.tensors[each] for each in self._parts.get(name, ())}

    def unpacked(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """What was packed under a name, from its tensors, which may be elsewhere."""
        return CODECS[self.codec].unpack(name, tensors)

    def _recorded(self, at: Pass, kind: str) -> str:
        """Where a kind of a step's tensors is: what both passes have in common is pass 1's."""
        name = step_name(at, kind)
        return name if name in self._parts else step_name(Pass(1, at.step), kind)

    @cached_property
    def _parts(self) -> dict[str, list[str]]:
        """Names of the tensors whose names begin with another one, by that, up to each dot."""
        found: dict[str, list[str]] = {}
        for name in self.tensors:
            words = name.split(".")
            for end in range(1, len(words) + 1):
                found.setdefault(".".join(words[:end]), []).append(name)
        return found

    def masks(self) -> dict[Level, Tensor]:
        """The anchors' final subject masks: level -> bool [A, rows, columns]."""
        return {level: self.tensors[mask_name(level)].reshape(-1, *grid) for level, grid in self.grids.items()}

    def to_buffer(self) -> Buffer:
        """The bytes of the safetensors file, as one uint8 array; a second copy of everything in memory."""
        return pack(dict(self.tensors), self._metadata())[0]

    def into_buffer(self) -> tuple[Buffer, str]:
        """The same, and their SHA-256 (64 hexadecimal digits), in place of the cache: its tensors are gone afterwards.

        Memory never holds much more than one copy, if nobody else holds the tensors.
        """
        tensors = self.tensors if isinstance(self.tensors, dict) else dict(self.tensors)
        return pack(tensors, self._metadata())

    @classmethod
    def from_buffer(cls, buffer: Buffer) -> AnchorCache:
        """A cache on top of the bytes of such a file: nothing is copied, nothing is written.

        Raises:
            CacheMismatchError: the bytes are not an anchor cache of this format version.
        """
        try:
            tensors, metadata = deserialise(buffer)
            if metadata.get("format") != _FORMAT:
                raise ValueError("it is some other safetensors file")
        except ValueError as error:
            problem = Problem("cache", str(error), "give a complete file that AnchorCache.save has written")
            raise CacheMismatchError("this is not an anchor cache", [problem]) from error
        version, codec = metadata.get("format_version"), metadata.get("codec", NONE.name)
        if version not in READABLE_VERSIONS:
            fix = f"make the subject again: this is version {FORMAT_VERSION}"
            problem = Problem("format_version", str(version), fix)
            raise CacheMismatchError("the anchor cache has another format version", [problem])
        if codec not in CODECS:
            fix = f"use a version that knows it, or make the subject again with {' or '.join(CODECS)}"
            raise CacheMismatchError("the anchor cache is packed in another way", [Problem("codec", codec, fix)])
        return cls(**_parsed(metadata), tensors=tensors)

    def save(self, url: str | os.PathLike[str]) -> None:
        """Write the file atomically; parent folders are made.

        Args:
            url: a local path or any fsspec URL.

        Raises:
            StorageError: it could not be written.
        """
        pieces = serialise(self.tensors, self._metadata())
        try:
            local = _local_path(url)
            if local is not None:
                _write_atomically(local, lambda file: [file.write(piece) for piece in pieces])
                return
            with fsspec.open(place_of(url).url, "wb") as file:  # an object store shows the object once it is complete
                for piece in pieces:
                    file.write(piece.data)
        except OSError as error:
            raise StorageError(f"the anchor cache could not be written to {os.fspath(url)}: {error}") from error

    @classmethod
    def load(cls, url: str | os.PathLike[str]) -> AnchorCache:
        """Open a saved cache; a local one is memory-mapped, so only what is used is ever read.

        Raises:
            StorageError: it could not be read.
            CacheMismatchError: the file is not an anchor cache of this format version.
        """
        try:
            local = _local_path(url)
            if local is not None and local.stat().st_size:
                return cls.from_buffer(np.memmap(local, dtype=np.uint8, mode="c"))  # private: a write stays in memory
            with fsspec.open(place_of(url).url, "rb") as file:
                return cls.from_buffer(np.frombuffer(file.read(), np.uint8))
        except OSError as error:
            raise StorageError(f"the anchor cache could not be read from {os.fspath(url)}: {error}") from error

    def _metadata(self) -> dict[str, str]:
        common = {
            "format": _FORMAT,
            "format_version": str(self.version),
            "model_fingerprint": self.fingerprint,
            "settings": json.dumps(self.settings.to_dict()),
            "concepts": json.dumps(self.concepts),
            "prompts": json.dumps(self.prompts),
            "seeds": json.dumps(self.seeds),
            "grids": json.dumps(self.grids),
        }
        if self.version == 1:
            return common | {"layout": _LAYOUT_1}
        if self.pictures:
            common["pictures"] = json.dumps(self.pictures)
        if self.levels is not None:
            common["levels"] = json.dumps(self.levels)
        return common | {"feature_level": self.feature_level, "codec": self.codec, "layout": _LAYOUT}


_LAYOUT = (
    "pass<1|2>.step<step>.shared.<level> [layers, halves, kept tokens, channels]; "
    "pass<1|2>.step<step>.positions.<level> [kept tokens] anchor * tokens + token; "
    "pass2.step<step>.injected.<feature level> [layers, mask tokens, channels]; "
    "features.<feature level> [mask tokens, channels]; mask.<level> [anchors, tokens]"
)
_LAYOUT_1 = (
    "pass<1|2>.step<step>.shared.<level> [layers, halves, kept tokens, channels]; "
    "pass2.step<step>.injected.fine [layers, mask tokens, channels]; features.fine [mask tokens, channels]; "
    "mask.<level> [anchors, tokens]"
)


def _levels(found: Any) -> tuple[float, ...] | None:
    return None if found is None else tuple(float(level) for level in found)


def _parsed(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        seeds = parse_json(metadata["seeds"])
        return {
            "settings": MethodSettings.from_dict(parse_json(metadata["settings"])),
            "fingerprint": metadata["model_fingerprint"],
            "concepts": tuple(parse_json(metadata["concepts"])),
            "prompts": tuple(parse_json(metadata["prompts"])),
            "seeds": None if seeds is None else tuple(seeds),
            "grids": {level: tuple(grid) for level, grid in parse_json(metadata["grids"]).items()},
            "feature_level": metadata.get("feature_level", "fine"),
            "codec": metadata.get("codec", NONE.name),
            "version": int(metadata["format_version"]),
            "pictures": tuple(parse_json(metadata.get("pictures", "[]"))),
            "levels": _levels(parse_json(metadata.get("levels", "null"))),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = Problem("metadata", repr(error), "make the subject again with this version")
        raise CacheMismatchError("the anchor cache's metadata cannot be read", [problem]) from error


def step_name(at: Pass, kind: str) -> str:
    """Name of a step's tensor."""
    return f"pass{at.number}.step{at.step:03d}.{kind}"


def mask_name(level: Level) -> str:
    """Name of a level's masks."""
    return f"mask.{level}"


def features_name(level: Level) -> str:
    """Name of the DIFT features."""
    return f"features.{level}"


def _local_path(url: str | os.PathLike[str]) -> Path | None:
    place = place_of(url)
    return Path(place.path) if place.is_local else None


def _write_atomically(path: Path, write: Callable[[Any], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
