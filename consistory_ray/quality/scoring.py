"""All scores of one subject: its pictures are looked at a few at a time, then compared with each other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from consistory_ray.pictures.masks import decode_mask
from consistory_ray.quality.copies import BACKGROUND, CopyFinder
from consistory_ray.quality.identity import background_alone, likeness, likeness_among, subject_embeddings
from consistory_ray.quality.layout import LAYOUT, LAYOUT_VERSION, displacements, patch_displacements
from consistory_ray.quality.metrics import Metric, PatchMetric, TextMetric
from consistory_ray.quality.scores import Score

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistory_ray.quality.identity import Mask

_VIEWS = ("alone", "background", "patches", "alignment")
AT_A_TIME = 16
"""Pictures that a metric looks at together."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that is to be scored.

    Attributes:
        asset_id, kind, prompt, path, sha256: as of the index.
        mask: where its subjects are, as of the index; None where nobody knows.
        take: see :class:`~consistory_ray.quality.scores.Score`.
    """

    asset_id: str
    kind: str
    prompt: str
    path: str
    sha256: str
    mask: bytes | None = None
    take: int = 0


@dataclass(frozen=True, slots=True)
class SubjectPictures:
    """A subject's pictures, anchors and scenes."""

    subject: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class MetricFacts:
    """What of a metric decides which scores there will be.

    Attributes:
        name, version: see :class:`~consistory_ray.quality.metrics.Metric`.
        scores: names of its scores.
    """

    name: str
    version: str
    scores: tuple[str, ...]


@dataclass(slots=True)
class Scored:
    """What came of a subject.

    Attributes:
        scores: one of each name and picture that could be looked at.
        failures: asset id -> why a picture could not be scored, or not by every metric.
    """

    scores: list[Score] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def facts_of(metric: Metric | TextMetric) -> MetricFacts:
    """The scores that a metric gives: ``NAME_identity`` (to the anchors), ``NAME_among`` (to the other scenes),
    ``NAME_background``, ``NAME_displacement`` and ``NAME_alignment``, as far as it can."""
    kinds: list[str] = []
    if isinstance(metric, Metric):
        kinds += ["identity", "among"] + ([] if metric.finds_subject else ["background"])
    if isinstance(metric, PatchMetric):
        kinds.append("displacement")
    if isinstance(metric, TextMetric):
        kinds.append("alignment")
    return MetricFacts(metric.name, metric.version, tuple(f"{metric.name}_{kind}" for kind in kinds))


def fixed_facts(copies: CopyFinder | None) -> tuple[MetricFacts, ...]:
    """The scores that need no model."""
    found = [MetricFacts("layout", LAYOUT_VERSION, (LAYOUT,))]
    if copies is not None:
        found.append(MetricFacts("background", copies.version, (BACKGROUND,)))
    return tuple(found)


def context_of(subject: SubjectPictures) -> str:
    """A digest of all pictures of a subject and their masks: with any change of them, all are scored anew."""
    digest = hashlib.sha256()
    for picture in sorted(subject.pictures, key=lambda picture: (picture.asset_id, picture.take)):
        mask = "" if picture.mask is None else hashlib.sha256(picture.mask).hexdigest()
        digest.update(f"{picture.asset_id} {picture.take} {picture.sha256} {picture.kind} {mask}\n".encode())
        digest.update(f"{picture.prompt}\n".encode("utf-8", "replace"))
    return digest.hexdigest()[:16]


def score_subject(
    subject: SubjectPictures,
    metrics: Sequence[Metric | TextMetric],
    load: Callable[[Picture], Image],
    copies: CopyFinder | None = None,
) -> Scored:
    """Score a subject's pictures.

    Args:
        subject: its pictures.
        metrics: what to measure.
        load: reads and decodes a picture; what it raises is that picture's failure.
        copies: finds copied backgrounds.

    Returns:
        A picture that cannot be read, or that a metric fails on, is among the failures and has no scores; the others
        are scored.
    """
    done = Scored()
    seen: list[tuple[Picture, Mask | None]] = []
    columns: dict[str, list[Any]] = {}
    for batch in _batches(subject.pictures):
        images, pictures = _loaded(batch, load, done.failures)
        masks = [decode_mask(picture.mask) for picture in pictures]
        if copies is not None:
            columns.setdefault(BACKGROUND, []).extend(map(copies.mark, images, masks))
        for metric in metrics:
            for name, values in _looked_at(metric, images, masks, pictures, done.failures).items():
                columns.setdefault(name, []).extend(values)
        seen += zip(pictures, masks, strict=True)
    context = context_of(subject)
    for metric in metrics:
        _compare(metric, seen, columns, context, done)
    _add(done, seen, LAYOUT, LAYOUT_VERSION, displacements([m for _, m in seen], _scenes(seen)), context)
    if copies is not None:
        nearest = copies.nearest([picture for picture, _ in seen], columns.get(BACKGROUND, []))
        values, others = [distance for distance, _ in nearest], [other for _, other in nearest]
        _add(done, seen, BACKGROUND, copies.version, values, context, others)
    return done


