"""Makes the pictures of docs/method.md from the bundled model, by looking into real renders with a ``Trace``.

    python scripts/method_pictures.py

Two anchors and four scenes of one subject are rendered as a job would render them, and what the method saw on the way
is drawn into docs/images/method-*.webp. The same machine and versions give the same files. What made them (the model's
fingerprint, versions, prompts, seeds, settings, what is seen in numbers) is written to docs/images/method.json. Two
minutes on one core.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from consistory_ray import ConsiStoryPipeline
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.consistory.method.trace import Trace
from consistory_ray.settings import BUNDLED_MODEL, model_revision

OUT = Path(__file__).resolve().parent.parent / "docs" / "images"
KIND = "dragon"
STYLE = "a drawing of a"
ANCHORS, ANCHOR_SEEDS = ("in the forest", "on the beach"), (21, 22)
SCENES, SCENE_SEEDS = ("in the snow", "in space", "in the city at night", "in the desert"), (4, 3, 5, 6)
MASK_STEPS = (1, 2, 4, 7, 12, 20, 49)
KEPT_STEPS = (10, 11, 12)
MATCHES, MATCHED_SCENE = 10, 1

PAPER, INK, QUIET, EDGE = (255, 255, 255), (60, 56, 68), (130, 126, 140), (225, 30, 120)
LINES = ("#e6194b", "#f58231", "#ffd21f", "#3cb44b", "#00b5ad", "#2a7fff", "#911eb4", "#f032e6", "#7fdc2e", "#9a6324")


class Renders:
    """The pictures of one subject, and what happened inside."""

    def __init__(self) -> None:
        self.pipeline = ConsiStoryPipeline.from_pretrained(BUNDLED_MODEL, device="cpu", dtype=torch.float32)
        self.settings = self.pipeline.default_settings
        self.anchors, self.scenes, self.vanilla = Trace(), Trace(), Trace(all_masks=False)
        prompts = [f"{STYLE} {KIND} {place}" for place in SCENES]
        subject = self.pipeline.create_subject(
            [f"{STYLE} {KIND} {place}" for place in ANCHORS], KIND, ANCHOR_SEEDS, trace=self.anchors
        )
        self.pipeline.render(prompts, subject, SCENE_SEEDS, trace=self.scenes)
        self.pipeline.render_vanilla(prompts, SCENE_SEEDS, trace=self.vanilla)
        self.cache = subject.cache
        self.grids = subject.cache.grids
        self.last = self.settings.num_inference_steps - 1
        self.alphas = self.pipeline.pipe.scheduler.alphas_cumprod.double()

    def decoded(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents [images, channels, h, w]."""
        vae = self.pipeline.pipe.vae
        with torch.no_grad():
            pixels = torch.cat([vae.decode(each[None] / vae.config.scaling_factor).sample for each in latents])
        pictures: list[Image.Image] = self.pipeline.pipe.image_processor.postprocess(pixels, output_type="pil")
        return pictures

    def final(self, trace: Trace, pass_number: int) -> list[Image.Image]:
        """The pictures at the end of a pass."""
        return self.decoded(trace.latents[pass_number, self.last])

    def foreseen(self, trace: Trace, step: int) -> list[Image.Image]:
        """What the model took the pictures to become at a step of pass 1 but the first, from the latents around it.

        DDIM moves from sqrt(a) x + sqrt(1 - a) e to sqrt(b) x + sqrt(1 - b) e: two equations for the picture x.
        """
        before, after = (trace.latents[1, number].double() for number in (step - 1, step))
        following = trace.timesteps[step + 1] if step < self.last else 0
        a, b = self.alphas[trace.timesteps[step]], self.alphas[following]
        found = (after * (1 - a).sqrt() - before * (1 - b).sqrt()) / (b.sqrt() * (1 - a).sqrt() - (a * (1 - b)).sqrt())
        return self.decoded(found.float())

    def mask(self, trace: Trace, step: int, image: int, level: str, pass_number: int = 1) -> Tensor:
        """The mask made at a step, bool [rows, columns]."""
        masks: dict[Any, Tensor] = trace.masks[pass_number, step]
        return masks[level][image].reshape(self.grids[level])

    def kept(self, anchor: int, step: int, level: str) -> Tensor:
        """The tokens that an anchor shares at a step of pass 1, bool [rows, columns]."""
        positions = self.cache.positions(Pass(1, step))
        assert positions is not None  # caches that are made now have them
        rows, columns = self.grids[level]
        kept = torch.zeros(len(ANCHORS) * rows * columns, dtype=torch.bool)
        kept[positions[level].long()] = True
        return kept.reshape(-1, rows, columns)[anchor]


