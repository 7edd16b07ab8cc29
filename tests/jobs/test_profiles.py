"""Profiles in job files: what a single setting does to them, what a model brings, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.errors import CheckpointError, JobError
from consistory_ray.guards.problems import FIXES
from consistory_ray.jobs.job import parse_job
from consistory_ray.jobs.render_settings import RenderSettings
from consistory_ray.plan.plan import Plan, SubjectPlan, make_plan
from consistory_ray.settings import PROFILES, MethodSettings


def job(**settings: Any) -> dict[str, Any]:
    subject = {"id": "cat", "concept": "cat", "anchors": ["a cat here"], "scenes": ["a cat at sea", "a cat at home"]}
    return {"name": "test", "model": "acme/xl", "settings": settings, "subjects": [subject]}


def planned(**settings: Any) -> Plan:
    return make_plan(parse_job(job(**settings)))


def method(**settings: Any) -> MethodSettings:
    return RenderSettings.model_validate(settings).for_model("acme/xl")


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_all_of_its_settings(name: str) -> None:
    assert method(profile=name) == MethodSettings().with_profile(name)
    assert planned(profile=name).subjects[0].settings.profile == name


def test_a_single_setting_wins_wherever_it_stands() -> None:
    before = json.loads('{"reuse_deep": null, "profile": "fast", "num_inference_steps": 20}')
    after = json.loads('{"num_inference_steps": 20, "profile": "fast", "reuse_deep": null}')
    expected = MethodSettings(num_inference_steps=20).with_profile("fast").replace(reuse_deep=None)
    assert method(**before) == method(**after) == expected
    assert expected.profile is None


def test_without_a_profile_all_ids_are_those_of_exact() -> None:
    """Ids of the version before profiles: outputs of it resume."""
    keys = [planned(**settings).subjects[0].subject_key for settings in ({}, {"profile": "exact"})]
    assert keys == ["07284987cd946d16069c9bc2944aa492"] * 2
    assert [asset.asset_id for asset in planned().assets()] == [
        "d7a983e4a966d6965fcef905f1c24676",
        "36c6c2d18ca5884673d2cdc99120ba7c",
        "48ec7518780a58315e823c43be3b5075",
    ]
    assert planned(shared_every=1, scene_blending=True) == planned()


def test_another_profile_is_other_pictures() -> None:
    ids = [asset.asset_id for name in PROFILES for asset in planned(profile=name).assets()]
    assert len(set(ids)) == len(ids)
    exact, fast = planned().subjects[0], planned(profile="fast").subjects[0]
    assert [scene.seed for scene in exact.scenes] == [scene.seed for scene in fast.scenes]


@pytest.mark.parametrize(
    ("values", "path"),
    [
        ({"profile": "faster"}, "profile"),
        ({"profile": None}, "profile"),
        ({"profile": 1}, "profile"),
        ({"first_pass": "half"}, "first_pass"),
        ({"lookahead": []}, "lookahead"),
        ({"lookahead": [251, 451]}, "lookahead"),
        ({"lookahead": [1000]}, "lookahead[0]"),
        ({"lookahead": 651}, "lookahead"),
        ({"lookahead_maps": 0}, "lookahead_maps"),
        ({"reuse_deep": [0.35]}, "reuse_deep"),
        ({"reuse_deep": [0.35, 0]}, "reuse_deep[1]"),
        ({"reuse_deep": [1.5, 2]}, "reuse_deep[0]"),
        ({"reuse_deep": False}, "reuse_deep"),
        ({"shared_every": 17}, "shared_every"),
        ({"shared_every": None}, "shared_every"),
        ({"scene_blending": "no"}, "scene_blending"),
        ({"guidance_interval": [0.6, 0.1]}, "guidance_interval"),
        ({"guidance_interval": None}, "guidance_interval"),
        ({"cache_codec": "int7"}, "cache_codec"),
    ],
)
def test_a_bad_one_is_named_with_what_to_write(values: dict[str, Any], path: str) -> None:
    with pytest.raises(JobError) as caught:
        parse_job(job(**values))
    told = {problem.path: problem.fix for problem in caught.value.problems}
    assert told == {f"settings.{path}": FIXES[path.split("[")[0]]}


def test_a_model_may_bring_a_profile(tmp_path: Path) -> None:
    file = tmp_path / "consistory.json"
    file.write_text('{"shared_every": 3, "profile": "turbo", "num_inference_steps": 30}')
    made = RenderSettings().for_model(str(tmp_path))
    assert made == MethodSettings(num_inference_steps=30).with_profile("turbo").replace(shared_every=3)
    assert RenderSettings(profile="exact").for_model(str(tmp_path)) == MethodSettings(num_inference_steps=30)
    file.write_text('{"profile": "best"}')
    with pytest.raises(CheckpointError) as caught:
        RenderSettings().for_model(str(tmp_path))
    assert caught.value.problems[0].fix == FIXES["profile"]


def test_the_command_lines_profile_replaces_the_jobs() -> None:
    read = parse_job(job(profile="turbo", shared_every=4))
    changed = make_plan(read.with_profile("fast"))
    assert changed == planned(profile="fast", shared_every=4)
    again = parse_job(json.loads(json.dumps(read.with_profile("fast").model_dump(mode="json", exclude_unset=True))))
    assert make_plan(again) == changed, "the run's record of the job has it"


def stored(folder: Path, **changes: Any) -> str:
    """A stored subject's words; its cache is not there."""
    record = {
        "format": 1,
        "subject_id": "moss-dragon",
        "concept": ["dragon"],
        "subject": "a dragon",
        "anchors": [{"prompt": "in the forest", "seed": 1}],
        "settings": MethodSettings().replace(**changes).to_dict(),
        "model": "acme/xl",
        "model_fingerprint": "f" * 64,
        "cache": {"file": f"{'1' * 16}.safetensors", "sha256": "1" * 64, "bytes": 1000},
    }
    folder.mkdir(exist_ok=True)
    (folder / "subject.json").write_text(json.dumps(record))
    return str(folder)