def _batches(pictures: Sequence[Picture]) -> Iterator[Sequence[Picture]]:
    for first in range(0, len(pictures), AT_A_TIME):
        yield pictures[first : first + AT_A_TIME]


def _loaded(
    batch: Sequence[Picture], load: Callable[[Picture], Image], failures: dict[str, str]
) -> tuple[list[Image], list[Picture]]:
    images, pictures = [], []
    for picture in batch:
        try:
            images.append(load(picture))
        except Exception as error:
            failures[picture.asset_id] = _told(error)
        else:
            pictures.append(picture)
    return images, pictures


def _looked_at(
    metric: Metric | TextMetric,
    images: Sequence[Image],
    masks: Sequence[Mask | None],
    pictures: Sequence[Picture],
    failures: dict[str, str],
) -> Mapping[str, Sequence[Any]]:
    """What a metric sees in each picture, by what it was shown; None for pictures that it fails on."""
    keys, texts = [picture.asset_id for picture in pictures], [picture.prompt for picture in pictures]

    def look(places: Sequence[int]) -> dict[str, Sequence[Any]]:
        own, where = [images[n] for n in places], [masks[n] for n in places]
        names = [keys[n] for n in places]
        found: dict[str, Any] = {}
        if isinstance(metric, Metric):
            found["alone"] = subject_embeddings(metric, own, where, names)
            if not metric.finds_subject:
                grounds = [background_alone(*one) for one in zip(own, where, names, strict=True)]
                found["background"] = metric.embed(grounds)
        if isinstance(metric, PatchMetric):
            found["patches"] = metric.patches([image.convert("RGB") for image in own])
        if isinstance(metric, TextMetric):
            found["alignment"] = metric.align([image.convert("RGB") for image in own], [texts[n] for n in places])
        return found

    every = range(len(images))
    try:
        return {f"{metric.name}_{name}": values for name, values in look(every).items()} if images else {}
    except Exception:  # one of them may be at fault, or all together too large: each by itself tells which
        columns: dict[str, list[Any]] = {f"{metric.name}_{name}": [None] * len(images) for name in _VIEWS}
        for place in every:
            try:
                for name, values in look([place]).items():
                    columns[f"{metric.name}_{name}"][place] = values[0]
            except Exception as error:
                failures[keys[place]] = f"{metric.name}: {_told(error)}"
        return columns


def _compare(
    metric: Metric | TextMetric,
    seen: Sequence[tuple[Picture, Mask | None]],
    columns: Mapping[str, list[Any]],
    context: str,
    done: Scored,
) -> None:
    """The scores of what a metric has seen."""
    scenes = _scenes(seen)
    anchors = [place for place in range(len(seen)) if place not in set(scenes)]

    def add(kind: str, values: Sequence[Any]) -> None:
        _add(done, seen, f"{metric.name}_{kind}", metric.version, values, context)

    if isinstance(metric, Metric):
        alone = columns.get(f"{metric.name}_alone", [])
        add("identity", _to_anchors(alone, scenes, anchors))
        add("among", _among(alone, scenes))
        if not metric.finds_subject:
            add("background", _among(columns.get(f"{metric.name}_background", []), scenes))
    if isinstance(metric, PatchMetric):
        add(
            "displacement", patch_displacements(columns.get(f"{metric.name}_patches", []), [m for _, m in seen], scenes)
        )
    if isinstance(metric, TextMetric):
        add("alignment", columns.get(f"{metric.name}_alignment", []))


def _scenes(seen: Sequence[tuple[Picture, Mask | None]]) -> list[int]:
    return [place for place, (picture, _) in enumerate(seen) if picture.kind != "anchor"]


def _to_anchors(rows: Sequence[Any], scenes: Sequence[int], anchors: Sequence[int]) -> list[Any]:
    """Each scene's mean cosine with the anchors, each anchor's with the other anchors."""
    values: list[Any] = [None] * len(rows)
    known = [place for place in anchors if rows[place] is not None]
    for place in (*scenes, *anchors):
        others = [rows[other] for other in known if other != place]
        if rows[place] is not None and others:
            values[place] = float(likeness(np.stack([rows[place]]), np.stack(others))[0])
    return values


def _among(rows: Sequence[Any], scenes: Sequence[int]) -> list[Any]:
    """Each scene's mean cosine with the other scenes."""
    values: list[Any] = [None] * len(rows)
    known = [place for place in scenes if rows[place] is not None]
    if known:
        for place, value in zip(known, likeness_among(np.stack([rows[place] for place in known])), strict=True):
            values[place] = float(value)
    return values


def _add(
    done: Scored,
    seen: Sequence[tuple[Picture, Mask | None]],
    metric: str,
    version: str,
    values: Sequence[Any],
    context: str,
    others: Sequence[str | None] | None = None,
) -> None:
    """A score of every picture that has not failed."""
    for place, ((picture, _), value) in enumerate(zip(seen, values, strict=True)):
        if picture.asset_id not in done.failures:
            number = None if value is None or not np.isfinite(value) else float(value)
            other = others[place] if others is not None else None
            found = Score(picture.asset_id, picture.take, picture.sha256, metric, version, number, context, other)
            done.scores.append(found)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
