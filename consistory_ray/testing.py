"""For tests and benchmarks of whatever runs jobs: a renderer without a model.

from consistory_ray.engine.options import RunOptions
from consistory_ray.testing import FakeRenderer

options = RunOptions(renderer=FakeRenderer.factory(seconds=0.2, faults={"on-the-moon": "error"}))
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from PIL import Image

from consistory_ray.engine.renderer import CacheBuffer, MadeSubject, RendererFactory, RendererSpec
from consistory_ray.errors import AssetError, CacheMismatchError, CheckpointError, InputError, Problem

if TYPE_CHECKING:
    from consistory_ray.plan import Asset, SubjectPlan

FaultName = Literal["bad", "error", "error-once", "exit", "exit-once", "model"]
"""What can go wrong with an asset: ``bad`` raises AssetError, ``error`` RuntimeError, ``exit`` ends the process without
a word, ``model`` raises CheckpointError. With ``-once`` it goes wrong once in all, whichever worker it meets."""

_BLOCKS = 4


class FakeRenderer:
    """A renderer whose pictures are made of asset ids: deterministic, instant, and as faulty as wanted.

    Args:
        spec: of the worker it runs in.
        seconds: time per scene.
        anchor_seconds: time per anchor; None is ``seconds``.
        size: width and height of its pictures in pixels.
        cache_bytes: size of an anchor cache.
        max_batch: more scenes than this at a time are out of memory.
        faults: what goes wrong with which asset; keys are scene ids (``"anchor-0"`` for anchors) or
            ``"subject/scene"``.
        scratch: an existing folder where faults that happen once are remembered.
        version: another version has another fingerprint and refuses the caches of others.
    """

    def __init__(
        self,
        spec: RendererSpec | None = None,
        *,
        seconds: float = 0.0,
        anchor_seconds: float | None = None,
        size: tuple[int, int] = (32, 32),
        cache_bytes: int = 4096,
        max_batch: int | None = None,
        faults: Mapping[str, FaultName] | None = None,
        scratch: str | None = None,
        version: int = 1,
    ) -> None:
        self.spec = spec
        self._seconds = seconds
        self._anchor_seconds = seconds if anchor_seconds is None else anchor_seconds
        self._size = (int(size[0]), int(size[1]))
        self._cache_bytes = cache_bytes
        self._max_batch = max_batch
        self._faults = dict(faults or {})
        self._scratch = scratch
        self._fingerprint = hashlib.sha256(f"fake renderer {version}".encode()).hexdigest()
        unknown = sorted(set(self._faults.values()) - set(get_args(FaultName)))
        if unknown:
            raise InputError("unknown faults", [Problem("faults", ", ".join(unknown), f"use {get_args(FaultName)}")])

    @classmethod
    def factory(cls, **options: Any) -> RendererFactory:
        """For :class:`~consistory_ray.engine.options.RunOptions`: makes one of these in every worker."""
        return functools.partial(cls, **options)

    @property
    def fingerprint(self) -> str:
        """The same for all of one version."""
        return self._fingerprint

    def make_subject(self, subject: SubjectPlan) -> MadeSubject:
        """Pictures of the anchors' ids, and a cache that names the subject."""
        self._go_wrong(subject.anchors)
        seconds = self._anchor_seconds * len(subject.anchors)
        time.sleep(seconds)
        content = {"subject": subject.subject_id, "key": subject.subject_key, "fingerprint": self._fingerprint}
        data = json.dumps(content).encode()
        buffer = np.frombuffer(data.ljust(self._cache_bytes), dtype=np.uint8)
        return MadeSubject([self.picture(anchor.asset_id) for anchor in subject.anchors], buffer, seconds)

    def load_cache(self, buffer: CacheBuffer) -> dict[str, str]:
        """What the cache says.

        Raises:
            CacheMismatchError: a renderer of another version made it.
        """
        cache: dict[str, str] = json.loads(buffer.tobytes())
        if cache["fingerprint"] != self._fingerprint:
            raise CacheMismatchError("this cache was made by another version of the fake renderer")
        return cache

    def render(self, scenes: Sequence[Asset], cache: Mapping[str, str]) -> list[Image.Image]:
        """Pictures of the scenes' ids.

        Raises:
            CacheMismatchError: the cache is another subject's.
            MemoryError: too many at a time.
        """
        strangers = [scene.asset_id for scene in scenes if scene.subject_id != cache["subject"]]
        if strangers:
            raise CacheMismatchError(f"{', '.join(strangers)} are no scenes of {cache['subject']}")
        if self._max_batch is not None and len(scenes) > self._max_batch:
            raise MemoryError(f"{len(scenes)} scenes at a time, {self._max_batch} would fit")
        self._go_wrong(scenes)
        time.sleep(self._seconds * len(scenes))
        return [self.picture(scene.asset_id) for scene in scenes]

    def picture(self, asset_id: str) -> Image.Image:
        """The picture of an asset: coloured blocks."""
        digest = hashlib.sha512(asset_id.encode()).digest()
        colours = np.frombuffer(digest[: _BLOCKS * _BLOCKS * 3], dtype=np.uint8).reshape(_BLOCKS, _BLOCKS, 3)
        return Image.fromarray(colours).resize(self._size, Image.Resampling.NEAREST)

    def _go_wrong(self, assets: Sequence[Asset]) -> None:
        for asset in assets:
            name = f"{asset.subject_id}/{asset.scene_id}"
            fault = self._faults.get(name) or self._faults.get(asset.scene_id)
            if fault is None or (fault.endswith("-once") and not self._first_time(asset.asset_id)):
                continue
            if fault.startswith("exit"):
                os._exit(1)
            message = f"{name} was asked to fail ({fault})"
            raise {"bad": AssetError, "model": CheckpointError}.get(fault, RuntimeError)(message)

    def _first_time(self, asset_id: str) -> bool:
        if self._scratch is None:
            fix = "give an existing folder"
            raise InputError("faults that happen once need a folder", [Problem("scratch", "", fix)])
        try:
            os.close(os.open(os.path.join(self._scratch, asset_id), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True
