"""How well are subjects cut out? Alpha of the export's sprites against the judge's segmentation.

    python benchmarks/sprites.py --cache /tmp/sprites                # 16 subjects of 6 scenes
    python benchmarks/sprites.py --cache /tmp/sprites --tuning       # other subjects, on which the tuning was chosen

The bundled model draws 16 subjects in 6 scenes each, in eight steps. Every picture is cut out as ``consistory-ray
export --sprites`` does it, from the run's own mask of 16 x 16 tokens (:mod:`consistory_ray.export.matting`). Nothing
there is learned from pictures; its numbers (:class:`consistory_ray.export.segmenting.Tuning`) were chosen on the other
subjects, by the same measure. What measures is the judge, a network that was trained on the drawings that the model
imitates, and that no part of the export knows. Its foreground is not the truth either: its edges are half as fine as
the pictures. How near it and the cut come to the truth is told by drawings, of which the truth is known, after the
model's autoencoder; they are cut out from tokens that are at least half true.

*Found* is a picture in which the judge sees the subject: its kind covers most of the foreground, and more than 2 % of
the picture. The others are not measured, and counted. IoU is that of alpha >= 0.5 and the judge's foreground. It is
compared with the mask of tokens as it is; with closed-form matting from the tokens alone, within a token of the mask's
edge, without colours; and with the best that one and the same ellipse can do in all pictures, in the middle.

The last line of stdout is JSON:

    n, pictures          in how many pictures the judge finds the subject, and of how many
    alpha_iou            mean over those, with alpha_iou_interval: 95 % bootstrap interval over subjects
    worst_tenth          the IoU below which a tenth of the pictures lies
    mask_iou, matting_iou, ellipse_iou    the comparisons
    drawn_judge_iou, drawn_alpha_iou    of the judge's foreground, and of alpha, with the true masks of drawings
    drawn_agreement      of one with the other there
    touching             share of pictures whose sprite touches the frame
    seconds              of cutting out one picture of 128 pixels, one core

The result also has the IoU in each place. Progress goes to stderr.
``sprites.webp`` is a sheet of the sprites over magenta, one picture of each subject.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fast import REPORTED, TUNING
from benchmarks.gate import LORA, STEPS, rounded
from benchmarks.model_options import add_model_options, add_rendering_options, load_pipeline, renderer_of, say
from benchmarks.result_stamp import stamped
from consistory_ray.adapters import LoRA
from consistory_ray.evaluation.bootstrap import interval
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.evaluation.rendering import Rendered
from consistory_ray.export.matting import CutOut, by_closed_form, by_tokens
from consistory_ray.export.pictures import touched_sides
from consistory_ray.export.segmenting import TUNED, enlarged
from consistory_ray.miniature.judge import Judge, Reading
from training.dataset import HELD_OUT_SEED
from training.judge import label_map, reconstruct
from training.world import draw, random_spec

SMALLEST = 0.02
"""Share of the picture above which the judge's foreground counts as a subject that it finds."""
MAGENTA = (255, 0, 255)
MEANS = ("alpha", "mask", "matting", "ellipse")


@dataclass(frozen=True)
class Measured:
    """One picture.

    Attributes:
        subject: the number of its subject.
        scene: where it is.
        ious: of the sprite's alpha, the tokens, matting from the tokens, and an ellipse, in the order of :data:`MEANS`.
        touches: whether the sprite touches the frame.
    """

    subject: int
    scene: str
    ious: tuple[float, ...]
    touches: bool


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_rendering_options(parser)
    parser.add_argument("--subjects", type=int, default=16)
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--drawings", type=int, default=200, help="of which the truth is known")
    parser.add_argument("--tuning", action="store_true", help="other subjects than those that are reported")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Of two masks; 0 where both are empty."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def is_found(reading: Reading, kind: str) -> bool:
    """Whether the judge sees the subject."""
    return reading.kinds() == [kind] and bool(reading.foreground.mean() > SMALLEST)


