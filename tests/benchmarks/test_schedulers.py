"""The benchmark of the schedules: a small run of all of it, and that the committed result is of what is committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from benchmarks.fast import Sample
from benchmarks.schedulers import REFERENCE, SCHEDULES, benches, main, parse_arguments, seconds_of, subjects_of
from benchmarks.schedulers_report import table
from consistory_ray.errors import InputError
from consistory_ray.evaluation.prompts import consistency_subjects
from consistory_ray.evaluation.rendering import Rendered
from consistory_ray.settings import MethodSettings

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


# The command line -----------------------------------------------------------------------------------------------------


def test_each_part_of_the_subjects_is_its_own() -> None:
    reported, tuning = parse_arguments([]), parse_arguments(["--tuning"])
    parts_of = [range(one.first, one.first + one.subjects) for one in (reported, tuning)]
    assert len(parts_of[0]) >= 32 and not set(parts_of[0]) & set(parts_of[1])


def test_the_reference_is_always_rendered_and_other_models_are_not_given_the_distilled() -> None:
    assert parse_arguments(["--schedules", "euler_25"]).schedules == [REFERENCE, "euler_25"]
    assert parse_arguments([]).schedules == list(SCHEDULES)
    others = parse_arguments(["--model", "somebody/else"]).schedules
    assert set(SCHEDULES) - set(others) == {name for name, schedule in SCHEDULES.items() if schedule.loras}


@pytest.mark.parametrize("change", ['{"injection": 3, "alpha": 1}', '{"injection_alpha": 2}', "[]"])
def test_changes_that_cannot_be_are_refused(change: str) -> None:
    with pytest.raises(InputError, match=r"--change|injection_alpha"):
        parse_arguments(["--change", change])


def test_what_is_tried_changes_all_schedules_but_the_reference() -> None:
    words = ["--schedules", "ddim_20", "--change", '{"injection_alpha": 0.9, "query_blend": [0.5, 0.4]}']
    found = {name: own.ways["exact"] for name, own in benches(parse_arguments([*words, "--device", "cpu"])).items()}
    assert found["ddim_20"] == found[REFERENCE].replace(
        num_inference_steps=20, injection_alpha=0.9, query_blend=(0.5, 0.4)
    )
    assert found[REFERENCE].injection_alpha == MethodSettings().injection_alpha


def test_a_schedule_renders_exactly_whatever_the_models_profile_is() -> None:
    for schedule in SCHEDULES.values():
        settings = schedule.settings(MethodSettings(guidance_scale=3.0).with_profile("fast"))
        assert settings.profile == "exact"
        assert settings.guidance_scale == schedule.changes.get("guidance_scale", 3.0)
        assert schedule.settings(MethodSettings(), 2).num_inference_steps == 2


def test_fewer_scenes_are_the_first_ones_of_all() -> None:
    (few,), (every,) = (subjects_of(parse_arguments(["--subjects", "1", *more])) for more in (["--scenes", "4"], []))
    assert every == consistency_subjects(1)[0]
    assert (few.prompts, few.seeds, few.scenes) == (every.prompts[:4], every.seeds[:4], every.scenes[:4])
    assert (few.anchors, few.anchor_seeds) == (every.anchors, every.anchor_seeds)


# What is told ---------------------------------------------------------------------------------------------------------


def test_seconds_are_of_one_picture_and_of_the_subjects_that_were_timed() -> None:
    picture = Rendered(Image.new("RGB", (8, 8)), {})
    samples = [
        {"exact": Sample([picture] * 2, 4, 2), "vanilla": Sample([picture] * 2, 2, 2)},
        {"exact": Sample([picture] * 2, 8, 2), "vanilla": Sample([picture] * 2, 2, 2)},
        {"exact": Sample([picture] * 2), "vanilla": Sample([picture] * 2)},
    ]
    numbers = seconds_of(samples)
    assert (numbers["seconds"], numbers["seconds_vanilla"], numbers["seconds_ratio"]) == (3, 1, 3)
    assert numbers["seconds_interval"] == [2, 4] and numbers["seconds_ratio_interval"] == [2, 4]
    assert seconds_of(samples[2:]) == {}


def test_the_table_has_intervals_where_they_are_known() -> None:
    numbers = {"few": {"gain_kept": 0.91, "gain_kept_interval": [0.85, 0.97], "seconds": 1.5, "subjects": 16}}
    numbers["few"]["seconds_interval"] = [1.4, 1.6]
    text = table(numbers, {"few": "few steps"})
    assert "| few steps | 0.91 [0.85, 0.97] |" in text and "1.50 [1.40, 1.60]" in text and text.count("\n") == 3


# All of it ------------------------------------------------------------------------------------------------------------


def test_a_small_run_reports_every_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [REFERENCE, "dpmpp_2m_karras_20", "euler_a_25", "distilled_4"]
    command = f"--subjects 1 --scenes 2 --steps 4 --device cpu --cache {tmp_path}/kept --out {tmp_path} --schedules"
    result = main([*command.split(), *names])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert printed == result and result["subjects"] == 1 and result["half"] == "report"
    for name in names:
        for key in ("gain_kept", "scene_accuracy", "layout_diversity_ratio", "seconds"):
            assert np.isfinite(result[name][key]), (name, key)
        for key in ("gain_kept", "scene_accuracy", "layout_diversity", "seconds"):
            assert len(result[name][f"{key}_interval"]) == 2, (name, key)
        assert result[name]["seconds"] > 0
    assert result[REFERENCE]["gain_kept"] == 1
    report = json.loads((tmp_path / "schedulers.json").read_text())
    assert [one["kind"] for one in report["subjects"]] == [one.kind for one in consistency_subjects(1)]
    prints = {one["model_fingerprint"] for one in report["schedules"].values()}
    assert len(prints) == 2, "the bundled model, and the same with a LoRA"
    with Image.open(tmp_path / "schedulers_sheet.webp") as shown, Image.open(tmp_path / "schedulers.png") as drawn:
        assert shown.height > 128 * len(names) and drawn.width > 1000
    assert (tmp_path / "schedulers.md").read_text().count("\n") == 2 + len(names)


def test_what_is_known_is_reported_without_rendering(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"--subjects 1 --scenes 2 --steps 2 --device cpu --cache {tmp_path}/kept --out {tmp_path} --schedules"
    first = main([*command.split(), REFERENCE])
    monkeypatch.setattr("benchmarks.fast.Bench.render", None)
    again = main([*command.split(), REFERENCE, "euler_25", "--known"])
    assert again == first, "seconds, too; the other schedule is left out"
    assert capsys.readouterr().out.count("\n") == 2


# The committed result -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """The committed result."""
    return cast("dict[str, Any]", json.loads((RESULTS / "schedulers.json").read_text()))


def test_the_committed_result_is_of_the_committed_weights_and_settings(report: dict[str, Any]) -> None:
    assert report["half"] == "report" and len(report["subjects"]) >= 16
    found = benches(parse_arguments(["--device", "cpu"]))
    assert list(report["schedules"]) == list(found)
    for name, bench in found.items():
        told = report["schedules"][name]
        assert told["model_fingerprint"] == bench.pipeline.fingerprint, f"other weights or LoRAs under {name}"
        assert MethodSettings.from_dict(told["settings"]) == bench.ways["exact"], f"{name} has changed since"


def test_the_committed_numbers_are_of_the_committed_scores(report: dict[str, Any]) -> None:
    def gain(name: str, of: list[dict[str, Any]]) -> float:
        scores = [one["scores"][name] for one in of]
        return float(np.mean([one["exact"]["similarity"] - one["vanilla"]["similarity"] for one in scores]))

    for name in SCHEDULES:
        rendered = [one for one in report["subjects"] if name in one["scores"]]
        numbers = report["numbers"][name]
        assert numbers["subjects"] == len(rendered)
        assert numbers["gain_kept"] == pytest.approx(gain(name, rendered) / gain(REFERENCE, rendered), abs=1e-3)


def test_enough_of_the_gain_is_kept(report: dict[str, Any]) -> None:
    assert report["numbers"]["dpmpp_2m_karras_20"]["gain_kept"] >= 0.9
    assert report["numbers"]["distilled_8"]["gain_kept"] >= 0.8
