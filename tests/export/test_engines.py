"""Atlases in the engines they are for: PixiJS and Phaser load them in Chromium and draw every frame."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consistory_ray.export.atlas import Sprite
from consistory_ray.export.atlas_files import AtlasRules
from consistory_ray.export.packing import PageRules
from consistory_ray.output.storage import OutputStore, open_output
from tests.export.layouts import blob, keep, write_atlases

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ENGINES = {"pixi": ("pixi.js", "8.22.0", "dist/pixi.min.js"), "phaser": ("phaser", "3.90.0", "dist/phaser.min.js")}
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "consistory-ray-tests"
BACKGROUND, SIDE, COLUMNS = (32, 64, 96), 48, 4
GPU_LESS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")]


def engine_script(name: str) -> bytes:
    """An engine from npm, kept for the next time."""
    package, version, path = ENGINES[name]
    folder = CACHE / f"{package}-{version}"
    if not folder.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("there is no npm to get an engine with")
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as fresh:
            command = [npm, "install", f"--prefix={fresh}", f"{package}@{version}", "--ignore-scripts", "--no-save"]
            got = subprocess.run(
                [*command, "--no-audit", "--no-fund", "--fetch-retries=0"],
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            if got.returncode:
                pytest.skip(f"npm does not fetch {package}: {got.stderr.strip()[-200:]}")
            Path(fresh, "node_modules").rename(folder) if not folder.exists() else None
    found = json.loads((folder / package / "package.json").read_text())
    assert found["version"] == version
    return (folder / package / path).read_bytes()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, from a server of its own."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def drawn_by(engine: str, store: OutputStore, asked: dict[str, Any]) -> Image.Image:
    """What an engine shows in Chromium."""
    from playwright.sync_api import sync_playwright

    folder = Path(store.root)
    (folder / "engine.js").write_bytes(engine_script(engine))
    shutil.copy(Path(__file__).parent / "engines.html", folder / "index.html")
    with served(folder) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=GPU_LESS)
        page, errors = browser.new_page(viewport={"width": 800, "height": 600}), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda one: errors.append(one.text) if one.type in ("error", "warning") else None)
        page.goto(f"{url}/index.html")
        address = page.evaluate(f"asked => drawers.{engine}(asked)", asked)
        browser.close()
    assert not [text for text in errors if "GPU stall" not in text and "GL Driver" not in text]
    shown = Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1]))).convert("RGB")
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
