"""An export of 10,000 pictures that is killed again and again: at the end nothing is doubled and nothing missing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from consistory_ray.export.records import CONTROL
from consistory_ray.output.assets import WrittenAsset, encode_png
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.storage import open_output

PICTURES = 10_000
KILLS = 4


def rendered(folder: Path, count: int) -> None:
    """An output of so many pictures of 4 x 4 pixels, each its own."""

    def rows() -> Iterator[IndexRow]:
        for number in range(count):
            values = {
                "asset_id": hashlib.sha256(str(number).encode()).hexdigest()[:32],
                "kind": "scene",
                "subject": f"cat-{number // 100:03d}",
                "scene": f"scene-{number % 100:02d}",
                "prompt": f"a cat, {number}",
                "seed": number,
                "anchor_seeds": [1],
                "settings_hash": "5" * 64,
                "model": "miniature",
                "model_fingerprint": "f" * 64,
            }
            colour = (number % 256, number // 256 % 256, 7)
            data = encode_png(Image.new("RGB", (4, 4), colour), values)
            path = f"images/{values['subject']}/{values['scene']}.png"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
            written = WrittenAsset(path, len(data), hashlib.sha256(data).hexdigest())
            yield IndexRow.rendered(values, written, (4, 4))

    with IndexWriter(open_output(folder)) as writer:
        writer.extend(rows())


def command(run: Path, to: Path) -> list[str]:
    """An export that makes its files anew, at another size."""
    start = "from consistory_ray.cli import main; main()"
    return [sys.executable, "-c", start, "export", str(run), "--to", str(to), "--scale", "2", "--json"]


def made(to: Path) -> int:
    """How many pictures are there, those that are being written not counted."""
    folders = [entry.path for entry in os.scandir(to) if entry.name.startswith("cat-")] if to.exists() else []
    return sum(name.startswith("scene-") for folder in folders for name in os.listdir(folder))


@pytest.mark.slow
def test_an_export_that_is_killed_again_and_again(tmp_path: Path) -> None:
    run, to = tmp_path / "run", tmp_path / "to"
    rendered(run, PICTURES)
    rng, deaths, reached = random.Random(19), 0, 0
    while deaths < KILLS:
        process = subprocess.Popen(command(run, to), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = reached + rng.randrange(PICTURES // (2 * KILLS), PICTURES // KILLS - 200)
        while process.poll() is None and made(to) < until:
            time.sleep(0.05 + rng.random() / 20)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was over before it was killed"
        deaths, before = deaths + 1, reached
        reached = made(to)
        assert before <= reached < PICTURES and not (to / "manifest.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in to.glob("cat-*/scene-*.png")}
    done = subprocess.run(command(run, to), check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["counts"] == {"ok": PICTURES} and not told["stale"] and not told["not_made"]
    assert 0 < told["written"] < PICTURES - len(kept) // 2, "what was finished is not made again"
    again = sum(path.stat().st_mtime_ns != when for path, when in kept.items())
    assert again <= 2048, f"{again} were made twice: more than a journal may have in memory"

    rows = json.loads((to / "manifest.json").read_text())["files"]
    assert len(rows) == len({row["file"] for row in rows}) == len({row["asset_id"] for row in rows}) == PICTURES
    there = {path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file() and CONTROL not in path.parts}
    assert there == {row["file"] for row in rows} | {"manifest.json", "manifest.csv"}, "no more, no less, nothing begun"
    for row in rows:
        data = (to / row["file"]).read_bytes()
        assert len(data) == row["size"] and hashlib.sha256(data).hexdigest() == row["sha256"]
    with Image.open(io.BytesIO(data)) as last:
        assert last.size == (8, 8)
    assert len(list((to / CONTROL / "journal").iterdir())) == 1

    repeated = subprocess.run(command(run, to), check=True, capture_output=True, text=True)
    assert json.loads(repeated.stdout)["written"] == 0


def test_ctrl_c_ends_in_order(tmp_path: Path) -> None:
    run, to = tmp_path / "run", tmp_path / "to"
    rendered(run, 2000)
    process = subprocess.Popen(command(run, to), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while made(to) < 100 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75 and "of 2000 pictures exported; the same command goes on" in " ".join(told.split())
    count = made(to)
    assert 100 <= count < 2000
    done = subprocess.run(command(run, to), check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["written"] == 2000 - count, "each that was there was taken down"
