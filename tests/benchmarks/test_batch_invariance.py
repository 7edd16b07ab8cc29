"""How far a scene depends on its batch: the committed result is of the committed weights, and can be made again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.batch_invariance import main
from consistory_ray.consistory import ConsiStoryPipeline

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_a_fixed_shape_alone_makes_a_scene_the_same_to_the_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--scenes", "3", "--alone", "2", "--steps", "6"]
    found = main(["--dtypes", "float32", "--profiles", "fast", *few, "--out", str(tmp_path)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert json.loads((tmp_path / "batch_invariance.json").read_text()) == found
    case = found["cases"]["float32"]["fast"]
    assert case["fixed_max"] == 0 < case["latents_max"] < 0.2 * case["latents_std"], case
    assert 0 <= case["latents_mean"] <= case["latents_max"] and case["masks_flipped"] <= 0.01, case


def test_the_committed_result_is_of_the_committed_weights() -> None:
    committed = json.loads((RESULTS / "batch_invariance.json").read_text())
    assert committed["model_fingerprint"] == ConsiStoryPipeline.from_pretrained("miniature", device="cpu").fingerprint
    assert committed["scenes"] >= 8 and committed["steps"] == 50
    assert {dtype: set(cases) for dtype, cases in committed["cases"].items()} == {
        dtype: {"exact", "fast"} for dtype in ("float32", "bfloat16")
    }
    assert all(case["fixed_max"] == 0 for cases in committed["cases"].values() for case in cases.values())
