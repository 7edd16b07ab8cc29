"""Given pictures in a plan: their content decides who a subject is, their names and addresses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consistory_ray.errors import JobError
from consistory_ray.jobs.job import parse_job
from consistory_ray.plan.plan import Plan, SubjectPlan, make_plan
from tests.pictures.making import disc, encoded, gradient

PINNED = [
    "6178246f4b22659f4aa7d2bea14d216e",
    "ed3cb08a6c8d99b4d5498f34d2d3b4d6",
    "1ed7245483fb5c2efae5377fcc058330",
    "7f5cf6b9466b6dd488b850eaf727e94f",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    turned = gradient().transpose(Image.Transpose.ROTATE_180)
    for name, data in {
        "one.png": encoded(gradient()),
        "same.png": encoded(gradient()),
        "other.png": encoded(turned),
        "mask.png": encoded(Image.fromarray(disc())),
        "other-mask.png": encoded(Image.fromarray(np.roll(disc(), 3, axis=1))),
    }.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def planned(folder: Path, *pictures: dict[str, Any], **changes: Any) -> SubjectPlan:
    given = [
        {**picture, **{k: f"{folder}/{picture[k]}" for k in ("image", "mask") if k in picture}} for picture in pictures
    ]
    subject = {"concept": "cat", "style": "a drawing of", "subject": "a cat", "scenes": ["in space"], "pictures": given}
    (subject_plan,) = make_plan(parse_job({"subjects": [{**subject, **changes}]})).subjects
    return subject_plan


def ids(subject: SubjectPlan) -> list[str]:
    return [subject.subject_key, *(asset.asset_id for asset in subject.assets())]


def test_anchors_are_the_pictures(folder: Path) -> None:
    subject = planned(
        folder, {"image": "one.png", "prompt": "in the forest"}, {"image": "other.png", "mask": "mask.png"}
    )
    assert [anchor.prompt for anchor in subject.anchors] == ["a drawing of a cat in the forest", "a drawing of a cat"]
    assert [anchor.path for anchor in subject.anchors] == ["anchors/cat/anchor-0.png", "anchors/cat/anchor-1.png"]
    assert [picture.mask is None for picture in subject.pictures] == [True, False]
    files = [file.path for file in Plan("own", "miniature", (subject, subject), "auto", "auto").inputs()]
    assert len(files) == 3 and all(path.startswith("inputs/") and path.endswith(".png") for path in files)


def test_the_same_bytes_under_another_name_are_the_same_subject(folder: Path) -> None:
    assert ids(planned(folder, {"image": "one.png"})) == ids(planned(folder, {"image": "same.png"}))


@pytest.mark.parametrize(
    "other",
    [
        {"image": "other.png"},
        {"image": "one.png", "mask": "mask.png"},
        {"image": "one.png", "fit": "letterbox"},
        {"image": "one.png", "seed": 7},
        {"image": "one.png", "prompt": "in the forest"},
    ],
)
def test_what_decides_pixels_makes_another_subject(folder: Path, other: dict[str, Any]) -> None:
    one, another = planned(folder, {"image": "one.png"}), planned(folder, other)
    assert set(ids(one)).isdisjoint(ids(another))
    masked = planned(folder, {"image": "one.png", "mask": "other-mask.png"})
    assert set(ids(masked)).isdisjoint(ids(planned(folder, {"image": "one.png", "mask": "mask.png"})))


def test_details_change_scenes_only(folder: Path) -> None:
    plain, detailed = planned(folder, {"image": "one.png"}), planned(folder, {"image": "one.png"}, details="with a hat")
    assert plain.subject_key == detailed.subject_key and plain.anchors == detailed.anchors
    assert detailed.scenes[0].prompt == "a drawing of a cat with a hat in space"
    assert plain.scenes[0].asset_id != detailed.scenes[0].asset_id


def test_two_subjects_of_the_same_pictures_are_refused(folder: Path) -> None:
    given = [{"image": f"{folder}/one.png"}]
    subject = {"concept": "cat", "subject": "a cat", "pictures": given, "scenes": ["in space"]}
    with pytest.raises(JobError, match=r"subjects\[1\].pictures"):
        make_plan(parse_job({"subjects": [subject, {**subject, "scenes": ["at sea"]}]}))


def test_jobs_without_pictures_keep_their_ids() -> None:
    subject = {"concept": "dragon", "style": "a drawing of", "subject": "a dragon"}
    job = {
        "subjects": [{**subject, "anchors": ["in the forest", {"prompt": "at sea", "seed": 3}], "scenes": ["in space"]}]
    }
    (plan,) = make_plan(parse_job(job)).subjects
    assert ids(plan) == PINNED
