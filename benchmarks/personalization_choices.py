"""What should be done with given pictures? Likeness of scenes under other choices, on individuals of their own.

    python benchmarks/personalization_choices.py --cache /tmp/pictures
    python benchmarks/personalization_choices.py --choices 'one noise for all steps' --choices-named --wordings

Measures as benchmarks/personalization.py does, on other individuals, so that what is chosen here is not chosen for the
subjects that are reported there. Every choice changes one thing of what is done there; differences are paired (same
individuals, scenes and seeds) with 95 % bootstrap intervals over individuals. Three tables go to --out as
personalization_choices.md: choices where scenes name nothing of the look, choices where they name all that has words,
and what to name. The last line of stdout is JSON: table -> row -> numbers, and
what it ran on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.given_variants import VARIANTS
from benchmarks.model_options import (
    add_model_options,
    add_rendering_options,
    changed,
    described_pipeline,
    load_pipeline,
    say,
)
from benchmarks.personalization import CHANGES, EVERYTHING, rounded_throughout
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.method.attention import Attention, attend_tokens
from consistory_ray.consistory.method.companions import CachedAnchors
from consistory_ray.consistory.method.exchange import SceneExchange, SceneSharing
from consistory_ray.consistory.method.layout import Layer
from consistory_ray.evaluation.bootstrap import difference_interval
from consistory_ray.evaluation.likeness import LikenessScores, Model, describe_scores, score_likeness
from consistory_ray.evaluation.rendering import PictureStore, Renderer
from consistory_ray.miniature.judge import Judge
from consistory_ray.settings import MethodSettings
from training.characters import Character, draw_characters

AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Choice:
    """What is done otherwise.

    Attributes:
        settings: of the method.
        variant: of what is done with the pictures, one of benchmarks/given_variants.py.
        pictures: how many of them.
        true_masks: the subject is where it was drawn, instead of looked for.
        adain: the pictures' self-attention keys get the statistics of the scene's own (the paper's appendix E): of all
            its tokens ("all"), or of its subject's ("subject").
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    variant: str = ""
    pictures: int = 2
    true_masks: bool = False
    adain: str = ""


CHOICES: dict[str, Choice] = {
    AS_IT_IS: Choice(),
    "mask_dropout 0.25": Choice({"mask_dropout": 0.25}),
    "mask_dropout 0.5": Choice({"mask_dropout": 0.5}),
    "mask_dropout 0.7": Choice({"mask_dropout": 0.7}),
    "one noise for all steps": Choice(variant="one noise"),
    "pictures see each other": Choice(variant="together"),
    "pictures see each other, masks found on the way": Choice(variant="together, early masks"),
    "true masks": Choice(true_masks=True),
    "AdaIN on keys, all tokens": Choice(adain="all"),
    "AdaIN on keys, subject's tokens": Choice(adain="subject"),
    "no injection": Choice({"injection": False}),
    "injection_alpha 1": Choice({"injection_alpha": 1.0}),
    "injection_window 0.1 to 0.5": Choice({"injection_window": (0.1, 0.5)}),
    "no query blending": Choice({"query_blending": False}),
    "guidance_scale 3": Choice({"guidance_scale": 3.0}),
    "guidance_scale 7": Choice({"guidance_scale": 7.0}),
    "one picture": Choice(pictures=1),
    "four pictures": Choice(pictures=4),
}
WORDINGS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "accessory": ("accessory",),
    "pattern, accessory": ("pattern", "accessory"),
    "pattern, accessory and its colour": ("pattern", "accessory", "accessory_colour"),
    "body, pattern, accessory": EVERYTHING,
    "body, pattern, accessory and its colour": (*EVERYTHING, "accessory_colour"),
}


