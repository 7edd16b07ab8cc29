"""The anchor cache: everything of a subject's anchors that a scene can ever read (section 3.2 and 3.4 of the paper)."""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from torch import Tensor

from consistory_ray.consistory.cache.safetensors_file import Buffer, deserialise, pack, serialise
from consistory_ray.consistory.method.layout import LEVELS, Layer, Level
from consistory_ray.errors import CacheMismatchError, Problem, StorageError
from consistory_ray.guards.outside import parse_json
from consistory_ray.guards.places import place_of
from consistory_ray.settings import MethodSettings

FORMAT_VERSION = 1
_FORMAT = "consistory_ray anchor cache"
_FEATURES = "features.fine"
_OWN_PAGES = 1 << 20


@dataclass(frozen=True)
class AnchorCache:
    """A subject, ready to be rendered in any scene.

    Tensors are on the CPU, in the model's dtype, and must not be written to: they may be memory-mapped or shared
    between processes. With A anchors, h halves (2 with classifier-free guidance), L layers of a level and K tokens
    kept at a step (those of all anchors one after the other):

        pass{1,2}.step{SSS}.shared.{level}   [L, h, K, C]  hidden states before to_k/to_v; pass 2 holds only the steps
                                                           after it left pass 1
        pass2.step{SSS}.injected.fine        [L, M, C]     injected outputs at the M mask tokens of all anchors
        features.fine                        [M, C]        DIFT features of length one at those tokens
        mask.{level}                         [A, tokens]   final subject masks, bool

    Attributes:
        settings: the settings that made it, height and width filled in; scenes are rendered with the same.
        fingerprint: of the model that made it.
        concepts, prompts: of the anchors.
        seeds: of the anchors, or None where latents were given.
        grids: level -> (rows, columns) of its tokens.
        tensors: as above, in the order of the file.
    """

    settings: MethodSettings
    fingerprint: str
    concepts: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] | None
    grids: Mapping[Level, tuple[int, int]]
    tensors: Mapping[str, Tensor] = field(repr=False)

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
        floating = (tensor.dtype for tensor in self.tensors.values() if tensor.is_floating_point())
        return str(next(floating, torch.float32)).removeprefix("torch.")

    @property
    def features(self) -> Tensor:
        """DIFT features at the anchors' mask tokens, [M, C] of length one.

        Raises:
            KeyError: the cache was made without injection.
        """
        return self.tensors[_FEATURES]

    def shared(self, pass_number: int, step: int) -> dict[Level, Tensor]:
        """Hidden states shared at a step: level -> [L, h, K, C]. Pass 2's earlier steps are pass 1's."""
        own = all(_shared_name(pass_number, step, level) in self.tensors for level in LEVELS)
        number = pass_number if own else 1
        return {level: self.tensors[_shared_name(number, step, level)] for level in LEVELS}

    def injected(self, step: int) -> Tensor:
        """Injected outputs of a step of pass 2, [L, M, C]."""
        return self.tensors[_injected_name(step)]

    def masks(self) -> dict[Level, Tensor]:
        """The anchors' final subject masks: level -> bool [A, rows, columns]."""
        return {level: self.tensors[f"mask.{level}"].reshape(-1, *self.grids[level]) for level in LEVELS}

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
        version = metadata.get("format_version")
        if version != str(FORMAT_VERSION):
            fix = f"make the subject again: this is version {FORMAT_VERSION}"
            problem = Problem("format_version", str(version), fix)
            raise CacheMismatchError("the anchor cache has another format version", [problem])
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
        return {
            "format": _FORMAT,
            "format_version": str(FORMAT_VERSION),
            "model_fingerprint": self.fingerprint,
            "settings": json.dumps(self.settings.to_dict()),
            "concepts": json.dumps(self.concepts),
            "prompts": json.dumps(self.prompts),
            "seeds": json.dumps(self.seeds),
            "grids": json.dumps(self.grids),
            "layout": "pass<1|2>.step<step>.shared.<level> [layers, halves, kept tokens, channels]; "
            "pass2.step<step>.injected.fine [layers, mask tokens, channels]; features.fine [mask tokens, channels]; "
            "mask.<level> [anchors, tokens]",
        }


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
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = Problem("metadata", repr(error), "make the subject again with this version")
        raise CacheMismatchError("the anchor cache's metadata cannot be read", [problem]) from error


