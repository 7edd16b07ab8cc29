"""What README and docs/evidence.md say is what the committed results hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts import evidence_docs
from scripts.evidence_docs import PAGE, RESULTS, Figure, figures, value_of, written, wrong

README = (PAGE.parents[1] / "README.md").read_text()
WITHOUT_A_RESULT = {"2.29x", "1.95x"}
"""Counted by benchmarks/cost.py, which has committed none yet; this only shrinks."""
TABLE = list(figures(PAGE.read_text()))


def test_the_tables_are_those_of_the_results() -> None:
    assert written(PAGE.read_text()) == PAGE.read_text(), "python scripts/evidence_docs.py"


@pytest.mark.parametrize("figure", TABLE, ids=lambda figure: figure.words)
def test_the_readme_says_what_results_hold(figure: Figure) -> None:
    assert wrong(figure, README) is None
    assert (PAGE.parents[1] / figure.command.split()[1]).exists()


def test_the_table_is_of_all_results() -> None:
    assert len(TABLE) > 40 and {figure.words for figure in TABLE if figure.result is None} <= WITHOUT_A_RESULT
    shown = {
        "consistency",
        "personalization",
        "control",
        "multi_subject",
        "schedulers",
        "fast",
        "engine",
        "gate",
        "sprites",
    }
    assert {f"{name}.json" for name in shown} == {figure.result for figure in TABLE if figure.result}


def test_a_wrong_figure_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_docs, "RESULTS", tmp_path)
    (tmp_path / "x.json").write_text(json.dumps({"n": {"share": 0.347, "interval": [0.3, 0.4], "whole": 2.0}}))
    good = Figure("35 % [30, 40]", "x.json", ("100 n.share", "100 n.interval"), "python benchmarks/x.py")
    assert wrong(good, "about 35 % [30,\n40] of it") is None
    assert "does not say" in str(wrong(good, "about 36 % [30, 40]"))
    assert "36 is 34.7" in str(wrong(Figure("36 %", "x.json", ("100 n.share",), ""), "36 %"))
    assert "tells 1 numbers" in str(wrong(Figure("35 %", "x.json", ("100 n.share", "n.interval"), ""), "35 %"))
    assert value_of({"a": 3.0, "b": {"c": 2.0}}, "a / b.c") == [1.5]
    with pytest.raises(KeyError):
        wrong(Figure("35 %", "x.json", ("n.nothing",), ""), "35 %")
    assert tmp_path != RESULTS
