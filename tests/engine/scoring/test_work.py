"""What is scored when: everything once, what changed again, what a kill has lost again; without Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from consistory_ray.engine.scoring.evaluate import scorable
from consistory_ray.engine.scoring.work import Evaluation, ScoreWork
from consistory_ray.engine.scoring.worker import ScoreWorker, ScoringHello
from consistory_ray.errors import RunError
from consistory_ray.output.assets import write_asset
from consistory_ray.output.gallery.pages import build_gallery
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.rows import table_to_rows
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.scores import EVALUATION_PAGE, list_score_parts, read_scores, read_summary
from consistory_ray.output.storage import open_output
from consistory_ray.quality.metrics import MetricOptions
from consistory_ray.quality.scoring import Scored

MakeOutput = Callable[..., Path]
FAKE = "consistory_ray.testing:FakeMetric"
SUBJECTS, PER_SUBJECT = 3, 5
PICTURES = SUBJECTS * PER_SUBJECT
SCORES = (
    "fake_identity",
    "fake_among",
    "fake_background",
    "fake_alignment",
    "layout_displacement",
    "background_distance",
)


def score(out: Path, subjects: int = 99, lost: Callable[[], str] = str, **told: Any) -> Evaluation:
    """An evaluation in this process, that ends after so many subjects as if it had been killed."""
    store = open_output(str(out))
    work = ScoreWork(store, scorable(store), lost, **told)
    worker = ScoreWorker(store, [FAKE], MetricOptions())
    hello = worker.hello()
    assert isinstance(hello, ScoringHello) and not hello.notices
    left = work.begin(hello.facts)
    for subject in left[:subjects]:
        scored = worker.score(subject)
        assert isinstance(scored, Scored)
        work.take(subject, scored)
    work.commit()
    return work.end(interrupted=len(left) > subjects, seconds=1.0)


def rows(out: Path) -> list[dict[str, Any]]:
    """Of all parts, as anybody reads them."""
    files = [str(out / path) for path in list_score_parts(open_output(str(out)))]
    found: list[dict[str, Any]] = ds.dataset(files).to_table().to_pylist() if files else []
    return found


def check_complete(out: Path) -> None:
    """Every picture has every score once, and of the file that is there."""
    there = {row["asset_id"]: row["sha256"] for row in scorable(open_output(str(out))).to_pylist()}
    found = Counter((row["asset_id"], row["metric"]) for row in rows(out))
    assert found == Counter({(asset_id, metric): 1 for asset_id in there for metric in SCORES})
    assert all(there[row["asset_id"]] == row["sha256"] for row in rows(out))


@pytest.fixture
def out(tmp_path: Path, make_output: MakeOutput) -> Path:
    return make_output(tmp_path / "out")


def test_all_is_scored_once_and_what_changed_again(out: Path, make_output: MakeOutput) -> None:
    steps: list[tuple[int, int]] = []
    first = score(out, on_progress=lambda *step: steps.append(step))
    assert (first.state, first.pictures, first.found, first.scored) == ("complete", PICTURES, 0, PICTURES)
    assert steps == [(number * PER_SUBJECT, PICTURES) for number in range(SUBJECTS + 1)]
    check_complete(out)
    again = score(out)
    assert (again.state, again.found, again.scored) == ("complete", PICTURES, 0)
    make_output(out, more=1)
    more = score(out)
    assert (more.pictures, more.found, more.scored) == (PICTURES + 1, PICTURES - PER_SUBJECT, PER_SUBJECT + 1)
    check_complete(out)


def test_what_a_kill_has_lost_is_scored_again_and_nothing_else(out: Path) -> None:
    killed = score(out, subjects=1)
    assert killed.state == "interrupted" and read_summary(str(out)) is None and not (out / EVALUATION_PAGE).exists()
    assert len(rows(out)) == PER_SUBJECT * len(SCORES)
    result = score(out)
    assert (result.found, result.scored) == (PER_SUBJECT, PICTURES - PER_SUBJECT)
    check_complete(out)


def test_page_summary_and_gallery_say_the_same(out: Path) -> None:
    result = score(out)
    summary = read_summary(str(out))
    assert summary is not None and summary["run"].keys() == set(SCORES)
    assert len(summary["subjects"]) == SUBJECTS and 0 <= summary["harmonic"] <= 1 == len({summary["identity"]})
    page = (out / result.page).read_text()
    assert all(f"dragon-{number}" in page for number in range(SUBJECTS)) and page.count('class="mark"') == SUBJECTS
    assert "<script" not in page
    gallery = (out / build_gallery(str(out))).read_text()
    assert gallery.count("data-score=") == PICTURES and "worst fake_identity first" in gallery
    assert "../evaluation/index.html" in gallery


def test_a_gallery_without_an_evaluation_says_nothing_of_it(out: Path) -> None:
    gallery = (out / build_gallery(str(out))).read_text()
    assert "data-score=" not in gallery and 'by-score" type' not in gallery


def test_pictures_that_cannot_be_read_are_named(out: Path) -> None:
    broken = "images/dragon-1/scene-3.png"
    (out / broken).write_bytes(b"no picture")
    (out / "images/dragon-2/scene-4.png").unlink()
    result = score(out)
    assert result.state == "failed" and result.failed == 2 and result.scored == PICTURES - 2
    assert list(result.failures) and "not the picture" in result.failures[broken]
    page = (out / EVALUATION_PAGE).read_text()
    assert "2 pictures could not be scored" in page and broken in page
    assert score(out).found == PER_SUBJECT, "a subject that lacks scores is scored again, no other"


def test_a_damaged_part_is_told_and_made_again(out: Path) -> None:
    score(out)
    (part,) = list_score_parts(open_output(str(out)))
    (out / part).write_bytes((out / part).read_bytes()[:-40])
    assert list(read_scores(str(out))[1]) == [part]
    told: list[str] = []
    assert score(out, on_notice=told.append).scored == PICTURES
    assert any(part in text for text in told) and read_scores(str(out))[1] == {}
    check_complete(out)


def test_without_masks_pictures_are_looked_at_whole_and_that_is_told(tmp_path: Path, make_output: MakeOutput) -> None:
    told: list[str] = []
    result = score(make_output(tmp_path / "old", masks=False), on_notice=told.append)
    assert result.state == "complete" and result.without_mask == PICTURES
    assert any("no subject mask" in text for text in told)


def test_of_several_takes_the_picture_is_scored(out: Path) -> None:
    store = open_output(str(out))
    first = next(row for row in table_to_rows(read_index(store)) if row.path == "images/dragon-0/scene-2.png")
    data = (out / "images/dragon-0/scene-2.png").read_bytes()
    written = write_asset(store, "images/dragon-0/takes/scene-2.2.png", data)
    with IndexWriter(store) as writer:
        writer.add(replace(first, take=1, score=0.1, created_at=datetime.now(timezone.utc)))
        take = {"asset_id": "b" * 32, "path": written.path, "take": 2, "take_of": first.asset_id, "score": 0.9}
        writer.add(replace(first, **take, created_at=datetime.now(timezone.utc)))
    assert score(out).pictures == PICTURES
    ids = {row["asset_id"] for row in rows(out)}
    assert "b" * 32 in ids and first.asset_id not in ids


def test_who_has_lost_the_output_writes_nothing(out: Path) -> None:
    with pytest.raises(RunError, match="taken over"):
        score(out, lost=lambda: "taken over")
    assert not list_score_parts(open_output(str(out))) and read_summary(str(out)) is None
