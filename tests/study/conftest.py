"""Outputs to compare, and people who answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from consistory_ray.output.assets import encode_png, write_asset
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.storage import open_output
from consistory_ray.study.answers import Key


@pytest.fixture
def output(tmp_path: Path) -> Callable[..., str]:
    """``output("ours", subjects=3, scenes=4)``: a run whose pictures have the method's name in their parameters."""

    def make(name: str, subjects: int = 3, scenes: int = 4, **changes: str) -> str:
        store = open_output(tmp_path / "runs" / name)
        with IndexWriter(store) as writer:
            for subject in range(subjects):
                for scene in range(-1, scenes):
                    values: dict[str, Any] = {
                        "asset_id": f"{name}-{subject}-{scene}".encode().hex().ljust(32, "0")[:32],
                        "kind": "anchor" if scene < 0 else "scene",
                        "subject": f"cat-{subject}",
                        "scene": f"scene-{scene}",
                        "prompt": f"a cat at place {scene}",
                        "negative_prompt": None,
                        "seed": 7,
                        "anchor_seeds": [1],
                        "settings": {"method": name},
                        "settings_hash": "5" * 64,
                        "model": name,
                        "model_fingerprint": "f" * 64,
                    } | changes
                    path = f"images/{subject}/{scene}.png"
                    colour = (40 * subject % 256, 60 * (scene + 1) % 256, sum(name.encode()) % 256)
                    written = write_asset(store, path, encode_png(Image.new("RGB", (32, 24), colour), values))
                    writer.extend([IndexRow.rendered(values, written, (32, 24))])
        return store.url

    return make


@pytest.fixture
def answer_as(tmp_path: Path) -> Callable[..., Path]:
    """``answer_as(key, "ada", choose)``: the file of a person who chooses a run's name, or None, for each question."""

    def make(key: Key, person: str, choose: Callable[..., str | None]) -> Path:
        answers = []
        for question in key.questions:
            liked = choose(question)
            side = "tie" if liked is None else "left" if liked == question.left else "right"
            answers.append({"question": question.id, "choice": side, "seconds": 2.5})
        path = tmp_path / f"answers-{person}.json"
        path.write_text(json.dumps({"study": key.id, "person": person, "answers": answers}))
        return path

    return make
