"""Pictures for the benchmarks, rendered in batches, with and without consistency, and kept in a store."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from consistory_ray.consistory import ConsiStoryPipeline, RenderResult
from consistory_ray.evaluation.pictures import PictureStore, Rendered
from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.settings import MethodSettings

METHOD_FIELDS = (
    "mask_dropout",
    "query_blend",
    "query_blend_until",
    "injection_window",
    "injection_alpha",
    "dift_timestep",
)
"""Settings without influence on a vanilla picture."""


def progress(done: int, total: int, what: str, started: float) -> None:
    """One line of progress on stderr."""
    spent = time.monotonic() - started
    left = spent / done * (total - done) if done else 0.0
    print(f"{what} {done}/{total}, {spent:.0f} s, about {left:.0f} s left", file=sys.stderr, flush=True)


def split(result: RenderResult) -> list[Rendered]:
    """A result's pictures with their masks."""
    masks = {level: mask.numpy() for level, mask in result.masks.items()}
    return [
        Rendered(image, {level: mask[row] for level, mask in masks.items()}) for row, image in enumerate(result.images)
    ]


class Renderer:
    """Renders what the store lacks.

    Args:
        pipeline: the model.
        settings: of the method.
        store: of earlier pictures.
        batch_size: pictures denoised together.
    """

    def __init__(
        self, pipeline: ConsiStoryPipeline, settings: MethodSettings, store: PictureStore, batch_size: int
    ) -> None:
        self.pipeline, self.settings, self.store, self.batch_size = pipeline, settings, store, batch_size
        self.dtype = str(cast(Any, pipeline.pipe).unet.dtype)

    def _key(self, mode: str, prompt: str, seed: int, settings: Mapping[str, Any], **more: object) -> dict[str, object]:
        return {"mode": mode, "prompt": prompt, "seed": seed, "settings": settings, "dtype": self.dtype, **more}

    def vanilla(self, prompts: Sequence[str], seeds: Sequence[int], concepts: Sequence[str]) -> list[Rendered]:
        """Pictures without consistency, in the prompts' order; every prompt must contain a concept."""
        switches = ("sdsa", "query_blending", "injection")
        kept = {key: value for key, value in self.settings.to_dict().items() if key not in (*METHOD_FIELDS, *switches)}
        keys = [self._key("vanilla", prompt, seed, kept) for prompt, seed in zip(prompts, seeds, strict=True)]
        found = [self.store.get(key) for key in keys]
        missing = [index for index, picture in enumerate(found) if picture is None]
        started = time.monotonic()
        for first in range(0, len(missing), self.batch_size):
            rows = missing[first : first + self.batch_size]
            result = self.pipeline.render_vanilla(
                [prompts[row] for row in rows], [seeds[row] for row in rows], concepts=concepts, settings=self.settings
            )
            for row, picture in zip(rows, split(result), strict=True):
                self.store.put(keys[row], picture)
                found[row] = picture
            progress(first + len(rows), len(missing), "vanilla pictures", started)
        return [picture for picture in found if picture is not None]

    def subject(self, subject: SubjectPrompts) -> tuple[list[Rendered], list[Rendered]]:
        """A subject's anchors and scenes, with consistency."""
        made_by = {"anchors": list(subject.anchors), "anchor_seeds": list(subject.anchor_seeds)}
        settings = self.settings.to_dict()
        keys = [
            self._key("anchor", prompt, seed, settings, **made_by)
            for prompt, seed in zip(subject.anchors, subject.anchor_seeds, strict=True)
        ]
        keys += [
            self._key("scene", prompt, seed, settings, **made_by)
            for prompt, seed in zip(subject.prompts, subject.seeds, strict=True)
        ]
        pictures = self.store.get_all(keys)
        if pictures is None:
            made = self.pipeline.create_subject(
                subject.anchors, subject.kind, subject.anchor_seeds, settings=self.settings
            )
            scenes = self.pipeline.render(subject.prompts, made, subject.seeds, batch_size=self.batch_size)
            pictures = [*split(made), *split(scenes)]
            for key, picture in zip(keys, pictures, strict=True):
                self.store.put(key, picture)
        return pictures[: len(subject.anchors)], pictures[len(subject.anchors) :]

    def subjects(self, subjects: Sequence[SubjectPrompts]) -> list[tuple[list[Rendered], list[Rendered]]]:
        """Several subjects' anchors and scenes, with consistency."""
        started, found = time.monotonic(), []
        for done, subject in enumerate(subjects, start=1):
            found.append(self.subject(subject))
            progress(done, len(subjects), "consistent subjects", started)
        return found


def stacked(pictures: Sequence[Rendered]) -> np.ndarray:
    """The pictures as uint8 ``[N, H, W, 3]``."""
    return np.stack([np.asarray(picture.image.convert("RGB")) for picture in pictures])
