"""The benchmark of the first hour on a GPU runs here on the CPU, so that no part dies of a slip on its first one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import device


def test_every_part_runs_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [name for name in device.PARTS if name != "compile"]  # see below
    words = ["--device", "cpu", "--tiny", "--steps", "2", "--batch", "2", "--output", str(tmp_path)]
    found = device.main([*words, "--parts", ",".join(parts)])
    stored = json.loads((tmp_path / "device.json").read_text())
    assert stored.pop("stamp")["command"] and stored == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not {name: found[name]["error"] for name in parts if "error" in found[name]}
    assert found["trace"]["2"]["operators_ms"] and (tmp_path / "trace_1.json.gz").stat().st_size
    assert found["kernels"]["shared"].keys() == {"flash"} and len(found["kernels"]["seconds"]["math"]) == 2
    assert found["cache"]["1"].keys() == {"device", "ahead", "pageable"}
    assert found["batch"]["float32"]["rms"] < 0.05
    assert found["profiles"]["2"].keys() == {"vanilla", "exact", "fast", "turbo"}
    assert found["memory"]["1"]["cache"] > 0


@pytest.mark.slow
def test_compiled_blocks_run(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--tiny", "--steps", "2", "--output", str(tmp_path), "--parts", "compile"]
    words += ["--backend", "eager"]  # a compiler's pictures are compared in tests/consistory/test_compiling.py
    found = device.main(words)["compile"]
    assert "error" not in found and found["compiled"] > 0


def test_a_part_that_fails_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(bench: device.Bench) -> dict[str, object]:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setitem(device.PARTS, "cache", fails)
    monkeypatch.setitem(device.PARTS, "batch", lambda bench: {"fine": True})
    bench = device.Bench(device.torch.device("cpu"), device.torch.float32, True, device.MethodSettings())
    found = device.measured(bench, ["cache", "batch"])
    assert found == {"cache": {"error": "RuntimeError: CUDA error: out of memory"}, "batch": {"fine": True}}


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        device.parse_arguments(["--parts", "kernels,colour"])
    assert "there are no parts colour" in capsys.readouterr().err
