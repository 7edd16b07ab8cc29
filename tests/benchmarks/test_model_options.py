"""Every benchmark that runs a model takes the same device and dtype, and says in its result which they were."""

from __future__ import annotations

import argparse
import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.model_options import (
    add_model_options,
    chosen_device,
    chosen_dtype,
    described_pipeline,
    load_pipeline,
)
from consistory_ray.errors import InputError

ROOT = Path(__file__).parents[2]
RUN_A_MODEL = (
    "ablations",
    "batch_invariance",
    "consistency",
    "control",
    "cost",
    "fast",
    "gate",
    "miniature_quality",
    "multi_subject",
    "paper",
    "personalization",
    "personalization_choices",
    "schedulers",
    "sprites",
    "throughput",
)


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    return parser.parse_args(words)


def test_which_benchmarks_run_a_model() -> None:
    def loads(path: Path) -> bool:
        called = {node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
        names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in called}
        return bool(names & {"from_pretrained", "load_pipeline", "RunOptions"})

    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if loads(path)}
    of_the_cpu = {"engine", "busy_machine"}  # about processes and cores, whatever the model
    assert scripts - {"model_options"} - of_the_cpu == set(RUN_A_MODEL), "a new one takes --device and --dtype, too"
    for script in RUN_A_MODEL:
        source = (ROOT / "benchmarks" / f"{script}.py").read_text()
        assert "from benchmarks.model_options import" in source and '"float16"' not in source, "one list of dtypes"


@pytest.mark.parametrize("script", RUN_A_MODEL)
def test_every_one_takes_a_device_and_a_dtype(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(ROOT / "benchmarks" / f"{script}.py")
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(path, run_name="__main__")  # as Python runs a script, without loading torch once more
    told = capsys.readouterr().out
    assert end.value.code == 0 and "--device" in told and "--dtype" in told and "float16" in told


def test_auto_is_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (chosen_device(options()).type, chosen_dtype(options())) == ("cpu", torch.float32)
    assert chosen_dtype(options("--dtype", "bfloat16")) == torch.bfloat16
    assert chosen_dtype(options("--device", "meta", "--dtype", "float16")) == torch.float16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu"])
def test_a_device_that_is_not_there_is_refused_with_the_fix(device: str) -> None:
    with pytest.raises(InputError, match="--device"):
        chosen_device(options("--device", device))


def test_results_say_where_they_come_from() -> None:
    pipeline = load_pipeline(options("--device", "cpu", "--dtype", "bfloat16", "--threads", "1"))
    assert described_pipeline(pipeline) == {"device": "cpu", "dtype": "bfloat16", "torch": torch.__version__}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "consistency",
            ["--subjects", "2", "--scenes", "2", "--steps", "2", "--sheet-subjects", "1", "--baselines", "--details"],
        ),
        ("control", ["--subjects", "1", "--steps", "2", "--timed", "1"]),
        ("miniature_quality", ["--n", "2", "--steps", "2", "--calibration", "0", "--timed", "1"]),
        ("personalization", ["--subjects", "1", "--scenes", "2", "--steps", "2", "--sheet-subjects", "1"]),
        (
            "paper",
            [
                "seeds",
                "baselines",
                "--subjects",
                "1",
                "--scenes",
                "2",
                "--steps",
                "2",
                "--seeds",
                "2",
                "--budgets",
                "2",
            ],
        ),
    ],
)
def test_short_runs(script: str, words: list[str], tmp_path: Path) -> None:
    command = [
        sys.executable,
        ROOT / "benchmarks" / f"{script}.py",
        *words,
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--threads",
        "1",
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(found.stdout.splitlines()[-1])
    assert (told["device"], told["dtype"]) == ("cpu", "float32")
