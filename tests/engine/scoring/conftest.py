"""Outputs with pictures in them, as a render leaves them, made without Ray and without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from consistory_ray.output.assets import encode_png, write_asset
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.storage import open_output
from consistory_ray.pictures import encode_mask
from consistory_ray.testing import FakeRenderer

MakeOutput = Callable[..., Path]


@pytest.fixture(scope="session")
def make_output() -> MakeOutput:
    """``make_output(folder, subjects=3, more=1)``: two anchors and three scenes each, ``more`` of the first."""

    def make(folder: Path, subjects: int = 3, more: int = 0, *, masks: bool = True) -> Path:
        store, renderer = open_output(str(folder)), FakeRenderer(size=(32, 32))
        mask = encode_mask(np.pad(np.ones((2, 2), bool), 1)) if masks else None
        places = [
            "in the forest",
            "on the beach",
            "in space",
            "in the snow",
            "in the rain",
            "at sunset",
            "under the sea",
        ]
        with IndexWriter(store) as writer:
            for number in range(subjects):
                for count, place in enumerate(places[: 5 + (more if number == 0 else 0)]):
                    kind = "anchor" if count < 2 else "scene"
                    name = f"anchor-{count}" if kind == "anchor" else f"scene-{count}"
                    words = {
                        "asset_id": hashlib.sha256(f"{number} {place}".encode()).hexdigest()[:32],
                        "kind": kind,
                        "subject": f"dragon-{number}",
                        "scene": name,
                        "prompt": f"a dragon {place}",
                        "seed": count,
                        "anchor_seeds": [0, 1],
                        "settings_hash": "5" * 64,
                        "model": "fake",
                        "model_fingerprint": "f" * 64,
                    }
                    folder_of = "anchors" if kind == "anchor" else "images"
                    data = encode_png(renderer.picture(str(words["asset_id"])), words)
                    written = write_asset(store, f"{folder_of}/dragon-{number}/{name}.png", data)
                    writer.add(IndexRow.rendered(words, written, (32, 32), mask=mask))
        return folder

    return make