def taken_up(address: str, **settings: Any) -> SubjectPlan:
    subject = {"from": address, "scenes": ["in the rain", "at sunset"]}
    return make_plan(parse_job({"model": "acme/xl", "settings": settings, "subjects": [subject]})).subjects[0]


def refused(address: str, **settings: Any) -> tuple[str, str]:
    with pytest.raises(JobError) as caught:
        taken_up(address, **settings)
    (problem,) = caught.value.problems
    return problem.path, problem.fix


def test_scenes_of_a_stored_subject_may_be_made_for_less(tmp_path: Path) -> None:
    exact = stored(tmp_path)
    as_stored, fast = taken_up(exact), taken_up(exact, profile="fast")
    before_profiles = ["b20861b2beb4fb4cc29f3250015cbfda", "8544e347fc91f4a81f97145fd59e933e"]
    assert [scene.asset_id for scene in as_stored.scenes] == before_profiles
    assert as_stored.settings == as_stored.cache_settings == MethodSettings()
    assert fast.settings == MethodSettings().with_profile("fast").replace(cache_codec="none")
    assert fast.cache_settings == MethodSettings(), "what the copy's subject.json says"
    ids = {scene.asset_id for subject in (as_stored, fast) for scene in subject.scenes}
    assert len(ids) == 4, "what scenes are rendered with is in their ids"
    assert taken_up(exact, shared_every=2).settings.shared_every == 2
    assert taken_up(exact, profile="exact") == as_stored == taken_up(exact, cache_codec="int8")


def test_a_stored_subject_keeps_its_profile(tmp_path: Path) -> None:
    fast = stored(tmp_path, **PROFILES["fast"])
    assert taken_up(fast).settings == taken_up(fast, profile="fast").settings == MethodSettings(**PROFILES["fast"])
    assert taken_up(fast, first_pass="lookahead", lookahead=[451, 251]).settings.lookahead == (451, 251)


def test_what_a_stored_subject_lacks_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    fast = stored(tmp_path / "fast", **PROFILES["fast"])
    path, fix = refused(fast, profile="exact")
    assert path == "settings.profile" and fix.startswith("set profile: fast or turbo, or make the subject again")
    assert "subjects[0] was stored for profile fast" in fix
    assert refused(fast, shared_every=1)[0] == "settings.shared_every"
    path, fix = refused(stored(tmp_path / "exact"), first_pass="live")
    assert path == "settings.first_pass", "its features of each step are not there"
    assert fix.startswith("set profile: exact or fast or turbo,")
    own = stored(tmp_path / "own", **{**PROFILES["turbo"], "shared_every": 3})
    assert "settings of its own" in refused(own, shared_every=1)[1]


def test_other_settings_are_still_the_subjects(tmp_path: Path) -> None:
    path, fix = refused(stored(tmp_path), mask_dropout=0.25)
    assert path == "settings.mask_dropout" and "0.5" in fix


def test_subjects_that_meet_were_made_for_the_same_profile(tmp_path: Path) -> None:
    exact, fast = stored(tmp_path / "exact"), stored(tmp_path / "fast", **PROFILES["fast"])
    with pytest.raises(JobError) as caught:
        taken_up([exact, fast])  # type: ignore[arg-type]
    told = [problem.value for problem in caught.value.problems]
    assert 'settings.first_pass: "lookahead"' in told
    with pytest.raises(JobError) as caught:
        taken_up([fast, exact])  # type: ignore[arg-type]
    assert 'settings.first_pass: "full"' in [problem.value for problem in caught.value.problems]
