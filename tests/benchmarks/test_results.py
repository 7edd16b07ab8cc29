"""What is committed as a result says which model, versions and machine made it, and is of the committed weights."""

from __future__ import annotations

import datetime
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import result_stamp
from benchmarks.result_stamp import KEYS, PACKAGES, command, stamped
from consistory_ray.adapters import LoRA
from consistory_ray.consistory import ConsiStoryPipeline

BENCHMARKS = Path(result_stamp.__file__).parent
RESULTS = BENCHMARKS / "results"
COMMITTED = {path.relative_to(RESULTS).as_posix(): path for path in RESULTS.rglob("*.json")}
INPUTS = {"labels/labels.json"}
"""Made by hand, not by a command."""
WITHOUT_A_MODEL = {"engine.json", "host_memory.json"}
"""Of processes and memory, whatever the model: no fingerprint, no dtype."""
UNSTAMPED = "made before results carried a stamp; it has its fingerprint"
TO_BE_REDONE = {
    "engine.json": "made before results carried a stamp, on a machine that nobody else used",
    "fast.json": UNSTAMPED,
    "host_memory.json": "made before results carried a stamp, and put together by hand",
    "miniature_quality.json": "made before results carried a stamp, and without its fingerprint",
    "personalization.json": UNSTAMPED,
    "schedulers.json": UNSTAMPED + " once for each schedule",
}
"""Old results, and why each has to be made again. This only shrinks: a new result carries its stamp."""


def told(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(COMMITTED[name].read_text())
    return found


@functools.cache
def fingerprint_with(loras: tuple[str, ...]) -> str:
    """That of the committed weights, with LoRAs fused into them."""
    return ConsiStoryPipeline.from_pretrained("miniature", device="cpu", loras=[*map(LoRA, loras)]).fingerprint


@pytest.fixture(scope="module")
def fingerprint() -> str:
    """That of the committed weights."""
    return fingerprint_with(())


@pytest.mark.parametrize("name", sorted(set(COMMITTED) - INPUTS - set(TO_BE_REDONE)))
def test_a_result_says_where_it_comes_from(name: str) -> None:
    stamp = told(name)["stamp"]
    assert set(stamp) == set(KEYS) and set(stamp["versions"]) == set(PACKAGES)
    assert stamp["device"] and datetime.date.fromisoformat(stamp["date"])
    assert re.match(r"python benchmarks/\w+\.py\b", stamp["command"]) and not re.search(r" /|=/", stamp["command"])
    assert (BENCHMARKS.parent / stamp["command"].split()[1]).exists()
    if name in WITHOUT_A_MODEL:
        assert stamp["model_fingerprint"] is None
    else:
        weights = fingerprint_with(tuple(told(name).get("loras", ())))
        assert stamp["model_fingerprint"] == weights, "made with other weights: make it again"
        assert stamp["dtype"]


def test_old_results_get_fewer(fingerprint: str) -> None:
    assert set(TO_BE_REDONE) <= set(COMMITTED), "take it off the list"
    assert len(TO_BE_REDONE) <= 6
    for name in TO_BE_REDONE:
        assert "stamp" not in told(name), f"{name} has been made again: take it off the list"
        assert told(name).get("model_fingerprint", fingerprint) == fingerprint, f"{name} is of other weights"


def test_labels_are_of_pictures_of_the_committed_weights(fingerprint: str) -> None:
    for name in INPUTS:
        assert told(name)["model_fingerprint"] == fingerprint, "label pictures of these weights: benchmarks/labels.py"


def test_every_benchmark_stamps_what_it_writes() -> None:
    writes = re.compile(r'/ f?"[\w{}]+\.json"\)\.write_text\((.*)')
    found = {}
    for path in BENCHMARKS.rglob("*.py"):
        for line in writes.findall(path.read_text()):
            found[path.relative_to(BENCHMARKS).as_posix()] = line
    assert {"consistency.py", "cost.py", "engine.py", "fast.py"} <= set(found)
    for name in found:
        assert "stamped(" in (BENCHMARKS / name).read_text(), f"{name} writes a result without its stamp"


def test_a_stamp_names_no_ones_folders() -> None:
    script = str(BENCHMARKS / "fast.py")
    words = [script, "--cache", "/home/me/pictures", "--subjects", "3", "--out=/tmp/x", "--set", "a=1 b=2"]
    assert command(words) == "python benchmarks/fast.py --subjects 3 --set 'a=1 b=2'"
    stamp = stamped({"n": 1}, fingerprint="f" * 64, device="cpu", dtype="float32")["stamp"]
    assert set(stamp) == set(KEYS) and stamp["dtype"] == "float32" and stamp["device"] == "cpu"
    assert stamped({})["stamp"]["model_fingerprint"] is None is stamped({})["stamp"]["dtype"]
