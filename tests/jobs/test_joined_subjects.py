"""Stored subjects of different runs in one subject of a job: its words, its identity, and what keeps them apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.errors import JobError
from consistory_ray.jobs.job import parse_job
from consistory_ray.plan.forecast import expected_cache_bytes
from consistory_ray.plan.plan import SubjectPlan, make_plan
from consistory_ray.settings import MethodSettings


def store(folder: Path, name: str, concept: str, digit: str, **changes: Any) -> str:
    """A stored subject's words; its cache is not there."""
    record = {
        "format": 1,
        "subject_id": name,
        "concept": [concept],
        "style": "a drawing of",
        "subject": f"a {concept}",
        "anchors": [{"prompt": "in the forest", "seed": 1}, {"prompt": "at sea", "seed": 2}],
        "settings": MethodSettings().to_dict(),
        "model": "fake",
        "model_fingerprint": "f" * 64,
        "cache": {"file": f"{digit * 16}.safetensors", "sha256": digit * 64, "bytes": 1000 + int(digit)},
    }
    (folder / name).mkdir(parents=True)
    (folder / name / "subject.json").write_text(json.dumps(record | changes))
    return str(folder / name)


@pytest.fixture
def dragon(tmp_path: Path) -> str:
    return store(tmp_path, "moss-dragon", "dragon", "1")


@pytest.fixture
def robot(tmp_path: Path) -> str:
    return store(tmp_path, "tin-robot", "robot", "2")


def job(*addresses: str, **changes: Any) -> dict[str, Any]:
    subject = {"from": list(addresses), "scenes": ["in the rain", {"prompt": "at sunset", "id": "late"}]} | changes
    return {"name": "story", "model": "fake", "subjects": [subject]}


def planned(*addresses: str, **changes: Any) -> SubjectPlan:
    return make_plan(parse_job(job(*addresses, **changes))).subjects[0]


def problems(*addresses: str, **changes: Any) -> dict[str, str]:
    with pytest.raises(JobError) as caught:
        parse_job(job(*addresses, **changes))
    return {problem.path: f"{problem.value} | {problem.fix}" for problem in caught.value.problems}


def test_they_are_one_subject_of_all_their_words(dragon: str, robot: str, tmp_path: Path) -> None:
    subject = planned(dragon, robot)
    assert (subject.subject_id, subject.concepts) == ("moss-dragon-and-tin-robot", ("dragon", "robot"))
    assert [scene.prompt for scene in subject.scenes] == [
        "a drawing of a dragon and a robot in the rain",
        "a drawing of a dragon and a robot at sunset",
    ]
    assert subject.anchor_prompts[2] == ("a drawing of a robot in the forest", 1)
    assert not subject.anchors and [source.sha256[0] for source in subject.sources] == ["1", "2"]
    hat = store(tmp_path, "hat-cat", "cat", "3", details="with a hat")
    spots = store(tmp_path, "spotted-snail", "snail", "4", details="a spotted snail")
    assert planned(hat, spots).scenes[0].prompt == "a drawing of a cat with a hat and a spotted snail in the rain"
    own = planned(dragon, robot, id="duo", subject="a robot on a dragon", style="a photo of")
    assert own.subject_id == "duo" and own.scenes[0].prompt == "a photo of a robot on a dragon in the rain"
    assert own.subject_key == subject.subject_key


def test_contents_and_their_order_decide_who_it_is(dragon: str, robot: str, tmp_path: Path) -> None:
    key = planned(dragon, robot).subject_key
    moved = store(tmp_path / "elsewhere", "tin-robot", "robot", "2")
    assert planned(dragon, moved).subject_key == key
    others = {planned(robot, dragon).subject_key, planned(dragon).subject_key, planned(robot).subject_key}
    assert len(others | {key}) == 4
    assert planned(dragon) == make_plan(parse_job(job(dragon, **{"from": dragon}))).subjects[0], "one is no list"


def test_a_scene_may_show_any_of_them(dragon: str, robot: str) -> None:
    assert len(planned(dragon, robot, subject="", scenes=["a dragon at sea", "a robot in space"]).scenes) == 2
    told = problems(dragon, robot, subject="", scenes=["an empty sea"])
    assert [fix for fix in told.values() if "must contain" in fix] and len(told) == 1


def test_what_was_resolved_is_the_same_job(dragon: str, robot: str) -> None:
    read = parse_job(job(dragon, robot))
    recorded = json.loads(json.dumps(read.model_dump(mode="json", exclude_unset=True)))
    Path(dragon, "subject.json").unlink()
    assert make_plan(parse_job(recorded)) == make_plan(read)


def test_sizes_add_up(dragon: str, robot: str) -> None:
    plan = make_plan(parse_job(job(dragon, robot)))
    assert expected_cache_bytes(plan, "cpu") == {"moss-dragon-and-tin-robot": 1001 + 1002}


def test_what_keeps_them_apart_is_told_before_anything_is_loaded(dragon: str, tmp_path: Path) -> None:
    def one(name: str, **changes: Any) -> str:
        return store(tmp_path, name, changes.pop("word", "robot"), "3", **changes)

    few = MethodSettings(num_inference_steps=20, height=64).to_dict()
    told = problems(dragon, one("few", settings=few))
    assert list(told) == ["subjects[0].from[1]"]
    assert told["subjects[0].from[1]"] == (
        "settings.num_inference_steps: 20 | make it again with settings.num_inference_steps: 50, as from[0] was"
    )
    told = problems(dragon, one("other", model="acme/xl", model_fingerprint="e" * 64))
    assert '"acme/xl"' in told["subjects[0].from[1]"] and '"fake"' in told["subjects[0].from[1]"]
    told = problems(dragon, one("twin", word="Dragon"))
    assert "a name of its own" in told["subjects[0].from[1]"] and "from[0]" in told["subjects[0].from[1]"]
    photo = one("photo", style="a photo of")
    assert '"a drawing of" and "a photo of"' in problems(dragon, photo)["subjects[0].style"]
    assert planned(dragon, photo, style="a sketch of").scenes[0].prompt.startswith("a sketch of a dragon and a robot")


def test_wrong_lists_are_refused(dragon: str, tmp_path: Path) -> None:
    assert "give a folder of an earlier run" in problems(dragon, str(tmp_path / "none"))["subjects[0].from[1]"]
    assert "leave it out" in problems(dragon, dragon, concept="cat")["subjects[0].concept"]
    for wrong in ([], [dragon] * 9, [dragon, 7], [dragon, {"url": dragon}]):
        data = job() | {"subjects": [{"from": wrong, "scenes": ["at sea"]}]}
        with pytest.raises(JobError) as caught:
            parse_job(data)
        assert any(problem.path.startswith("subjects[0].from") for problem in caught.value.problems)
        assert len(str(caught.value)) < 3000