def finest(picture: Rendered) -> np.ndarray:
    """The mask that an index row has."""
    return max(picture.masks.values(), key=lambda mask: mask.shape[-1])


def from_tokens(image: Image.Image, mask: np.ndarray) -> np.ndarray:
    """Alpha of closed-form matting in a band of a token on both sides of the mask's edge, ``[h, w]``."""
    from pymatting import estimate_alpha_cf
    from scipy import ndimage

    covered = enlarged(mask, (image.height, image.width))
    token = round(image.height / mask.shape[0])
    trimap = np.full(covered.shape, 0.5)
    trimap[ndimage.binary_erosion(covered, iterations=token, border_value=1)] = 1
    trimap[~ndimage.binary_dilation(covered, iterations=token)] = 0
    if not (trimap == 1).any():
        return covered.astype(np.float64)
    return np.asarray(estimate_alpha_cf(np.asarray(image, np.float64) / 255, trimap))


def ellipse(truth: Sequence[np.ndarray]) -> np.ndarray:
    """The ellipse in the mean subject's place, with its spread, that fits best on average, of a few sizes."""
    where = np.argwhere(np.mean(truth, 0) > 0.5)
    rows, columns = np.mgrid[: truth[0].shape[0], : truth[0].shape[1]]
    centre, half = where.mean(0), (where.max(0) - where.min(0) + 1) / 2
    distance = ((rows - centre[0]) / half[0]) ** 2 + ((columns - centre[1]) / half[1]) ** 2
    candidates = [distance <= size**2 for size in np.linspace(0.7, 1.4, 15)]
    return max(candidates, key=lambda one: float(np.mean([iou(one, other) for other in truth])))


