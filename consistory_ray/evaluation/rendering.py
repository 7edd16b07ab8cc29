"""What does the model draw for these prompts, with and without consistency? Each picture is rendered once and kept."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from consistory_ray.consistory import ConsiStoryPipeline, RenderResult, SubjectResult
from consistory_ray.consistory.cache.anchor_cache import AnchorCache
from consistory_ray.consistory.cache.joining import joined
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.evaluation.prompts import PairPrompts, SubjectPrompts
from consistory_ray.settings import MethodSettings

METHOD_FIELDS = (
    "mask_dropout",
    "query_blend",
    "query_blend_until",
    "injection_window",
    "injection_alpha",
    "anchor_weight",
    "dift_timestep",
)
"""Settings without influence on a vanilla picture."""


@dataclass(frozen=True)
class Rendered:
    """A picture.

    Attributes:
        image: itself.
        masks: its subject masks by level, bool ``[rows, columns]`` (maybe none).
        sources: what was injected into it, where that was asked for: ``anchor`` and ``token`` of every token's source,
            and bool ``injected``, all ``[tokens]``.
    """

    image: Image.Image
    masks: Mapping[str, np.ndarray]
    sources: Mapping[str, np.ndarray] = field(default_factory=dict)


class Prompted(Protocol):
    """What a subject is rendered from."""

    @property
    def concepts(self) -> tuple[str, ...]: ...
    @property
    def anchors(self) -> tuple[str, ...]: ...
    @property
    def anchor_seeds(self) -> tuple[int, ...]: ...
    @property
    def prompts(self) -> tuple[str, ...]: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...


class PictureStore:
    """Pictures by everything that decides them; an interrupted benchmark goes on from its folder.

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

            def named(prefix: str) -> dict[str, np.ndarray]:
                return {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}

            return Rendered(Image.fromarray(arrays["image"]), named("mask-"), named("source-"))

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
        arrays |= {f"source-{name}": source for name, source in picture.sources.items()}
        np.savez_compressed(buffer, image=np.asarray(picture.image.convert("RGB")), **arrays)
        temporary = self.path(key).with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(buffer.getvalue())
        temporary.replace(self.path(key))


def stacked(pictures: Sequence[Rendered]) -> np.ndarray:
    """The pictures as uint8 ``[N, H, W, 3]``."""
    return np.stack([np.asarray(picture.image.convert("RGB")) for picture in pictures])


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


