"""A matrix of scenes: which there are, what they are called, and that no value changes what another one makes."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistory_ray.errors import JobError
from consistory_ray.jobs.ids import MAX_ID, id_problem
from consistory_ray.jobs.job import parse_job
from consistory_ray.jobs.matrix import read_matrix
from consistory_ray.jobs.subject import Scene, Subject
from consistory_ray.plan.plan import make_plan

POSES = {
    "pose": ["sitting", "running"],
    "mood": {"happy": "with a happy face", "calm": ""},
    "place": ["in the forest", "on the beach"],
}


def subject(matrix: Any, **more: Any) -> dict[str, Any]:
    return {"concept": "fox", "subject": "a fox", "anchors": ["at home"], "matrix": matrix, **more}


def problems(matrix: Any, job: dict[str, Any] | None = None, **more: Any) -> dict[str, str]:
    """What is wrong with a job that has this matrix, by its place."""
    with pytest.raises(JobError) as error:
        parse_job({"subjects": [subject(matrix, **more)], **(job or {})})
    return {problem.path: f"{problem.fix} (got {problem.value})" for problem in error.value.problems}


def scenes(matrix: Any, **more: Any) -> dict[str, str]:
    """Words of the scenes, by their ids."""
    found = parse_job({"subjects": [subject(matrix, **more)]}).subjects[0].scenes
    return {scene.id or scene.prompt: scene.prompt for scene in found}


def test_every_combination_is_a_scene_with_a_readable_id() -> None:
    assert scenes(POSES) == {
        "sitting-happy-in-the-forest": "sitting, with a happy face, in the forest",
        "sitting-happy-on-the-beach": "sitting, with a happy face, on the beach",
        "sitting-calm-in-the-forest": "sitting, in the forest",
        "sitting-calm-on-the-beach": "sitting, on the beach",
        "running-happy-in-the-forest": "running, with a happy face, in the forest",
        "running-happy-on-the-beach": "running, with a happy face, on the beach",
        "running-calm-in-the-forest": "running, in the forest",
        "running-calm-on-the-beach": "running, on the beach",
    }


def test_a_template_says_how_words_join_and_leaves_other_braces_alone() -> None:
    found = scenes({**POSES, "template": " {place}:  {pose} {mood} "})
    assert found["sitting-happy-in-the-forest"] == "in the forest: sitting with a happy face"
    assert found["running-calm-on-the-beach"] == "on the beach: running"
    some = {"a": {"n": "", "x": "x"}, "b": {"n": "", "y": "y"}, "c": ["z"], "template": "{a}, {b} , {c}"}
    assert scenes(some) == {"n-n-z": "z", "n-y-z": "y, z", "x-n-z": "x, z", "x-y-z": "x, y , z"}
    drawn = {"place": ["at sea"], "template": "{red|blue} {place}"}
    assert scenes(drawn, dynamic_prompts=True) == {"at-sea": "{red|blue} at sea"}


def test_what_is_excluded_is_left_out() -> None:
    some = [{"pose": "sitting", "place": "on the beach"}, {"mood": ["calm"], "pose": ["running", "sitting"]}]
    assert list(scenes({**POSES, "exclude": some})) == [
        *("sitting-happy-in-the-forest", "running-happy-in-the-forest", "running-happy-on-the-beach"),
    ]


def test_it_comes_after_the_scenes_that_are_written_and_is_recorded_as_such() -> None:
    data = {"subjects": [subject({"pose": ["sitting"]}, scenes=["in space"])]}
    job = parse_job(data)
    assert [scene.prompt for scene in job.subjects[0].scenes] == ["in space", "sitting"]
    recorded = job.model_dump(mode="json", exclude_unset=True)
    assert "matrix" not in recorded["subjects"][0]
    assert make_plan(parse_job(recorded)) == make_plan(job)
    assert "matrix" in data["subjects"][0], "what is given is not changed"


def test_from_python() -> None:
    fox = Subject(concept=("fox",), subject="a fox", anchors=({"prompt": "at home"},), matrix={"pose": ["sitting"]})  # type: ignore[arg-type]
    assert fox.scenes == (Scene(prompt="sitting", id="sitting"),) and fox.matrix is None


@pytest.mark.parametrize(
    ("matrix", "where", "told"),
    [
        ([], "", "write a mapping of axes"),
        ({}, "", "write 1 to 8 axes"),
        ({"template": "x"}, "", "write 1 to 8 axes"),
        ({f"a{n}": ["x"] for n in range(9)}, "", "1 to 8 axes.*9 axes"),
        ({"two words": ["x"]}, "", "name an axis by a word"),
        ({"pose": []}, ".pose", "write a list of texts"),
        ({"pose": "sitting"}, ".pose", "write a list of texts"),
        ({"pose": ["sitting", 3]}, ".pose[1]", "write text, in quotes.*got 3"),
        ({"pose": ["sitting", " "]}, ".pose[1]", "write some text here"),
        ({"pose": ["x" * 5000]}, ".pose[0]", "at most 4000 characters"),
        ({"pose": {"on it": "on it"}}, '.pose["on it"]', "use 1 to 80 ASCII letters"),
        ({"pose": {"a": "on it", "A": "off"}}, ".pose.A", "pose.a has the same id"),
        ({"pose": ["on it", "on it!"]}, ".pose[1]", r"pose\[0\] has the same id, \"on-it\": write the axis as a map"),
        ({"pose": {"a": "on it", "b": "on  it"}}, ".pose.b", "pose.a has the same words"),
        ({"pose": ["x"], "template": "{pos}"}, ".template", 'no axis "pos", did you mean "pose"'),
        ({"pose": ["x"], "at": ["y"], "template": "{pose}"}, ".template", r"name every axis, such as \{at\}"),
        ({"pose": ["x"], "template": 3}, ".template", "write text"),
        ({"pose": ["x"], "exclude": "x"}, ".exclude", "write a list of combinations"),
        ({"pose": ["x"], "exclude": [{}]}, ".exclude[0]", "write a list of combinations"),
        ({"pose": ["x"], "exclude": [{"pos": "x"}]}, ".exclude[0].pos", 'did you mean "pose"'),
        ({"pose": ["x"], "exclude": [{"pose": "y"}]}, ".exclude[0].pose", "write values of pose.*: x .*y"),
        ({"pose": ["x"], "exclude": [{"pose": []}]}, ".exclude[0].pose", "write values of pose"),
        ({"pose": ["x"], "exclude": [{"pose": "x"}]}, ".exclude", "leave one of them in"),
        ({"pose": {"a": None}}, "", "it would have none .*the scene a"),
        ({"a": {"b-c": "x", "b": "y"}, "d": {"e": "z", "c-e": "w"}}, "", "another combination has this id.*b-c-e"),
        ({"a": ["x, y", "x"], "d": ["z", "y, z"]}, "", "it has the same words as"),
        ({a: [f"{a}{n}" for n in range(50)] for a in "abc"}, "", "100000 combinations at most .*125000"),
        ({"pose": ["anchor 1"]}, "", "kept for anchors"),
        ({"a": ["1" * 79], "d": ["x" * 3000], "e": ["y" * 3000]}, "", "at most 4000 characters"),
    ],
)
def test_what_is_wrong_is_told_where_it_stands(matrix: Any, where: str, told: str) -> None:
    found = problems(matrix)
    assert list(found) == [f"subjects[0].matrix{where}"]
    (text,) = found.values()
    assert re.search(told, text), text


def test_what_is_wrong_with_its_scenes_is_told_of_the_matrix() -> None:
    assert list(problems({"pose": ["in space"]}, scenes=[{"id": "in-space", "prompt": "x"}])) == ["subjects[0].matrix"]
    dynamic = problems({"pose": ["{red|blue"]}, {"dynamic_prompts": True}, scenes=["in space", "{a|b"])
    assert list(dynamic) == ["subjects[0].scenes[1]", "subjects[0].matrix"]
    assert list(problems({"pose": ["x"]}, scenes="x")) == ["subjects[0].scenes"]
    assert list(problems(None)) == ["subjects[0].scenes"], "no scenes and no matrix"


def test_huge_products_are_refused_before_they_are_written_out() -> None:
    wide = {name: [f"{name} {number}" for number in range(900)] for name in "abc"}
    assert list(problems(wide)) == ["subjects"]
    assert list(problems({"a": list(map(str, range(50_000)))}, {"takes": 64})) == ["subjects"]


WORDS = st.text("abcdef ,-.!é猫{}|", min_size=1, max_size=12).filter(str.strip)
AXES = st.dictionaries(
    st.sampled_from(["pose", "mood", "place", "light"]),
    st.lists(WORDS, min_size=1, max_size=4) | st.dictionaries(WORDS, st.just("") | WORDS, min_size=1, max_size=3),
    min_size=1,
    max_size=4,
)


@given(AXES)
def test_any_matrix_has_distinct_safe_ids_or_says_what_is_wrong(axes: dict[str, Any]) -> None:
    matrix, found = read_matrix(axes)
    assert (matrix is None) == bool(found)
    if matrix is None:
        assert all(one.loc[0] == "matrix" and one.fix for one in found)
        return
    made = list(matrix.scenes())
    assert len(made) == len(list(itertools.product(*axes.values())))
    assert len({name.lower() for name, _ in made}) == len({text for _, text in made}) == len(made)
    assert all(id_problem(name) is None and len(name) <= MAX_ID for name, _ in made)


@given(AXES, st.data())
def test_a_value_that_is_added_changes_no_other_scene(axes: dict[str, Any], data: st.DataObject) -> None:
    matrix, _ = read_matrix(axes)
    name = data.draw(st.sampled_from(sorted(axes)))
    value, place = data.draw(WORDS), data.draw(st.integers(0, 4))
    if isinstance(axes[name], list):
        more: Any = [*axes[name][:place], value, *axes[name][place:]]
    else:
        more = {"zz": value, **axes[name]}
    larger, _ = read_matrix({**axes, name: more})
    if matrix is not None and larger is not None:
        assert set(matrix.scenes()) < set(larger.scenes())


def test_pictures_stay_what_they_are_when_a_value_is_added() -> None:
    def ids(matrix: Any) -> dict[str, str]:
        plan = make_plan(parse_job({"model": "fake", "subjects": [subject(matrix)]}))
        return {scene.path: scene.asset_id for scene in plan.subjects[0].scenes}

    more = {**POSES, "place": ["at sea", *POSES["place"]], "mood": {"sad": "in tears", **POSES["mood"]}}  # type: ignore[dict-item]
    assert ids(POSES).items() < ids(more).items() and len(ids(more)) == 2 * 3 * 3