@contextmanager
def matched_keys(tokens: str) -> Iterator[None]:
    """Scenes give the cached keys the mean and deviation, per channel, of their own keys.

    Args:
        tokens: of which of their own: "all", or "subject", those of their mask in force (all as long as it is empty).
    """
    sharing, exchange, needs = SceneExchange.sharing, CachedAnchors.exchange, CachedAnchors.needs_masks

    def with_masks(self: Any, at: Any, masks: Any, *rest: Any, **options: Any) -> Any:
        found = exchange(self, at, masks, *rest, **options)
        if found is not None:
            found.masks = masks
        return found

    def matched(self: Any, layer: Layer) -> Any:
        found = sharing(self, layer)
        return partial(attend_matched, found, self.masks, layer.level) if isinstance(found, SceneSharing) else found

    def attend_matched(
        shared: SceneSharing,
        masks: Any,
        level: Any,
        attn: Attention,
        hidden: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
    ) -> Tensor:
        own = key.unflatten(0, (shared.halves, -1))  # [halves, scenes, tokens, channels]
        weights = torch.ones(own.shape[:3], dtype=own.dtype)
        if tokens == "subject" and masks is not None:
            mask = masks[level]
            weights = (mask | ~mask.any(1, keepdim=True))[None].expand(own.shape[:3]).to(own.dtype)
        weights = (weights / weights.sum(2, keepdim=True))[..., None]
        mean = (own * weights).sum(2, keepdim=True)
        deviation = ((own - mean).square() * weights).sum(2, keepdim=True).sqrt()
        theirs = attn.to_k(shared.cached)[:, None]
        theirs = (theirs - theirs.mean(2, keepdim=True)) / (theirs.std(2, correction=0, keepdim=True) + 1e-5)
        keys = torch.cat([own, theirs * deviation + mean], dim=2).flatten(0, 1)
        values = shared.extended(value, attn.to_v(shared.cached))
        return attend_tokens(query, keys, values, attn.heads, ragged=True)

    patched: Any = SceneExchange
    anchors: Any = CachedAnchors
    patched.sharing, anchors.exchange, anchors.needs_masks = matched, with_masks, tokens == "subject"
    try:
        yield
    finally:
        patched.sharing, anchors.exchange, anchors.needs_masks = sharing, exchange, needs


