"""How far a scene depends on its batch: what the benchmark tells of a few steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.batch_invariance import main


def test_a_fixed_shape_alone_makes_a_scene_the_same_to_the_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--scenes", "3", "--alone", "2", "--steps", "6"]
    found = main(["--dtypes", "float32", "--profiles", "fast", *few, "--out", str(tmp_path)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    stored = json.loads((tmp_path / "batch_invariance.json").read_text())
    assert stored.pop("stamp")["model_fingerprint"] and stored == found
    case = found["cases"]["float32"]["fast"]
    assert case["fixed_max"] == 0 < case["latents_max"] < 0.2 * case["latents_std"], case
    assert 0 <= case["latents_mean"] <= case["latents_max"] and case["masks_flipped"] <= 0.01, case
