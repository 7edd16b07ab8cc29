"""A job that accepts that a concept stands nowhere: those pictures fail with the reason, the others are made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from consistory_ray.cli.app import app
from consistory_ray.output.index.index import read_index
from consistory_ray.testing import read_trace

FAKE = "consistory_ray.testing:FakeRenderer"
JOB = """
model: fake
subjects:
- {concept: cat, id: whole, subject: a cat, anchors: [a, b], scenes: [c, d]}
- {concept: cat, id: scene, on_missing_concept: skip, anchors: [a cat, cat b], scenes: [a dog, a cat]}
- {concept: cat, id: anchor, on_missing_concept: skip, anchors: [a cat, b], scenes: [a dog, a cat, cats]}
"""


def call(command: str, folder: Path, *more: str) -> Result:
    (folder / "trace").mkdir(exist_ok=True)
    (folder / "job.yaml").write_text(JOB)
    options = json.dumps({"trace": str(folder / "trace")})
    given = [command, str(folder / "job.yaml"), "-o", str(folder / "out"), "--workers", "1", "--cpus-per-worker", "1"]
    return CliRunner().invoke(app, [*given, "--renderer", FAKE, "--renderer-options", options, *more])


@pytest.mark.usefixtures("ray_cluster")
def test_accepted_failures_are_rows_and_the_rest_is_made(tmp_path: Path) -> None:
    result = call("render", tmp_path, "--max-failures", "0")
    assert result.exit_code == 1, result.output
    rows = read_index(str(tmp_path / "out")).to_pylist()
    failed = [(row["subject"], row["error"]) for row in rows if row["status"] == "failed"]
    assert sum(row["status"] == "ok" for row in rows) == 4 + 3
    assert sorted(set(failed)) == [
        ("anchor", 'the prompt of anchor-1 contains nothing of "cat": "b"'),
        ("scene", 'the prompt contains nothing of "cat": "a dog"'),
    ]
    assert len(failed) == 1 + 5
    assert result.output.count("the prompt of anchor-1 contains nothing") <= 3, "once in each report, not per picture"
    assert "(and 4 more pictures of this subject)" in result.output
    assert {span.subject for span in read_trace(tmp_path / "trace")} == {"", "whole", "scene"}
    again = call("render", tmp_path)
    assert again.exit_code == 1 and "0 pictures made" in again.output
    retried = call("retry", tmp_path)
    assert retried.exit_code == 1
    assert sum(row["status"] == "failed" for row in read_index(str(tmp_path / "out")).to_pylist()) == 6
