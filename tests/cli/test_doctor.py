"""``consistory-ray doctor`` from end to end, with the bundled model on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from consistory_ray.cli.app import app
from consistory_ray.doctor import examination, machine
from consistory_ray.settings import PROFILES

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart.yaml"


def call(*args: object) -> Result:
    torch.set_num_threads(1)
    return CliRunner().invoke(app, ["doctor", *(str(arg) for arg in args)])


def test_a_machine_that_is_well(tmp_path: Path) -> None:
    result = call("--device", "cpu", "--quick", "--json", "--job", QUICKSTART, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["is_well"] and told["model"] == "miniature" and told["device"] == "cpu"
    assert {timing["way"] for timing in told["timings"]} == {"vanilla", "anchors", *PROFILES}
    assert all(timing["seconds"] > 0 and timing["full_seconds"] > 0 for timing in told["timings"])
    assert all(0 < timing["mfu"] < 2 for timing in told["timings"] if timing["way"] != "anchors")
    assert told["precision"]["finite"] and {check["call"] for check in told["kernels"]} == {"plain", "ragged"}
    assert told["forecast"]["scenes"] == 24 and told["forecast"]["seconds"] > 0
    assert [finding["about"] for finding in told["findings"]] == ["output"]
    assert not (tmp_path / "out").exists()


def without_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes time."""
    for part in ("of_arithmetic", "of_model"):
        monkeypatch.setattr(examination.Examination, part, lambda self, told, *rest: told)


def test_something_wrong_ends_with_1_and_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    without_parts(monkeypatch)
    real = machine.examined_machine()
    changes: dict[str, Any] = {"cuda": "13.0", "gpus": (), "cuda_problem": "the driver is too old", "driver": "470.1"}
    broken = examination.replace(real, **changes)
    monkeypatch.setattr(machine, "examined_machine", lambda: broken)
    result = call()
    assert result.exit_code == 1
    assert "the driver is too old" in result.stdout and "nvidia-smi" in result.stdout
    assert "something is wrong" in result.stdout
    assert call("--device", "cpu").exit_code == 0, "nobody asked for it"


@pytest.mark.parametrize("words", [("--model", "no/such/folder"), ("--job", "missing.yaml"), ("--dtype", "int3")])
def test_what_cannot_be_used_ends_with_2(words: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(examination.Examination, "of_arithmetic", lambda self, told: told)
    assert call("--device", "cpu", *words).exit_code == 2


def test_another_model_says_nothing_about_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    subject = {"concept": "cat", "anchors": ["a cat"], "scenes": ["a cat in snow"]}
    job.write_text(json.dumps({"name": "cats", "model": "some/model", "subjects": [subject]}))
    monkeypatch.setattr(examination.Examination, "of_arithmetic", lambda self, told: told)
    monkeypatch.setattr(examination.Examination, "of_model", lambda self, told, until: self.of_job(told))
    told = json.loads(call("--device", "cpu", "--model", "miniature", "--job", job, "--json").stdout)
    assert told["forecast"] is None
    assert any("says nothing about some/model" in finding["text"] for finding in told["findings"])