def with_sources(pictures: Sequence[Rendered], trace: Trace) -> list[Rendered]:
    """The pictures of a batch with what its trace says of injection; as they are where nothing was injected."""
    found = {"anchor": trace.source_anchor, "token": trace.source_token, "injected": trace.injected}
    sources = {name: tensor.numpy() for name, tensor in found.items() if tensor is not None}
    return [
        replace(picture, sources={name: rows[row] for name, rows in sources.items()})
        for row, picture in enumerate(pictures)
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

    def vanilla_keys(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[dict[str, object]]:
        """Under which pictures without consistency are stored."""
        switches = ("sdsa", "query_blending", "injection")
        kept = {key: value for key, value in self.settings.to_dict().items() if key not in (*METHOD_FIELDS, *switches)}
        return [self._key("vanilla", prompt, seed, kept) for prompt, seed in zip(prompts, seeds, strict=True)]

    def vanilla(self, prompts: Sequence[str], seeds: Sequence[int], concepts: Sequence[str]) -> list[Rendered]:
        """Pictures without consistency, in the prompts' order; every prompt must contain a concept."""
        keys = self.vanilla_keys(prompts, seeds)
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

    def vanilla_subjects(self, subjects: Sequence[SubjectPrompts]) -> list[list[Rendered]]:
        """Several subjects' scenes without consistency."""
        prompts = [prompt for subject in subjects for prompt in subject.prompts]
        seeds = [seed for subject in subjects for seed in subject.seeds]
        pictures = iter(self.vanilla(prompts, seeds, sorted({subject.kind for subject in subjects})))
        return [list(islice(pictures, len(subject.prompts))) for subject in subjects]

    def subject_keys(
        self, subject: Prompted, *, sources: bool = False
    ) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        """Under which a subject's anchors and scenes are stored."""
        made_by: dict[str, object] = {"anchors": list(subject.anchors), "anchor_seeds": list(subject.anchor_seeds)}
        if len(subject.concepts) > 1:
            made_by["concepts"] = list(subject.concepts)
        settings = self.settings.to_dict()
        anchors = [
            self._key("anchor", prompt, seed, settings, **made_by)
            for prompt, seed in zip(subject.anchors, subject.anchor_seeds, strict=True)
        ]
        if sources:
            made_by["sources"] = True
        scenes = [
            self._key("scene", prompt, seed, settings, **made_by)
            for prompt, seed in zip(subject.prompts, subject.seeds, strict=True)
        ]
        return anchors, scenes

    def anchors(self, subject: Prompted) -> list[Rendered]:
        """A subject's anchors alone."""
        keys, _ = self.subject_keys(subject)
        pictures = self.store.get_all(keys)
        if pictures is None:
            pictures = split(self._created(subject))
            for key, picture in zip(keys, pictures, strict=True):
                self.store.put(key, picture)
        return pictures

    def _created(self, subject: Prompted) -> SubjectResult:
        concepts = subject.concepts if len(subject.concepts) > 1 else subject.concepts[0]
        return self.pipeline.create_subject(subject.anchors, concepts, subject.anchor_seeds, settings=self.settings)

    def subject(self, subject: Prompted, *, sources: bool = False) -> tuple[list[Rendered], list[Rendered]]:
        """A subject's anchors and scenes, with consistency; with what was injected into the scenes if asked for."""
        keys = [key for part in self.subject_keys(subject, sources=sources) for key in part]
        pictures = self.store.get_all(keys)
        if pictures is None:
            made = self._created(subject)
            pictures = [*split(made), *self.scenes(subject.prompts, subject.seeds, made, sources=sources)]
            for key, picture in zip(keys, pictures, strict=True):
                self.store.put(key, picture)
        return pictures[: len(subject.anchors)], pictures[len(subject.anchors) :]

    def meeting(
        self, job: PairPrompts, subjects: Sequence[SubjectPrompts]
    ) -> tuple[list[list[Rendered]], list[Rendered]]:
        """The anchors of each of several subjects that are made by themselves, and the scenes in which they meet."""
        settings = self.settings.to_dict()
        keys = [
            [
                self._key("anchor", prompt, seed, settings, anchors=[*one.anchors], anchor_seeds=[*one.anchor_seeds])
                for prompt, seed in zip(one.anchors, one.anchor_seeds, strict=True)
            ]
            for one in subjects
        ]
        scene_keys = [
            self._key("scene of several", prompt, seed, settings, subjects=keys)
            for prompt, seed in zip(job.prompts, job.seeds, strict=True)
        ]
        anchors, scenes = [self.store.get_all(own) for own in keys], self.store.get_all(scene_keys)
        if scenes is None or None in anchors:
            made = [
                self.pipeline.create_subject(one.anchors, one.kind, one.anchor_seeds, settings=self.settings)
                for one in subjects
            ]
            anchors = [split(one) for one in made]
            scenes = self.scenes(job.prompts, job.seeds, joined([one.cache for one in made]), sources=True)
            for own_keys, own in [*zip(keys, anchors, strict=True), (scene_keys, scenes)]:
                for key, picture in zip(own_keys, own or [], strict=True):
                    self.store.put(key, picture)
        return [own for own in anchors if own is not None], scenes

    def scenes(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        subject: AnchorCache | SubjectResult,
        *,
        sources: bool = False,
    ) -> list[Rendered]:
        """Scenes of a subject that is at hand; the store does not know them."""
        found = []
        for first in range(0, len(prompts), self.batch_size):
            batch, trace = slice(first, first + self.batch_size), Trace(all_masks=False) if sources else None
            pictures = split(self.pipeline.render(prompts[batch], subject, seeds[batch], trace=trace))
            found += pictures if trace is None else with_sources(pictures, trace)
        return found

    def given(
        self,
        pictures: Sequence[Image.Image],
        subjects: Sequence[SubjectPrompts],
        masks: Sequence[np.ndarray] | None = None,
    ) -> list[list[Rendered]]:
        """Scenes of one subject with given pictures as its anchors, once for every set of prompts.

        Args:
            pictures: the anchors.
            subjects: what they show, which is the same in all, and different prompts of scenes.
            masks: where the subject is in them, bool ``[H, W]`` each, if it should not be looked for.
        """
        first, made = subjects[0], None
        made_by = {
            "anchors": list(first.anchors),
            "anchor_seeds": list(first.anchor_seeds),
            "pictures": [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures],
            "masks": None if masks is None else [hashlib.sha256(mask.tobytes()).hexdigest() for mask in masks],
        }
        found = []
        for subject in subjects:
            keys = [
                self._key("scene of given", prompt, seed, self.settings.to_dict(), **made_by)
                for prompt, seed in zip(subject.prompts, subject.seeds, strict=True)
            ]
            scenes = self.store.get_all(keys)
            if scenes is None:
                made = made or self.pipeline.create_subject(
                    first.anchors,
                    first.kind,
                    first.anchor_seeds,
                    images=pictures,
                    masks=masks,
                    settings=self.settings,
                )
                scenes = split(self.pipeline.render(subject.prompts, made, subject.seeds, batch_size=self.batch_size))
                for key, picture in zip(keys, scenes, strict=True):
                    self.store.put(key, picture)
            found.append(scenes)
        return found

    def subjects(self, subjects: Sequence[SubjectPrompts]) -> list[tuple[list[Rendered], list[Rendered]]]:
        """Several subjects' anchors and scenes, with consistency."""
        started, found = time.monotonic(), []
        for done, subject in enumerate(subjects, start=1):
            found.append(self.subject(subject))
            progress(done, len(subjects), "consistent subjects", started)
        return found
