"""Atlases in the engines they are for: PixiJS and Phaser load them in Chromium and draw every frame."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consistory_ray.export.atlas import Sprite
from consistory_ray.export.atlas_files import AtlasRules
from consistory_ray.export.packing import PageRules
from consistory_ray.output.storage import OutputStore, open_output
from tests.export.browser import from_npm, needs_chromium, opened, picture_at
from tests.export.layouts import blob, keep, write_atlases

ENGINES = {"pixi": ("pixi.js", "8.22.0", "dist/pixi.min.js"), "phaser": ("phaser", "3.90.0", "dist/phaser.min.js")}
BACKGROUND, SIDE, COLUMNS = (32, 64, 96), 48, 4
pytestmark = [pytest.mark.slow, needs_chromium]


def drawn_by(engine: str, store: OutputStore, asked: dict[str, Any]) -> Image.Image:
    """What an engine shows in Chromium."""
    folder, (package, version, script) = Path(store.root), ENGINES[engine]
    shutil.copy(from_npm(package, version) / script, folder / "engine.js")
    shutil.copy(Path(__file__).parent / "engines.html", folder / "index.html")
    with opened(folder, "index.html") as page:
        shown = picture_at(page.evaluate(f"asked => drawers.{engine}(asked)", asked))
    if look := os.environ.get("LOOK_AT"):
        shown.resize((shown.width * 3, shown.height * 3), Image.Resampling.NEAREST).save(f"{look}/{engine}.png")
    return shown


def asked_of(sprites: list[Sprite], pages: list[str]) -> dict[str, Any]:
    rows = -(-len(sprites) // COLUMNS)
    return {
        "atlas": "/atlas/moss.json",
        "pages": [{"json": f"/{path}", "image": f"/{path[:-5]}.png"} for path in pages],
        "frames": [
            {"name": sprite.name, "x": n % COLUMNS * SIDE + SIDE // 2, "y": n // COLUMNS * SIDE + SIDE // 2}
            for n, sprite in enumerate(sprites)
        ],
        "width": COLUMNS * SIDE,
        "height": rows * SIDE,
        "background": "#{:02x}{:02x}{:02x}".format(*BACKGROUND),
    }


def expected_of(sprites: list[Sprite], asked: dict[str, Any]) -> Image.Image:
    """The same by Pillow, of the pictures before they were laid out."""
    canvas = Image.new("RGBA", (asked["width"], asked["height"]), (*BACKGROUND, 255))
    for n in range(len(sprites)):
        canvas.alpha_composite(blob(n), (n % COLUMNS * SIDE, n // COLUMNS * SIDE))
    return canvas.convert("RGB")


def assert_alike(shown: Image.Image, expected: Image.Image) -> None:
    assert shown.size == expected.size
    difference = np.abs(np.asarray(shown).astype(int) - np.asarray(expected).astype(int))
    wrong = difference.max(-1) > 2
    assert not wrong.any(), f"{wrong.sum()} pixels differ, by {difference.max()}, as at {np.argwhere(wrong)[0][::-1]}"
    assert np.asarray(shown).std() > 20, "something is drawn"


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return open_output(tmp_path / "export")


@pytest.fixture
def sprites(store: OutputStore) -> list[Sprite]:
    return [keep(store, f"scene-{n}", blob(n)) for n in range(16)]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_draws_every_frame(engine: str, store: OutputStore, sprites: list[Sprite]) -> None:
    rotate = engine != "phaser"  # which has no way to draw frames that are turned: its texture coordinates are upright
    result = write_atlases(store, {"moss": sprites}, AtlasRules(PageRules(size=64, rotate=rotate)))
    pages = result.pages
    frames = [frame for path in pages for frame in json.loads(store.read(path))["frames"].values()]
    assert len(pages) > 1 and all(any(frame[what] for frame in frames) for what in ("trimmed", "rotated")[: 1 + rotate])
    asked = asked_of(sprites, pages)
    assert_alike(drawn_by(engine, store, asked), expected_of(sprites, asked))


def test_a_grid_is_a_sprite_sheet(store: OutputStore, sprites: list[Sprite]) -> None:
    rules = AtlasRules(PageRules("grid", padding=2, extrude=1))
    write_atlases(store, {"moss": sprites}, rules)
    asked = asked_of(sprites, [])
    cell = {"frameWidth": SIDE, "frameHeight": SIDE, "margin": 1, "spacing": 4}
    shown = drawn_by("phaser", store, asked | {"grid": {"image": "/atlas/moss.png", "cell": cell}})
    assert_alike(shown, expected_of(sprites, asked))