def on_drawings(judge: Judge, vae: Any, count: int) -> list[tuple[float, float, float]]:
    """IoU of judge and truth, of alpha and truth, of both, on drawings of one subject after the autoencoder."""
    found: list[tuple[float, float, float]] = []
    number = 0
    while len(found) < count:
        spec = random_spec(random.Random(f"{HELD_OUT_SEED}/{number}"))
        number += 1
        drawing = draw(spec)
        truth = label_map(drawing.masks, [who.kind for who in spec.subjects]) > 0
        tokens = truth.reshape(16, truth.shape[0] // 16, 16, -1).mean((1, 3)) >= 0.5
        if len(spec.subjects) != 1 or not tokens.any():
            continue
        pixels = reconstruct(vae, np.array(drawing.image)[None])
        judged = judge.read(pixels)[0].foreground
        alpha = by_closed_form(Image.fromarray(pixels[0]), tokens).alpha >= 0.5
        found.append((iou(judged, truth), iou(alpha, truth), iou(alpha, judged)))
    return found


def means_of_drawings(rows: Sequence[Sequence[float]]) -> dict[str, float]:
    """The numbers of the last line that are about drawings."""
    names = ("drawn_judge_iou", "drawn_alpha_iou", "drawn_agreement")
    return dict(zip(names, np.mean(rows, 0).tolist(), strict=True)) if rows else {}


def summed_up(rows: Sequence[Measured], pictures: int) -> dict[str, Any]:
    """The numbers of the last line, but for seconds."""
    subjects = sorted({row.subject for row in rows})
    values = np.array([row.ious for row in rows])
    of = [np.array([row.ious[0] for row in rows if row.subject == subject]) for subject in subjects]
    totals, counts = np.array([one.sum() for one in of]), np.array([len(one) for one in of])
    bounds = interval(lambda drawn: totals[drawn].sum(1) / counts[drawn].sum(1), len(subjects))
    means = dict(zip((f"{name}_iou" for name in MEANS), values.mean(0).tolist(), strict=True))
    return {
        "n": len(rows),
        "pictures": pictures,
        "alpha_iou": means.pop("alpha_iou"),
        "alpha_iou_interval": list(bounds),
        "worst_tenth": float(np.quantile(values[:, 0], 0.1)),
        **means,
        "touching": float(np.mean([row.touches for row in rows])),
    }


def by_scene(rows: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """Mean IoU of alpha in each place, the best first, and of how many pictures."""
    found = {scene: [row.ious[0] for row in rows if row.scene == scene] for scene in {row.scene for row in rows}}
    means = sorted(((float(np.mean(ious)), scene) for scene, ious in found.items()), reverse=True)
    return {scene: {"alpha_iou": rounded(mean), "n": len(found[scene])} for mean, scene in means}


def over_magenta(image: Image.Image, cut: CutOut) -> Image.Image:
    """A picture, and its subject over magenta, side by side."""
    alpha = cut.alpha[..., None]
    shown = np.round(255 * (alpha * cut.colours) + (1 - alpha) * np.array(MAGENTA)).astype(np.uint8)
    return Image.fromarray(np.concatenate([np.asarray(image.convert("RGB")), shown], 1))


def sheet(tiles: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """Tiles of one size in rows."""
    width, height = tiles[0].size
    whole = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), MAGENTA)
    for number, tile in enumerate(tiles):
        whole.paste(tile, (number % columns * width, number // columns * height))
    return whole


def main() -> None:
    """Command line."""
    options = parse_arguments()
    pipeline = load_pipeline(options, loras=[LoRA(LORA)])
    settings = pipeline.default_settings.replace(**STEPS)
    renderer, judge = renderer_of(pipeline, settings, options), Judge.load()
    first, _ = TUNING if options.tuning else REPORTED
    subjects = consistency_subjects(first + options.subjects, options.scenes)[first:]
    rows, tiles, found = [], [], []
    count, spent = 0, 0.0
    for number, subject in enumerate(subjects):
        _, pictures = renderer.subject(subject)
        readings = judge.read([picture.image for picture in pictures])
        for place, (picture, reading) in enumerate(zip(pictures, readings, strict=True)):
            image = picture.image.convert("RGB")
            if not count:
                by_closed_form(image, finest(picture))  # warm
            started = time.process_time()
            cut = by_closed_form(image, finest(picture))
            spent += time.process_time() - started
            count += 1
            if place == number % len(pictures):
                tiles.append(over_magenta(image, cut))
            if is_found(reading, subject.kind):
                found.append((number, subject.scenes[place], image, finest(picture), cut, reading.foreground))
        say(f"{number + 1}/{len(subjects)} subjects")
    middle = ellipse([truth for *_, truth in found])
    for number, scene, image, mask, cut, truth in found:
        means = (cut.alpha >= 0.5, by_tokens(image, mask).alpha >= 0.5, from_tokens(image, mask) >= 0.5, middle)
        ious = tuple(iou(one, truth) for one in means)
        rows.append(Measured(number, scene, ious, bool(touched_sides(cut.alpha))))
    numbers = {name: rounded(value) for name, value in summed_up(rows, count).items()}
    drawings = on_drawings(judge, pipeline.pipe.vae, options.drawings)
    numbers |= {name: rounded(value) for name, value in means_of_drawings(drawings).items()}
    numbers["seconds"] = rounded(spent / count)
    report = {
        "numbers": numbers,
        "half": "tuning" if options.tuning else "report",
        "tuning": asdict(TUNED),
        "settings": settings.to_dict(),
        "loras": [LORA],
        "means": list(MEANS),
        "kinds": [subject.kind for subject in subjects],
        "by_scene": by_scene(rows),
        "rows": [[row.subject, row.scene, *rounded([float(value) for value in row.ious]), row.touches] for row in rows],
        "drawings": [rounded([*row]) for row in drawings],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    sheet(tiles).save(options.out / "sprites.webp", quality=90, method=6)
    (options.out / "sprites.json").write_text(json.dumps(stamped(report, pipeline), indent=1) + "\n")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
