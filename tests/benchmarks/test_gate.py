"""The benchmark of the gate asks for takes as runs do, keeps the best, and compares with all takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gate
from benchmarks.gate import Takes, compared, gated
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.plan.takes import take_seed
from consistory_ray.quality.gate import Bar

RESULT = Path(gate.__file__).parent / "results" / "gate.json"
GAPS = np.array([[0.1, 0.1, 0.1], [0.5, 0.3, 0.1], [0.7, 0.4, 0.5]])
SCORES = 1 - GAPS


def test_takes_end_with_the_first_that_passes_and_the_best_is_kept() -> None:
    kept, counts, short = gated(Takes(GAPS, SCORES), Bar(threshold=0.65, max_takes=3))
    assert kept == [(0, 0), (1, 1), (2, 1)], "of the third scene no take passes: the best one stays"
    assert counts == [1, 2, 3] and short == 1


def test_what_is_kept_is_measured_by_gaps_and_not_by_scores() -> None:
    flattered = Takes(GAPS, SCORES.copy())
    flattered.scores[1, 0] = 0.9  # the gate likes an outlier
    honest, fooled = (
        compared([takes, takes], Bar(threshold=0.65, max_takes=3)) for takes in (Takes(GAPS, SCORES), flattered)
    )
    assert honest["pictures"] == 2 and honest["gap"] == pytest.approx(np.mean([0.1, 0.3, 0.4]))
    assert honest["gap_ungated"] == pytest.approx(GAPS.mean()) and honest["short"] == pytest.approx(1 / 3)
    limit = 2 * float(np.median(GAPS))
    assert honest["outliers_ungated"] == pytest.approx(1 / 9), f"one gap in nine is above {limit}"
    assert fooled["gap"] == pytest.approx(np.mean([0.1, 0.5, 0.4]))
    assert fooled["gap"] > honest["gap"]


def test_takes_have_the_seeds_of_runs() -> None:
    (subject,) = consistency_subjects(1, scenes=2)
    several = gate.with_takes(subject, 3)
    assert several.prompts[:4] == (subject.prompts[0],) * 3 + subject.prompts[1:]
    assert several.seeds[:3] == (subject.seeds[0], take_seed(subject.seeds[0], 2), take_seed(subject.seeds[0], 3))


def test_the_committed_result_is_made_of_its_rows() -> None:
    report = json.loads(RESULT.read_text())
    rows = [Takes(np.array(row["gaps"]), np.array(row["scores"])) for row in report["subjects"]]
    bar = Bar(**{key: report["gate"][key] for key in ("threshold", "within", "max_takes")})
    again = compared(rows, bar)
    for name in ("subjects", "pictures", "outlier_ratio", "gap_ratio", "short"):
        assert report["numbers"][name] == pytest.approx(again[name], abs=2e-3), name
    assert report["gate"]["metric"].split()[0] != report["measured_by"].split()[0], "what gates does not measure"


def test_casting_is_compared_with_the_subjects_as_they_were() -> None:
    report = json.loads(RESULT.read_text())
    plain, cast = (
        [
            Takes(np.array(row["gaps"]), np.array(row["scores"]), np.ones((6, 4, 2)), row["extra"])
            for row in report[name]
        ]
        for name in ("subjects", "cast")
    )
    bar = Bar(**{key: report["gate"][key] for key in ("threshold", "within", "max_takes")})
    again = gate.with_cast(plain, cast, bar)
    for way in ("with_cast", "cast_alone"):
        for name in ("gap_ratio", "outlier_ratio", "outliers", "pictures"):
            assert report["numbers"][way][name] == pytest.approx(again[way][name], abs=2e-3), (way, name)
    scenes = [len(one.gaps) for one in cast]
    assert again["cast_alone"]["pictures"] == 1 + sum(one.extra for one in cast) / sum(scenes), "candidates count"


@pytest.mark.slow
def test_a_short_run(tmp_path: Path) -> None:
    command = [
        sys.executable,
        gate.__file__,
        "--subjects",
        "1",
        "--scenes",
        "2",
        "--takes",
        "2",
        "--threads",
        "1",
        "--cast",
        "2",
    ]
    done = subprocess.run([*command, "--out", str(tmp_path)], check=True, capture_output=True, text=True, timeout=600)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["subjects"] == 1 <= last["pictures"] <= 2 and 0 < last["score_share"] < 1
    assert last == json.loads((tmp_path / "gate.json").read_text())["numbers"]
