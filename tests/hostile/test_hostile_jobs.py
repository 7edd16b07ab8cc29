"""Job files that mean harm: each becomes a plan that stays within its output, or one clear error."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from consistory_ray.errors import InputError, JobError, Problem
from consistory_ray.jobs.job import parse_job
from consistory_ray.plan.plan import make_plan

SCRIPT = Path(__file__).with_name("hostile_jobs.py")
ROOT = SCRIPT.parents[2]
QUICK, ALL = 1500, 10_000


@pytest.fixture(scope="module")
def hostile() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("hostile_jobs", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder: Path, start: int, count: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Faults and summary of so many files, read by a process of its own, whose limits are its own, too."""
    command = [sys.executable, str(SCRIPT), str(folder), "--start", str(start), "--count", str(count)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    *faults, summary = map(json.loads, ended.stdout.splitlines())
    return faults, summary


def check(folder: Path, start: int, count: int) -> None:
    faults, summary = run(folder, start, count)
    print(summary)
    assert not faults, json.dumps(faults[:10], indent=1)
    assert summary["files"] == count and summary["left"] == []
    assert summary["grown_mb"] < 1500
    planned = sum(number for name, number in summary.items() if name.endswith(" planned"))
    refused = sum(number for name, number in summary.items() if name.endswith(" refused"))
    assert planned + refused == count and planned > count / 50, "some are harmless, else the others prove nothing"


def test_hostile_job_files(tmp_path: Path) -> None:
    check(tmp_path / "jobs", 0, QUICK)


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("start", range(QUICK, ALL, 1700))
def test_the_rest_of_ten_thousand(tmp_path: Path, start: int) -> None:
    check(tmp_path / "jobs", start, min(1700, ALL - start))


def test_the_same_number_is_the_same_file(hostile: ModuleType) -> None:
    assert [hostile.make(number) for number in range(50)] == [hostile.make(number) for number in range(50)]


def test_what_is_wrong_would_be_noticed(hostile: ModuleType, tmp_path: Path) -> None:
    """The checks are able to fail."""
    assert "names no field" in hostile.fault_of_refusal(InputError("no"))
    assert "place or fix" in hostile.fault_of_refusal(JobError("no", [Problem("", "x", "y")]))
    assert "unprintable" in hostile.fault_of_refusal(JobError("no", [Problem("a", "\x1b[31m", "y")]))
    assert "characters" in hostile.fault_of_refusal(JobError("no" * 200_000, [Problem("a", "b", "c")]))
    nested = tmp_path / "job.json"
    nested.write_text("{}")
    assert hostile.fault_of(nested, str(tmp_path))[0] == "refused"


@pytest.mark.parametrize("concept", ["\x1b[31m", "\0", "\u202ecat"])
def test_messages_carry_no_control_characters(concept: str) -> None:
    subject = {"concept": concept, "anchors": ["at home", "outside"], "scenes": ["at sea"]}
    with pytest.raises(JobError) as refused:
        parse_job({"name": "x", "subjects": [subject]})
    assert all(character.isprintable() or character == "\n" for character in str(refused.value))


def test_a_hundred_thousand_concepts_are_not_all_repeated() -> None:
    subject = {"concept": ["cat"] * 100_000, "anchors": ["at home"] * 2, "scenes": ["at sea"]}
    with pytest.raises(JobError) as refused:
        parse_job({"name": "x", "subjects": [subject]})
    assert len(str(refused.value)) < 5000


def test_a_stored_subject_written_out_by_hand_is_explained() -> None:
    subject = {"from": {"place": "x"}, "concept": "cat", "subject": "a cat", "anchors": ["a"], "scenes": ["b"]}
    with pytest.raises(JobError, match=r"subjects\[0\]\.from"):
        make_plan(parse_job({"name": "x", "subjects": [subject]}))
