"""What is told of scores: outliers and copies by hand, ranks, and the page that shows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.engine.scoring.evaluate import scorable
from consistory_ray.output.gallery.evaluation import MAX_SUBJECTS, build_evaluation_page, listed
from consistory_ray.output.storage import open_output
from consistory_ray.quality.scores import Score, scores_to_table
from consistory_ray.quality.scoring import MetricFacts
from consistory_ray.quality.summary import Number, SubjectSummary, Summary, summarise

MakeOutput = Callable[..., Path]
FACTS = [
    MetricFacts("fake", "1", ("fake_identity", "fake_among", "fake_alignment")),
    MetricFacts("background", "1", ("background_distance",)),
]


def summary_of(out: Path, told: dict[str, dict[str, Any]], version: str = "1") -> Summary:
    """Of an output whose scenes have these scores by their names; what is not told is 0.9."""
    rows = scorable(open_output(str(out)))
    paths = {row["path"]: row["asset_id"] for row in rows.to_pylist()}
    scores = []
    for row in rows.to_pylist():
        for fact in FACTS:
            for name in fact.scores:
                value = told.get(row["path"], {}).get(name, None if name.startswith("background") else 0.9)
                other = None
                if isinstance(value, tuple):
                    value, other = value[0], paths[value[1]]
                scores.append(Score(row["asset_id"], 0, row["sha256"], name, version, value, other=other))
    return summarise(rows, scores_to_table(scores), FACTS)


@pytest.fixture
def out(tmp_path: Path, make_output: MakeOutput) -> Path:
    return make_output(tmp_path / "out")


def scene(subject: int, number: int) -> str:
    return f"images/dragon-{subject}/scene-{number}.png"


def test_a_picture_far_from_its_anchors_is_an_outlier(out: Path) -> None:
    found = summary_of(out, {scene(1, 3): {"fake_identity": 0.7}, scene(2, 3): {"fake_identity": 0.85}})
    (outlier,) = found.outliers  # gaps of 0.3 against a median of 0.1; 0.15 is within twice that
    assert outlier.path == scene(1, 3) and outlier.gap == pytest.approx(0.3) and outlier.ratio == pytest.approx(3)
    assert found.outlier_count == 1


def test_a_pair_of_copies_is_told_once(out: Path) -> None:
    pair = {
        scene(0, 2): {"background_distance": (1.0, scene(0, 3))},
        scene(0, 3): {"background_distance": (1.0, scene(0, 2))},
        scene(1, 2): {"background_distance": (30.0, scene(1, 3))},
    }
    (copy,) = summary_of(out, pair).copies
    assert {copy.path, copy.other} == {scene(0, 2), scene(0, 3)} and copy.bits == 1


def test_means_are_of_scenes_and_over_subjects(out: Path) -> None:
    worse = {scene(1, number): {"fake_among": 0.6, "fake_alignment": 0.3} for number in (2, 3, 4)}
    found = summary_of(out, {**worse, "anchors/dragon-0/anchor-0.png": {"fake_alignment": 0.0}})
    assert found.run["fake_among"].mean == pytest.approx((0.9 + 0.6 + 0.9) / 3)
    assert found.run["fake_alignment"].mean == pytest.approx((0.9 + 0.3 + 0.9) / 3), "anchors are no scenes"
    assert [one.subject for one in found.subjects] == ["dragon-0", "dragon-2", "dragon-1"], "best first"
    assert found.subjects[-1].harmonic == pytest.approx(2 * 0.6 * 0.3 / 0.9)
    assert (found.identity, found.alignment, found.pictures) == ("fake_among", "fake_alignment", 15)


def test_scores_of_other_versions_say_nothing(out: Path) -> None:
    found = summary_of(out, {}, version="2")
    assert not found.run and not found.subjects and found.harmonic is None


def test_the_page_shows_what_was_found(out: Path) -> None:
    told = {
        scene(1, 3): {"fake_identity": 0.7},
        scene(0, 2): {"background_distance": (0.0, scene(0, 3))},
    }
    store = open_output(str(out))
    failures = {"images/<b>.png": "it <broke>"}
    path = build_evaluation_page(store, summary_of(out, told), scorable(store), failures)
    page = (out / path).read_text()
    assert f'href="../{scene(1, 3)}"' in page and "3.0 times the median" in page
    assert f'href="../{scene(0, 2)}"' in page and "0 of 64 bits differ" in page
    assert page.count('class="mark"') == 3 and "it &lt;broke&gt;" in page and "<b>" not in page.split("<body>")[1]


def test_of_many_subjects_best_and_worst_are_listed() -> None:
    many = [SubjectSummary(str(number), 1, {"x": Number(1, 1, 1)}, None) for number in range(MAX_SUBJECTS + 7)]
    shown = listed(many)
    assert len(shown) == MAX_SUBJECTS and shown[0] is many[0] and shown[-1] is many[-1]
