"""What a job demands of its pictures: what is refused with which fix, and that first takes stay what they were."""

from __future__ import annotations

from typing import Any

import pytest

from consistory_ray.errors import JobError
from consistory_ray.guards.problems import FIXES
from consistory_ray.jobs.job import parse_job
from consistory_ray.jobs.quality import quality_findings
from consistory_ray.plan.plan import make_plan
from consistory_ray.plan.takes import further_takes, take_of

GATE = {"metric": "colours", "threshold": 0.9}


def job(quality: Any = None, **subject: Any) -> dict[str, Any]:
    one = {"id": "cat", "concept": "cat", "anchors": ["a cat here"], "scenes": ["a cat at sea", "a cat at home"]}
    told = {} if quality is None else {"quality": quality}
    return {"name": "test", "model": "acme/xl", "subjects": [{**one, **subject}], **told}


@pytest.mark.parametrize(
    ("quality", "path"),
    [
        ({**GATE, "metric": "beauty"}, "metric"),
        ({**GATE, "metric": 3}, "metric"),
        ({**GATE, "measure": "beauty"}, "measure"),
        ({**GATE, "threshold": "high"}, "threshold"),
        ({**GATE, "threshold": float("nan")}, "threshold"),
        ({"metric": "colours", "within": -0.1}, "within"),
        ({**GATE, "max_takes": 0}, "max_takes"),
        ({**GATE, "max_takes": 65}, "max_takes"),
        ({**GATE, "max_takes": 2.5}, "max_takes"),
        ({**GATE, "keep": "last"}, "keep"),
        ({**GATE, "when_none_passes": "ignore"}, "when_none_passes"),
    ],
)
def test_a_bad_value_is_named_with_what_to_write(quality: dict[str, Any], path: str) -> None:
    with pytest.raises(JobError) as caught:
        parse_job(job(quality))
    assert [(item.path, item.fix) for item in caught.value.problems] == [(f"quality.{path}", FIXES[path])]


@pytest.mark.parametrize("bars", [{}, {"threshold": 0.9, "within": 0.1}])
def test_there_is_one_bar(bars: dict[str, float]) -> None:
    with pytest.raises(JobError) as caught:
        parse_job(job({"metric": "colours", **bars}))
    assert any("threshold" in item.fix and "not both" in item.fix for item in caught.value.problems)


def test_stored_subjects_have_no_anchors_to_be_compared_with() -> None:
    stored = {"subjects": [{"scenes": ["a cat at sea"]}, {"from": "s3://run/anchors/cat"}]}
    (found,) = quality_findings({"quality": GATE, **stored})
    assert found.loc == ("subjects", 1, "from") and "measure: alignment" in found.fix
    assert not list(quality_findings({"quality": {**GATE, "measure": "alignment"}, **stored}))
    assert not list(quality_findings(stored))


def test_unknown_keys_and_values_of_another_kind_are_refused() -> None:
    for quality in ({**GATE, "takes": 3}, "colours", 0.9, [GATE]):
        with pytest.raises(JobError) as caught:
            parse_job(job(quality))
        assert all(item.path.startswith("quality") and item.fix for item in caught.value.problems)


def test_first_takes_are_the_assets_there_were() -> None:
    plain, gated = make_plan(parse_job(job())), make_plan(parse_job(job({**GATE, "max_takes": 3})))
    assert [(one.asset_id, one.seed, one.path) for one in plain.assets()] == [
        (one.asset_id, one.seed, one.path) for one in gated.assets()
    ]
    assert not list(further_takes(plain))


def test_further_takes_have_ids_seeds_and_files_of_their_own() -> None:
    gated = make_plan(parse_job(job({**GATE, "max_takes": 4})))
    scenes = [one for one in gated.assets() if one.kind == "scene"]
    every = [*gated.assets(), *further_takes(gated)]
    assert len(every) == 3 + 2 * 3, "three further ones of two scenes, none of the anchor"
    for values in zip(*((one.asset_id, one.path, one.seed) for one in every), strict=True):
        assert len(set(values)) == len(every)
    assert all(one.take_of in {scene.asset_id for scene in scenes} for one in further_takes(gated))
    assert take_of(scenes[0], 1) is scenes[0] and take_of(scenes[0], 3) == take_of(scenes[0], 3)
    assert take_of(scenes[0], 2).prompt == scenes[0].prompt