class Sheet:
    """A white picture that panels and words are put on."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, words: str, size: int = 15, anchor: str = "lt", colour: Any = INK) -> None:
        """Words at a place, as Pillow anchors them."""
        self.pen.text((x, y), words, fill=colour, font=ImageFont.load_default(size), anchor=anchor)

    def upwards(self, x: int, y: int, height: int, words: str, note: str = "") -> None:
        """Words at the left of a row, read upwards, and a smaller line below them."""
        strip = Sheet(height, 40)
        strip.text(height / 2, 10 if note else 20, words, anchor="mm")
        strip.text(height / 2, 29, note, 12, "mm", QUIET)
        self.image.paste(strip.image.rotate(90, expand=True), (x, y))

    def panel(self, x: int, y: int, side: int, picture: Image.Image) -> None:
        """A picture, enlarged."""
        self.image.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, y))

    def save(self, name: str) -> None:
        """Write docs/images/method-NAME.webp."""
        self.image.save(OUT / f"method-{name}.webp", quality=88, method=6)


def lit(picture: Image.Image, mask: Tensor, side: int, *, edge: bool = True, faint: float = 0.78) -> Image.Image:
    """A picture whose tokens outside a mask [rows, columns] are faint and gray, and the mask outlined."""
    large = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    dull = Image.blend(large.convert("L").convert("RGB"), Image.new("RGB", large.size, PAPER), faint)
    rows, columns = mask.shape
    flags = Image.frombytes("L", (columns, rows), bytes((mask.to(torch.uint8) * 255).flatten().tolist()))
    shown = Image.composite(large, dull, flags.resize((side, side), Image.Resampling.NEAREST))
    if edge:
        pen = ImageDraw.Draw(shown)
        inside = mask.tolist()
        for row, column in mask.nonzero().tolist():
            x0, y0 = round(column * side / columns), round(row * side / rows)
            x1, y1 = round((column + 1) * side / columns) - 1, round((row + 1) * side / rows) - 1
            around = (
                (row - 1, column, (x0, y0, x1, y0)),
                (row + 1, column, (x0, y1, x1, y1)),
                (row, column - 1, (x0, y0, x0, y1)),
                (row, column + 1, (x1, y0, x1, y1)),
            )
            for r, c, line in around:
                if not (0 <= r < rows and 0 <= c < columns and inside[r][c]):
                    pen.line(line, fill=EDGE, width=2)
    return shown


def masks_picture(renders: Renders) -> dict[str, Any]:
    """The first scene's mask over the steps of pass 1, at both levels."""
    side, gap, left, top = 134, 5, 46, 46
    trace = renders.scenes
    sheet = Sheet(left + len(MASK_STEPS) * (side + gap), top + 3 * (side + gap))
    counts: dict[str, list[int]] = {level: [] for level in renders.grids}
    for row, level in enumerate((None, *renders.grids)):
        words, note = ("foreseen", "") if level is None else (level, "{} x {}".format(*renders.grids[level]))
        sheet.upwards(0, top + row * (side + gap), side, words, note)
    for column, step in enumerate(MASK_STEPS):
        x = left + column * (side + gap)
        sheet.text(x + side / 2, 14, f"step {step}", anchor="mm")
        sheet.text(x + side / 2, 33, f"t = {trace.timesteps[step]}", 12, "mm", QUIET)
        picture = renders.foreseen(trace, step)[0]
        sheet.panel(x, top, side, picture)
        for row, level in enumerate(renders.grids):
            mask = renders.mask(trace, step, 0, level)
            counts[level].append(int(mask.sum()))
            sheet.panel(x, top + (row + 1) * (side + gap), side, lit(picture, mask, 2 * side))
    sheet.save("masks")
    return {"steps": MASK_STEPS, "tokens_inside": counts}