class Measuring:
    """Renders and measures choices.

    Args:
        pipeline: the model.
        settings: unless a choice changes them.
        options: ``subjects``, ``scenes``, ``cache``, ``batch_size`` of the command line.
    """

    def __init__(self, pipeline: ConsiStoryPipeline, settings: MethodSettings, options: argparse.Namespace) -> None:
        self.pipeline, self.settings, self.options = pipeline, settings, options
        self.judge = Judge.load()
        self.characters = self.drawn(2)

    def drawn(self, pictures: int) -> list[Character]:
        """The individuals, with so many pictures of each."""
        return draw_characters(self.options.subjects, pictures, self.options.scenes, "tuning")

    def _renderer(self, choice: Choice) -> Renderer:
        cache: Path | None = self.options.cache
        other = f"adain {choice.adain}" if choice.adain else choice.variant
        folder = cache / other.replace(" ", "-").replace(",", "") if cache is not None and other else cache
        store = PictureStore(folder, self.pipeline.fingerprint)
        return Renderer(self.pipeline, self.settings.replace(**choice.settings), store, self.options.batch_size)

    def scores(self, choice: Choice | None, named: Sequence[str] = ()) -> list[LikenessScores]:
        """Everybody's scenes, which name these attributes. Likeness is always that to the first two pictures.

        Args:
            choice: None for vanilla.
            named: see :meth:`~training.characters.Character.naming`.
        """
        found = []
        for character, reference in zip(self.drawn(choice.pictures if choice else 2), self.characters, strict=True):
            subject = character.naming(*named)
            if choice is None:
                (scenes,) = self._renderer(Choice()).vanilla_subjects([subject])
            else:
                with matched_keys(choice.adain) if choice.adain else VARIANTS[choice.variant]():
                    masks = character.masks if choice.true_masks else None
                    (scenes,) = self._renderer(choice).given(character.pictures, [subject], masks)
            model = Model(reference.pictures, reference.pictures_of_stranger, reference.truth)
            found.append(score_likeness(self.judge, [scene.image for scene in scenes], reference.subject, model))
        return found

    def compare(self, choices: Sequence[str], named: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """Vanilla, what is done and other choices, with differences from what is done."""
        base = self.scores(CHOICES[AS_IT_IS], named)
        vanilla = self.scores(None, named)
        found = {"vanilla": describe_scores(vanilla) | difference(vanilla, base), AS_IT_IS: describe_scores(base)}
        for name in choices:
            scores = self.scores(CHOICES[name], named)
            found[name] = describe_scores(scores) | difference(scores, base)
            say(f"{name}: {found[name]['difference']:+.3f}")
        return found

    def word(self, wordings: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Scenes that name this and that, with differences from vanilla with the same words."""
        found = {}
        for name in wordings:
            ours, vanilla = self.scores(CHOICES[AS_IT_IS], WORDINGS[name]), self.scores(None, WORDINGS[name])
            found[name] = describe_scores(ours) | difference(ours, vanilla)
            found[f"vanilla, {name}"] = describe_scores(vanilla)
        return found


def difference(scores: Sequence[LikenessScores], base: Sequence[LikenessScores]) -> dict[str, Any]:
    """Paired difference of likeness, its interval, and how many individuals are better."""
    mine, theirs = (np.array([score.likeness for score in some]) for some in (scores, base))
    return {
        "difference": float((mine - theirs).mean()),
        "difference_interval": list(difference_interval(mine, theirs)),
        "better": int((mine > theirs).sum()),
    }


COLUMNS = {
    "likeness": ".3f",
    "colour_distance": ".1f",
    "body_accuracy": ".2f",
    "second_accuracy": ".2f",
    "pattern_accuracy": ".2f",
    "accessory_worn_accuracy": ".2f",
    "accessory_colour_accuracy": ".2f",
    "scene_accuracy": ".2f",
    "layout_diversity": ".3f",
}


def table(results: Mapping[str, Mapping[str, Any]], individuals: int) -> str:
    """Results as a Markdown table."""
    heads = ["", *(name.replace("_accuracy", "").replace("_", " ") for name in COLUMNS), "difference", "better"]
    lines = [heads, ["---"] * len(heads)]
    for name, numbers in results.items():
        values = [f"{numbers[key]:{form}}" if key in numbers else "" for key, form in COLUMNS.items()]
        changes = ["", ""]
        if "difference" in numbers:
            low, high = numbers["difference_interval"]
            changes = [
                f"{numbers['difference']:+.3f} [{low:+.3f}, {high:+.3f}]",
                f"{numbers['better']} of {individuals}",
            ]
        lines.append([name, *values, *changes])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_rendering_options(parser)
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--scenes", type=int, default=3)
    others = [name for name in CHOICES if name != AS_IT_IS]
    parser.add_argument("--choices", nargs="*", default=others, help="where scenes name nothing")
    parser.add_argument("--choices-named", nargs="*", default=others, help="where they name all that has words")
    parser.add_argument("--wordings", nargs="*", default=list(WORDINGS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    pipeline = load_pipeline(options)
    pipeline.hold_fingerprint()
    settings = changed(pipeline.default_settings, num_inference_steps=options.steps, **CHANGES)
    measuring = Measuring(pipeline, settings, options)
    tables = {
        "Scenes that name nothing of the look": measuring.compare(options.choices),
        "Scenes that name body, pattern and accessory": measuring.compare(options.choices_named, EVERYTHING),
        "What scenes should name": measuring.word(options.wordings),
    }
    about = described_pipeline(pipeline) | {"steps": settings.num_inference_steps, "settings": settings.to_dict()}
    about |= {"individuals": options.subjects, "scenes": options.scenes, "model_fingerprint": pipeline.fingerprint}
    options.out.mkdir(parents=True, exist_ok=True)
    said = f"{options.subjects} individuals, {options.scenes} scenes each, {settings.num_inference_steps} steps.\n"
    parts = [f"## {title}\n\n{table(rows, options.subjects)}" for title, rows in tables.items() if rows]
    text = "\n".join(["# Given pictures: what was tried\n", said, *parts])
    (options.out / "personalization_choices.md").write_text(text)
    print(json.dumps(rounded_throughout(tables) | about))


if __name__ == "__main__":
    main()
