"""Outputs whose pictures show a disc on a plain ground, with the masks that a run would have kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consistory_ray.output.assets import encode_png, write_asset
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.pictures.masks import encode_mask

SIDE, TOKENS = 64, 16


def disc(centre: tuple[float, float] = (32, 32), radius: float = 14, side: int = SIDE) -> np.ndarray:
    """Where a disc is, bool ``[side, side]``; centre as row and column."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    return np.asarray((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2)


def drawn(where: np.ndarray, colour: tuple[int, int, int] = (222, 62, 58)) -> Image.Image:
    """A subject with a dark outline, and two strokes inside, on a light ground."""
    pixels = np.full((*where.shape, 3), (200, 224, 240), np.uint8)
    pixels[where] = (30, 26, 34)
    inner = where & np.roll(where, 2, 0) & np.roll(where, -2, 0) & np.roll(where, 2, 1) & np.roll(where, -2, 1)
    pixels[inner] = colour
    rows, columns = np.nonzero(where)
    reach = int(np.sqrt(len(rows))) // 4
    for line in (-reach // 2, reach // 2):
        top, left = int(rows.mean()) + line, max(0, int(columns.mean()) - reach)
        pixels[top : top + 2, left : int(columns.mean()) + reach] = (30, 26, 34)
    return Image.fromarray(pixels)


def tokens(where: np.ndarray, count: int = TOKENS) -> np.ndarray:
    """The mask of a picture on a grid: tokens of which half is the subject."""
    side = where.shape[0] // count
    return np.asarray(where.reshape(count, side, count, side).mean((1, 3)) >= 0.5)


Add = Callable[..., IndexRow]


@pytest.fixture
def output(tmp_path: Path) -> OutputStore:
    """An empty output."""
    return open_output(tmp_path / "run")


@pytest.fixture
def add() -> Add:
    """``add(store, "cat", "snow", take=2, ...)``: one more picture in an output, with its row."""

    def one(
        store: OutputStore,
        subject: str,
        scene: str,
        *,
        image: Image.Image | None = None,
        mask: np.ndarray | None = None,
        masked: bool = True,
        take: int = 1,
        score: float | None = None,
        kind: str = "scene",
        status: str = "ok",
    ) -> IndexRow:
        first = hashlib.sha256(f"{subject}/{scene}".encode()).hexdigest()[:32]
        where = disc()
        values: dict[str, Any] = {
            "asset_id": first if take == 1 else hashlib.sha256(f"{first}/{take}".encode()).hexdigest()[:32],
            "kind": kind,
            "subject": subject,
            "scene": scene,
            "prompt": f"a drawing of a {subject} {scene}",
            "negative_prompt": None,
            "seed": 7,
            "anchor_seeds": [1],
            "settings": {"num_inference_steps": 8},
            "settings_hash": "5" * 64,
            "model": "miniature",
            "model_fingerprint": "f" * 64,
            **({"take": take, "take_of": first} if take > 1 else {}),
            **({} if score is None else {"score": score, "scored_by": "test identity 1"}),
        }
        if status != "ok":
            row = IndexRow.failed(values, "no such luck", status=status)  # type: ignore[arg-type]
        else:
            picture = drawn(where) if image is None else image
            path = f"images/{subject}/{scene}{'' if take == 1 else f'.take-{take}'}.png"
            written = write_asset(store, path, encode_png(picture, values))
            grid = encode_mask(tokens(where) if mask is None else mask) if masked else None
            row = IndexRow.rendered(values, written, picture.size, mask=grid)
        with IndexWriter(store) as writer:
            writer.extend([row])
        return row

    return one