def kept_picture(renders: Renders) -> dict[str, Any]:
    """What dropout leaves of the first anchor's mask, at three steps and both levels."""
    side, gap, left, top = 190, 8, 46, 46
    sheet = Sheet(left + (1 + len(KEPT_STEPS)) * (side + gap), top + 2 * (side + gap))
    picture = renders.final(renders.anchors, 2)[0]
    counts: dict[str, list[int]] = {}
    for row, (level, grid) in enumerate(renders.grids.items()):
        y = top + row * (side + gap)
        sheet.upwards(0, y, side, level, "{} x {}".format(*grid))
        shown = [renders.mask(renders.anchors, KEPT_STEPS[0] - 1, 0, level)]
        shown += [renders.kept(0, step, level) for step in KEPT_STEPS]
        counts[level] = [int(mask.sum()) for mask in shown]
        for column, mask in enumerate(shown):
            x = left + column * (side + gap)
            sheet.panel(x, y, side, lit(picture, mask, 2 * side, edge=column == 0))
            if row == 0:
                words = (
                    f"mask made at step {KEPT_STEPS[0] - 1}"
                    if column == 0
                    else f"shared at step {KEPT_STEPS[column - 1]}"
                )
                sheet.text(x + side / 2, 14, words, anchor="mm")
    for column, (coarse, fine) in enumerate(zip(counts["coarse"], counts["fine"], strict=True)):
        x = left + column * (side + gap) + side / 2
        sheet.text(x, 33, f"{coarse} coarse, {fine} fine tokens", 12, "mm", QUIET)
    sheet.save("kept")
    return {"steps": KEPT_STEPS, "mask_and_kept_tokens": counts}


