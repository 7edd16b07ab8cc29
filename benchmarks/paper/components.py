"""What each part contributes, what masks are for, what dropout trades and what else was tried, on one plane each."""

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
from consistory_ray.evaluation.baselines import naming_details
from consistory_ray.evaluation.hard_attributes import look
from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.evaluation.rendering import PictureStore, Rendered, stacked

DROPOUTS = (0.0, 0.25, 0.5, 0.75)
NO_MASKS = "no subject masks"
LONGER: dict[str, Any] = {"injection_window": (0.1, 0.6)}
LEVERS: dict[str, dict[str, Any]] = {
    "paper": {},
    "dropout 0": {"mask_dropout": 0.0},
    "dropout 0.25": {"mask_dropout": 0.25},
    "dropout 0.75": {"mask_dropout": 0.75},
    "injection to 0.6": LONGER,
    "injection to 0.8": {"injection_window": (0.1, 0.8)},
    "anchors count twice": {"anchor_weight": 2.0},
    "anchors count three times": {"anchor_weight": 3.0},
    "anchors twice, injection to 0.6": {"anchor_weight": 2.0, **LONGER},
    "led anchors": {"led_anchors": True},
}
"""What was tried to be more alike, one setting at a time and what won together."""
DETAILS, DETAILS_ALONE = "paper, details named", "vanilla, details named"


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


def levers(bench: Bench) -> dict[str, Any]:
    """What might make subjects more alike, on one plane: settings, and prompts that name details."""
    pictures: dict[str, list[list[Rendered]]] = {"vanilla": bench.vanilla}
    for name, changes in LEVERS.items():
        say(name)
        pictures[name] = [scenes for _, scenes in bench.renderer(**changes).subjects(bench.subjects)]
    say("details named")
    told = [_told(bench, number) for number in range(len(bench.subjects))]
    pictures[DETAILS] = [scenes for _, scenes in bench.renderer().subjects(told)]
    pictures[DETAILS_ALONE] = bench.renderer().vanilla_subjects(told)
    return _figure(bench, "levers", pictures)


def _told(bench: Bench, number: int) -> SubjectPrompts:
    """A subject whose prompts name what the judge reads in its first vanilla scene."""
    first = stacked(bench.vanilla[number][:1])
    (portrait,) = bench.judge.portray(first, [bench.judge.read(first)[0].foreground])
    return naming_details(bench.subjects[number], look(portrait))


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
