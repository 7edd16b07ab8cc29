"""Real clients for what an export makes: packages from npm, in Chromium, with files from a server of their own."""

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
from typing import Any, ClassVar

import pytest
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "consistory-ray-tests"
WITHOUT_GPU = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
ABOUT_THE_GPU = ("GPU stall", "GL Driver")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


def from_npm(package: str, version: str) -> Path:
    """A package's folder; it is fetched once, and kept."""
    folder = CACHE / f"{package}-{version}"
    if not folder.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip(f"there is no npm to fetch {package} with")
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as fresh:
            command = [npm, "install", f"--prefix={fresh}", f"{package}@{version}", "--ignore-scripts", "--no-save"]
            options = ["--omit=optional", "--no-audit", "--no-fund", "--fetch-retries=0"]
            got = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, check=False)
            if got.returncode:
                pytest.skip(f"npm does not fetch {package}: {got.stderr.strip()[-200:]}")
            if not folder.exists():  # another test may have been faster
                Path(fresh, "node_modules").rename(folder)
    assert json.loads((folder / package / "package.json").read_text())["version"] == version
    return folder / package


@contextmanager
def opened(folder: Path, page_name: str) -> Iterator[Any]:
    """A page of a folder in Chromium; errors and warnings that it tells fail the test."""
    from playwright.sync_api import sync_playwright

    with served(folder) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=WITHOUT_GPU)
        page, errors = browser.new_page(viewport={"width": 800, "height": 600}), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda one: errors.append(one.text) if one.type in ("error", "warning") else None)
        page.goto(f"{url}/{page_name}")
        yield page
        browser.close()
    assert not [text for text in errors if not any(known in text for known in ABOUT_THE_GPU)]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder, from a server of its own."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        extensions_map: ClassVar = {**http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}

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


def picture_at(address: str) -> Image.Image:
    """The picture in a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1]))).convert("RGB")
