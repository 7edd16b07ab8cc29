"""What each part contributes, what masks are for, and what dropout trades: variants of the method on one plane."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch

from benchmarks.ablations import ABLATIONS
from benchmarks.model_options import say
from benchmarks.paper.bench import Bench
from benchmarks.paper.plots import plane, variants_sheet
from consistory_ray.consistory.method.layout import Grid, Level
from consistory_ray.consistory.method.masks import AttentionMaps
from consistory_ray.evaluation.rendering import PictureStore, Rendered

DROPOUTS = (0.0, 0.25, 0.5, 0.75)
NO_MASKS = "no subject masks"


def components(bench: Bench) -> dict[str, Any]:
    """The method whole, without each part, and without masks."""
    pictures: dict[str, list[list[Rendered]]] = {"vanilla": bench.vanilla}
    for name, changes in ABLATIONS.items():
        say(name)
        pictures[name] = [scenes for _, scenes in bench.renderer(**changes).subjects(bench.subjects)]
    say(NO_MASKS)
    pictures[NO_MASKS] = unmasked(bench)
    return _figure(bench, "components", pictures)


def dropout(bench: Bench) -> dict[str, Any]:
    """The curve between consistency and variety."""
    pictures: dict[str, list[list[Rendered]]] = {"vanilla": bench.vanilla}
    for value in bench.options.dropouts:
        say(f"dropout {value}")
        scenes = bench.renderer(mask_dropout=value).subjects(bench.subjects)
        pictures[f"dropout {value:g}"] = [own for _, own in scenes]
    return _figure(bench, "dropout", pictures, line=True)


@contextlib.contextmanager
def everything_is_subject() -> Iterator[None]:
    """Masks that cover the whole picture: the masking ablation. No setting does that, since nobody should."""

    def masks(maps: AttentionMaps, grids: Mapping[Level, Grid]) -> dict[Level, torch.Tensor]:
        maps.mean()  # fails, as the real thing does, where no maps were recorded
        images, device = maps.columns.shape[0], maps.columns.device
        return {
            level: torch.ones(images, grid.height * grid.width, dtype=torch.bool, device=device)
            for level, grid in grids.items()
        }

    with mock.patch.object(AttentionMaps, "masks", masks):
        yield


def unmasked(bench: Bench) -> list[list[Rendered]]:
    """The subjects' scenes where anchors share all of their tokens; kept beside those of the model itself."""
    renderer = bench.renderer()
    renderer.store = PictureStore(bench.options.cache, f"unmasked-{bench.pipeline.fingerprint}")
    with everything_is_subject():
        return [scenes for _, scenes in renderer.subjects(bench.subjects)]


def _figure(bench: Bench, name: str, pictures: dict[str, list[list[Rendered]]], line: bool = False) -> dict[str, Any]:
    ways = {variant: bench.measured(scenes) for variant, scenes in pictures.items()}
    variants = {variant: bench.numbers(way) for variant, way in ways.items()}
    bench.write(name, {"variants": variants, "rows": bench.rows(ways)}, variants_sheet(bench, pictures))
    title = f"{len(bench.subjects)} subjects, {bench.options.scenes} scenes, {bench.options.steps} steps"
    shown = {variant: numbers for variant, numbers in variants.items() if not (line and variant == "vanilla")}
    plane(shown, bench.options.out / f"{name}_plane.webp", title, line)
    keys = ("identity_gap_ratio", "hard_attribute_ratio", "layout_diversity_ratio", "scene_accuracy")
    return {variant: {key: numbers[key] for key in keys} for variant, numbers in variants.items()}