def _name(pass_number: int, step: int, kind: str) -> str:
    return f"pass{pass_number}.step{step:03d}.{kind}"


def _shared_name(pass_number: int, step: int, level: Level) -> str:
    return _name(pass_number, step, f"shared.{level}")


def _injected_name(step: int) -> str:
    return _name(2, step, "injected.fine")


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


class CacheRecorder:
    """Collects an anchor cache while the anchors are rendered; one instance per subject.

    Layers come in the order in which the UNet reaches them and are filed by their slots, by which scenes read them.
    A step's tensors are moved to the CPU at its end, so that a device never holds more than one step.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._step: dict[str, dict[int, Tensor]] = {}
        self._layers: dict[str, int] = {}

    def add_shared(self, layer: Layer, tokens: Tensor) -> None:
        """A layer's kept hidden states, [h, K, C].

        Raises:
            RuntimeError: it shares none, or the step has them already.
        """
        self._add(f"shared.{layer.level}", layer.shared_slot, layer, tokens)

    def add_injected(self, layer: Layer, tokens: Tensor) -> None:
        """A layer's injected outputs, [M, C].

        Raises:
            RuntimeError: nothing is injected there, or the step has them already.
        """
        self._add("injected.fine", layer.injected_slot, layer, tokens)

    def _add(self, kind: str, slot: int | None, layer: Layer, tokens: Tensor) -> None:
        if slot is None:
            raise RuntimeError(f"{layer.name} was recorded as {kind}, where it has no slot")
        step = self._step.setdefault(kind, {})
        if slot in step:
            raise RuntimeError(f"{layer.name} was recorded as {kind} twice in a step")
        step[slot] = tokens

    def end_step(self, pass_number: int, step: int) -> None:
        """File what was added since the last call.

        Raises:
            RuntimeError: a layer is missing.
        """
        for kind in (*(f"shared.{level}" for level in LEVELS), "injected.fine"):
            if kind in self._step:
                found = self._step[kind]
                slots = range(self._layers.setdefault(kind, len(found)))
                if sorted(found) != list(slots):
                    raise RuntimeError(f"step {step} recorded {kind} of layers {sorted(found)}, not of {list(slots)}")
                self.tensors[_name(pass_number, step, kind)] = _stacked([found[slot] for slot in slots])
        self._step = {}

    def finish(self, masks: Mapping[Level, Tensor], features: Tensor | None) -> dict[str, Tensor]:
        """Hand over all tensors in file order: features, steps, and masks last (theirs is the narrowest dtype).

        Args:
            masks: level -> bool [A, tokens].
            features: [M, C] in the model's dtype, or None without injection.
        """
        head = {} if features is None else {_FEATURES: features.cpu()}
        steps, self.tensors = self.tensors, {}
        return head | steps | {f"mask.{level}": masks[level].cpu() for level in LEVELS}


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """``torch.stack`` on the CPU, large results on memory pages of their own.

    Those go back to the system with the tensor, whatever lies around them; the allocator keeps hold of some of what is
    freed, a third of a cache's size by the time that :meth:`AnchorCache.into_buffer` has put the last tensor away.
    """
    size = len(parts) * parts[0].numel() * parts[0].element_size()
    if size < _OWN_PAGES:
        return torch.stack(list(parts)).cpu()
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages = torch.frombuffer(memory, dtype=parts[0].dtype).view(len(parts), *parts[0].shape)
    for slot, part in enumerate(parts):
        pages[slot] = part
    return pages


def check_cache(cache: AnchorCache, fingerprint: str, settings: MethodSettings | None) -> None:
    """Refuse a cache of another model, or of other settings where some are asked for.

    Raises:
        CacheMismatchError: naming what differs.
    """
    problems: list[Problem] = []
    if cache.fingerprint != fingerprint:
        fix = f"make the subject again with this model, whose fingerprint is {fingerprint[:12]}"
        problems.append(Problem("model", cache.fingerprint[:12], fix))
    if settings is not None:
        wanted, found = settings.to_dict(), cache.settings.to_dict()
        for key in ("height", "width"):  # not asked for: the cache's
            wanted[key] = found[key] if wanted[key] is None else wanted[key]
        problems += [
            Problem(f"settings.{key}", repr(found[key]), f"make the subject again: {wanted[key]!r} is asked for")
            for key in wanted
            if wanted[key] != found[key]
        ]
    if problems:
        raise CacheMismatchError("the anchor cache was made with another model or other settings", problems)
