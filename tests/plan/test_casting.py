"""Candidates for the subjects of a job, and the job with the seeds of those who were chosen."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistory_ray.errors import InputError
from consistory_ray.jobs.job import RenderJob, parse_job
from consistory_ray.jobs.yaml_events import read_yaml
from consistory_ray.plan.casting import HEADER, Candidate, candidates_job, candidates_of, with_seeds, written
from consistory_ray.plan.plan import make_plan
from consistory_ray.plan.takes import take_seed

DRAGON: dict[str, Any] = {
    "id": "dragon",
    "concept": "dragon",
    "style": "a drawing of",
    "subject": "a dragon",
    "details": "with a hat",
    "anchors": ["in the forest", {"prompt": "on the beach", "seed": 7, "negative_prompt": "rain"}],
    "scenes": [{"prompt": "in the snow", "count": 3}, "in space"],
}


def job_of(*subjects: dict[str, Any], **more: Any) -> RenderJob:
    return parse_job({"name": "job", "subjects": list(subjects), **more})


def test_candidates_differ_in_the_seeds_of_their_anchors_alone() -> None:
    job = job_of(DRAGON, {**DRAGON, "id": "cat"})
    plan = make_plan(job)
    candidates = candidates_of(job, plan, 3)
    assert [one.name for one in candidates] == [f"{name}.{n}" for name in ("dragon", "cat") for n in (1, 2, 3)]
    casting = make_plan(candidates_job(job, plan, candidates))
    own = plan.subjects[0]
    for number, subject in enumerate(casting.subjects[:3], start=1):
        assert [one.prompt for one in subject.anchors] == [one.prompt for one in own.anchors]
        assert [one.words for one in subject.anchors] == [one.words for one in own.anchors]
        assert [one.seed for one in subject.anchors] == [take_seed(one.seed, number) for one in own.anchors]
        (scene,) = subject.scenes
        assert (scene.prompt, scene.seed) == (own.scenes[0].prompt, own.scenes[0].seed)
    assert casting.subjects[0].subject_key == own.subject_key, "candidate 1 is the subject as it would be without"


def test_the_chosen_ones_seeds_are_written_and_nothing_else_changes() -> None:
    data = {"name": "job", "settings": {"seed": 3}, "subjects": [DRAGON, {**DRAGON, "id": "cat"}]}
    job = parse_job(data)
    plan = make_plan(job)
    chosen = candidates_of(job, plan, 2)[1]
    cast = with_seeds(data, [chosen])
    again = make_plan(parse_job(cast))
    assert tuple(one.seed for one in again.subjects[0].anchors) == chosen.seeds
    assert again.subjects[1] == plan.subjects[1]
    assert [(one.path, one.prompt, one.seed) for one in again.subjects[0].scenes] == [
        (one.path, one.prompt, one.seed) for one in plan.subjects[0].scenes
    ]
    assert cast["subjects"][0]["anchors"][1] == {**DRAGON["anchors"][1], "seed": chosen.seeds[1]}
    assert DRAGON["anchors"][0] == "in the forest", "what was read is as it was"


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20) | st.sampled_from(
    ["0o7", "1_000", "12:30", "no", "~", "1e3", ".5", "- a", "a: b", "#x", "&a", "*a", "0x1F", "null"]
)


NUMBERS = st.integers(-(2**64), 2**64)  # a job's reader takes digits by the dozen for text


@given(st.recursive(TEXTS | NUMBERS | st.booleans() | st.none(), lambda inner: st.lists(inner, max_size=3)))
def test_what_is_written_is_read_again_as_the_same(value: Any) -> None:
    data = {"name": "job", "subjects": [{"scenes": [value]}]}
    text = written(data, "of 4\ncandidates")
    assert text.startswith(f"{HEADER}of 4 candidates\n")
    assert read_yaml(text) == (data, [])


@pytest.mark.parametrize(
    ("subject", "fix"),
    [
        ({**DRAGON, "anchors": ["in the forest"]}, "second anchor"),
        ({**DRAGON, "subject": "a {red|blue} dragon", "dynamic_prompts": True}, "without dynamic prompts"),
    ],
)
def test_who_cannot_be_cast_is_told_why(subject: dict[str, Any], fix: str) -> None:
    job = job_of(subject)
    with pytest.raises(InputError) as told:
        candidates_of(job, make_plan(job), 2)
    (problem,) = told.value.problems
    assert problem.path == "subjects[0]" and fix in problem.fix
    both = job_of(subject, {**DRAGON, "id": "other"})
    assert {one.subject_id for one in candidates_of(both, make_plan(both), 2)} == {"other"}


@pytest.mark.parametrize("other", ["dragon.2", "Dragon.2"])
def test_candidates_are_never_called_like_a_subject(other: str) -> None:
    job = job_of(DRAGON, {**DRAGON, "id": other})
    with pytest.raises(InputError) as told:
        candidates_of(job, make_plan(job), 2)
    (problem,) = told.value.problems
    assert (problem.path, problem.value) == ("subjects[0].id", "dragon")


def test_seeds_are_plain_numbers() -> None:
    assert with_seeds({"subjects": [DRAGON]}, [Candidate(0, "dragon", 2, "dragon.2", (1, 2))])["subjects"][0][
        "anchors"
    ] == [{"prompt": "in the forest", "seed": 1}, {**DRAGON["anchors"][1], "seed": 2}]