def attention_picture(renders: Renders) -> None:
    """Who attends to what: a row for each picture that asks, a column for each that is asked."""
    side, gap, left, top, step = 150, 8, 196, 190, KEPT_STEPS[0]
    pictures = [*renders.final(renders.anchors, 2), *renders.final(renders.scenes, 2)[:2]]
    names = ("anchor 1", "anchor 2", "scene 1", "scene 2")
    sheet = Sheet(left + 4 * (side + gap) + 8, top + 4 * (side + gap) + 8)
    whole = torch.ones(renders.grids["fine"], dtype=torch.bool)
    sheet.text(left + 2 * (side + gap), 14, "keys and values of", anchor="mm")
    sheet.upwards(0, top, 4 * (side + gap), "queries of")
    for number, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        place = number * (side + gap)
        sheet.text(left + place + side / 2, 36, name, anchor="mm")
        sheet.panel(left + place + (side - 110) // 2, 50, 110, picture)
        sheet.upwards(34, top + place, side, name)
        sheet.panel(72, top + place + (side - 110) // 2, 110, picture)
    for row in range(4):
        for column in range(4):
            x, y = left + column * (side + gap), top + row * (side + gap)
            if row == column:
                sheet.panel(x, y, side, lit(pictures[column], whole, 2 * side, edge=False))
            elif column < 2:
                kept = renders.kept(column, step, "fine")
                sheet.panel(x, y, side, lit(pictures[column], kept, 2 * side, edge=False, faint=0.9))
            else:
                sheet.pen.rectangle((x, y, x + side - 1, y + side - 1), fill=(246, 246, 248))
                sheet.text(x + side / 2, y + side / 2, "nothing", 13, "mm", QUIET)
            if row == column:
                sheet.pen.rectangle((x - 3, y - 3, x + side + 2, y + side + 2), outline=INK, width=2)
    sheet.save("attention")


def spread(points: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Some of the points, far from each other: each next one is the farthest from those before it."""
    chosen = [min(points)]
    while len(chosen) < min(count, len(points)):
        chosen.append(max(points, key=lambda p: min((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2 for q in chosen)))
    return chosen


def correspondence_picture(renders: Renders) -> dict[str, Any]:
    """A scene's tokens and their sources in the anchors, and what is made of them."""
    large, small, gap, top = 300, 228, 16, 30
    trace = renders.scenes
    assert trace.source_anchor is not None and trace.source_token is not None
    assert trace.source_distance is not None and trace.injected is not None
    rows, columns = renders.grids["fine"]
    scene, (first, second) = renders.final(trace, 2)[MATCHED_SCENE], renders.final(renders.anchors, 2)
    owner, source, injected, distance = (
        found[MATCHED_SCENE].reshape(rows, columns)
        for found in (trace.source_anchor, trace.source_token, trace.injected, trace.source_distance)
    )

    sheet = Sheet(3 * large + 4 * gap + 60, top + large + 44 + small + 8)
    lefts = {0: 10, None: 10 + large + gap + 30, 1: 10 + 2 * (large + gap + 30)}
    for key, picture, words in ((0, first, "anchor 1"), (None, scene, "scene"), (1, second, "anchor 2")):
        sheet.text(lefts[key] + large / 2, 14, words, anchor="mm")
        sheet.panel(lefts[key], top, large, picture)
    cell = large / columns
    for colour, (row, column) in zip(
        LINES, spread([tuple(each) for each in injected.nonzero().tolist()], MATCHES), strict=False
    ):
        anchor, token = int(owner[row, column]), int(source[row, column])
        here = lefts[None] + (column + 0.5) * cell, top + (row + 0.5) * cell
        there = lefts[anchor] + (token % columns + 0.5) * cell, top + (token // columns + 0.5) * cell
        sheet.pen.line((*here, *there), fill=PAPER, width=5)
        sheet.pen.line((*here, *there), fill=colour, width=3)
        for x, y in (here, there):
            sheet.pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=colour, outline=PAPER, width=2)

    patches = Image.new("RGB", scene.size, PAPER)
    size = scene.width // columns
    mask = renders.mask(trace, renders.last, MATCHED_SCENE, "fine")
    for row, column in mask.nonzero().tolist():
        token = int(source[row, column])
        x, y = token % columns * size, token // columns * size
        origin = (first, second)[int(owner[row, column])]
        patches.paste(origin.crop((x, y, x + size, y + size)), (column * size, row * size))
    low, high = float(distance.min()), float(distance.max())
    heat = Image.new("RGB", (columns, rows))
    heat.putdata([_heat((value - low) / (high - low)) for value in distance.flatten().tolist()])
    shown = (
        ("the scene's final mask", lit(scene, mask, 2 * small)),
        ("made of its sources' patches", patches),
        ("distance: near is dark", heat.resize((2 * small, 2 * small), Image.Resampling.NEAREST)),
        ("injected: inside and near", lit(scene, injected, 2 * small)),
    )
    y = top + large + 38
    for number, (words, picture) in enumerate(shown):
        x = 10 + number * (small + (sheet.image.width - 20 - 4 * small) // 3)
        sheet.text(x + small / 2, y - 12, words, anchor="mm")
        sheet.panel(x, y, small, picture)
    sheet.save("correspondence")
    return {"fine_tokens": rows * columns, "in_mask": int(mask.sum()), "injected": int(injected.sum())}


def _heat(share: float) -> tuple[int, int, int]:
    """From dark violet over red to pale yellow."""
    stops = ((45, 17, 96), (150, 40, 110), (226, 84, 70), (250, 170, 80), (252, 246, 200))
    place = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    index = min(int(place), len(stops) - 2)
    part = place - index
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(stops[index], stops[index + 1], strict=True))
    return red, green, blue


def passes_picture(renders: Renders) -> None:
    """The scenes without the method, at the end of pass 1, and at the end of pass 2."""
    side, gap, left, top = 168, 6, 186, 34
    sheet = Sheet(left + 44 + len(SCENES) * (side + gap), top + 3 * (side + gap))
    sheet.text(side / 2, 14, "the anchors", anchor="mm")
    for number, picture in enumerate(renders.final(renders.anchors, 2)):
        sheet.panel(0, top + number * (side + gap) + (side + gap) // 2, side, picture)
    rows = (
        ("vanilla", "", renders.final(renders.vanilla, 1)),
        ("pass 1", "sharing, blending", renders.final(renders.scenes, 1)),
        ("pass 2", "and injection", renders.final(renders.scenes, 2)),
    )
    for row, (words, note, pictures) in enumerate(rows):
        y = top + row * (side + gap)
        sheet.upwards(left, y, side, words, note)
        for column, picture in enumerate(pictures):
            sheet.panel(left + 44 + column * (side + gap), y, side, picture)
            if row == 0:
                sheet.text(left + 44 + column * (side + gap) + side / 2, 14, f"... {SCENES[column]}", 13, "mm")
    sheet.save("passes")


def main() -> None:
    """Render, draw, and write down what made the pictures."""
    torch.set_num_threads(1)  # sums in the same order everywhere
    torch.use_deterministic_algorithms(True)
    renders = Renders()
    numbers: dict[str, Any] = {
        "masks": masks_picture(renders),
        "kept": kept_picture(renders),
        "correspondence": correspondence_picture(renders),
    }
    attention_picture(renders)
    passes_picture(renders)
    files = sorted(OUT.glob("method-*.webp"))
    report = {
        "made_by": "python scripts/method_pictures.py",
        "model": BUNDLED_MODEL,
        "model_revision": model_revision(BUNDLED_MODEL),
        "model_fingerprint": renders.pipeline.fingerprint,
        "versions": {name: metadata.version(name) for name in ("torch", "diffusers", "transformers", "pillow")},
        "prompts": {
            "anchors": [f"{STYLE} {KIND} {p}" for p in ANCHORS],
            "scenes": [f"{STYLE} {KIND} {p}" for p in SCENES],
        },
        "seeds": {"anchors": ANCHOR_SEEDS, "scenes": SCENE_SEEDS},
        "settings": renders.settings.to_dict(),
        "grids": renders.grids,
        "seen": numbers,
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
    }
    (OUT / "method.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({path.name: path.stat().st_size for path in files}))


if __name__ == "__main__":
    main()
