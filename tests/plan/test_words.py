"""Negative prompts and other words of single pictures in a plan: they decide ids, and leave those without alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from consistory_ray.engine.workers.renderer import _words_of
from consistory_ray.errors import JobError
from consistory_ray.jobs.job import parse_job
from consistory_ray.jobs.stored_subjects import describe_subject
from consistory_ray.jobs.tables import read_csv
from consistory_ray.output.assets import asset_parameters
from consistory_ray.plan.advice import job_notes
from consistory_ray.plan.plan import SubjectPlan, make_plan


def planned(*scenes: Any, anchors: Any = ("in the forest", "on the beach"), **settings: Any) -> SubjectPlan:
    one = {"id": "moss", "concept": "dragon", "style": "a drawing of", "subject": "a dragon", "details": "with a hat"}
    subjects = [{**one, "anchors": list(anchors), "scenes": list(scenes)}]
    return make_plan(parse_job({"subjects": subjects, "settings": settings})).subjects[0]


def test_words_of_a_scene_decide_its_id_and_no_others() -> None:
    scene = {"prompt": "in space", "seed": 3}
    variants = [scene, {**scene, "negative_prompt": "stars"}, {**scene, "negative_prompt": ""}]
    variants.append({**scene, "prompt_2": "in oil"})
    subject = planned(*variants)
    ids = [asset.asset_id for asset in subject.scenes]
    assert len(set(ids)) == 4 and ids == [planned(one).scenes[0].asset_id for one in variants]
    assert [asset.words.to_dict() for asset in subject.scenes] == [
        {},
        {"negative_prompt": "stars"},
        {"negative_prompt": ""},
        {"prompt_2": "a drawing of a dragon with a hat in oil"},
    ]
    assert len({asset.path for asset in subject.scenes}) == 4
    assert _words_of(subject.scenes[:2]) == {"prompts_2": [None, None], "negative_prompts": [None, "stars"]}


def test_names_of_equal_prompts_depend_on_their_own_words_and_not_on_an_order() -> None:
    scenes = [{"prompt": "in space", "negative_prompt": text} for text in ("stars", "moons")]
    paths = {asset.words.negative_prompt: asset.path for asset in planned(*scenes).scenes}
    assert paths == {asset.words.negative_prompt: asset.path for asset in planned(*reversed(scenes)).scenes}


def test_words_of_an_anchor_make_another_individual_which_can_be_stored() -> None:
    anchors = [{"prompt": "in the forest", "negative_prompt": "trees", "prompt_2": "in oil"}, "on the beach"]
    plain, told = planned("in space"), planned("in space", anchors=anchors)
    assert plain.subject_key != told.subject_key and plain.scenes[0].asset_id != told.scenes[0].asset_id
    assert told.anchors[0].words.prompt_2 == "a drawing of a dragon in oil"
    stored = json.loads(describe_subject(told, "miniature", "0" * 64, "1" * 64, 1))["anchors"]
    assert stored[0] == {
        "prompt": "in the forest",
        "seed": told.anchors[0].seed,
        "prompt_2": "in oil",
        "negative_prompt": "trees",
    }
    assert stored[1].keys() == {"prompt", "seed"}


def test_pictures_say_what_they_were_told() -> None:
    subject = planned({"prompt": "in space", "negative_prompt": "stars"}, "at night", negative_prompt="people")
    told = [asset_parameters(asset, subject, model="miniature", model_fingerprint="0" * 64) for asset in subject.scenes]
    assert [one["negative_prompt"] for one in told] == ["stars", "people"]


def test_a_table_has_columns_for_them() -> None:
    text = (
        "concept,subject,prompt,kind,negative_prompt,prompt_2\n"
        "dragon,a dragon,in the forest,anchor,trees,\n"
        "dragon,a dragon,in space,scene,stars,in oil\n"
        "dragon,a dragon,at night,scene,,\n"
    )
    data, problems, _ = read_csv(text)
    assert not problems
    subject = make_plan(parse_job(data)).subjects[0]
    assert [asset.words.negative_prompt for asset in subject.assets()] == ["trees", "stars", None]
    assert [asset.words.prompt_2 for asset in subject.assets()] == [None, "a dragon in oil", None]


def test_the_same_words_with_the_same_seed_are_one_picture_too_many() -> None:
    scene = {"prompt": "in space", "seed": 3, "negative_prompt": "stars"}
    with pytest.raises(JobError, match="already is this picture"):
        planned(scene, {**scene})


def test_what_compel_cannot_read_is_refused_with_its_place_before_anything_is_rendered() -> None:
    scenes = ["in (space", 'near ("a hill", "a lake").blend(1, 1)', "in (snow)1.2"]
    with pytest.raises(JobError) as caught:
        planned(*scenes, prompt_syntax="compel", negative_prompt="a) b")
    told = {problem.path: problem.fix for problem in caught.value.problems}
    assert list(told) == [
        "settings.negative_prompt",
        "moss/in-space prompt",
        "moss/near-a-hill-a-lake-blend-1-1 prompt",
    ]
    assert "a bracket is not closed" in told["moss/in-space prompt"]
    assert (
        planned(*scenes[:2]).scenes[0].prompt == "a drawing of a dragon with a hat in (space"
    )  # plain text has no syntax


def test_without_compel_a_job_that_asks_for_it_is_refused_by_the_name_of_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("consistory_ray.plan.text_encoders.compel_is_here", lambda: False)
    with pytest.raises(JobError, match=r"consistory-ray\[compel\]"):
        planned("in space", prompt_syntax="compel")
    planned("in space")


def test_layers_that_the_models_text_encoders_do_not_have_cannot_be_skipped() -> None:
    with pytest.raises(JobError, match=r"settings\.clip_skip"):
        planned("in space", clip_skip=24)


def test_notes_on_a_job_know_compels_syntax() -> None:
    def kinds(**settings: Any) -> tuple[list[str], list[str]]:
        one = {"id": "moss", "concept": "moss-green dragon", "anchors": ["a moss-green dragon"] * 2}
        long = "a (moss-green)1.3 dragon in the deep snow of a very long night " + "with many stars " * 20
        subjects = [{**one, "scenes": [long, "a moss-green (dragon:1.2)"]}]
        job = parse_job({"subjects": subjects, "settings": settings})
        notes = job_notes(job, make_plan(job))
        return [warning.kind for warning in notes.warnings], [str(one) for one in notes.concepts]

    plain, loose = kinds()
    assert set(plain) >= {"prompt-weight", "cut-prompt"} and loose
    weighted, exact = kinds(prompt_syntax="compel")
    assert "cut-prompt" not in weighted and weighted.count("prompt-weight") == 1 and not exact


def test_a_picture_without_its_concept_is_told_from_what_its_prompt_says() -> None:
    one = {"id": "moss", "concept": "dragon", "anchors": ["a (dragon)1.2"] * 2, "on_missing_concept": "skip"}
    subjects = [{**one, "scenes": ["a (dragon)1.3 in snow", "a lake"]}]
    job = parse_job({"subjects": subjects, "settings": {"prompt_syntax": "compel"}})
    (subject,) = make_plan(job).subjects
    assert [asset_id for asset_id, _ in subject.impossible] == [subject.scenes[1].asset_id]
