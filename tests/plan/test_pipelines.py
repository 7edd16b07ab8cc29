"""Every job file of the repository is planned, and those of the bundled model keep to the words of its world."""

from __future__ import annotations

from pathlib import Path

import pytest

from consistory_ray.concepts.compel_syntax import plain_text
from consistory_ray.jobs.job import load_job
from consistory_ray.miniature.vocabulary import words
from consistory_ray.plan.plan import make_plan
from consistory_ray.settings import BUNDLED_MODEL

FOLDER = Path(__file__).parents[2] / "pipelines"
COUNTS = {  # subjects, anchors, scenes
    "quickstart.yaml": (3, 6, 24),
    "two_subjects.yaml": (2, 4, 10),
    "bulk_50.yaml": (50, 100, 200),
    "own_character.yaml": (2, 4, 12),
    "prompts.csv": (2, 4, 5),
    "poses.yaml": (2, 4, 15),
    "few_steps.yaml": (2, 4, 6),
    "gated.yaml": (2, 4, 8),
    "sprites.yaml": (2, 4, 8),
    "schedulers.yaml": (2, 4, 7),
    "matrix.yaml": (1, 2, 11),
    "dynamic.yaml": (1, 2, 16),
    "weighted_prompts.yaml": (2, 4, 6),
    "sdxl_gpus.yaml": (3, 6, 19),
    "consistory_plus.yaml": (3, 6, 7),
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_pipeline_is_planned(name: str) -> None:
    job = load_job(str(FOLDER / name))
    plan = make_plan(job)
    assert (len(plan.subjects), plan.anchor_count, plan.scene_count) == COUNTS[name]
    assert len({asset.path for asset in plan.assets()}) == plan.anchor_count + plan.scene_count + plan.take_count
    if plan.model == BUNDLED_MODEL:
        for subject in plan.subjects:
            said = (plain_text(asset.prompt, subject.settings.prompt_syntax) for asset in subject.assets())
            assert {word for text in said for word in text.replace(",", " ").split()} <= set(words())


def test_every_pipeline_is_counted_here_and_told_in_the_readme() -> None:
    files = {path.name for path in FOLDER.iterdir() if path.is_file()} - {"README.md"}
    assert files == set(COUNTS)
    readme = (FOLDER / "README.md").read_text()
    for name, (_, _, scenes) in COUNTS.items():
        pictures = scenes * load_job(str(FOLDER / name)).takes
        assert any(f"`{name}`" in line and line.endswith(f"| {pictures} |") for line in readme.splitlines())


def test_the_matrix_is_written_out_by_the_ids_of_its_values() -> None:
    (subject,) = make_plan(load_job(str(FOLDER / "matrix.yaml"))).subjects
    names = [f"{wears}-{place}" for wears in ("plain", "hat", "scarf") for place in ("snow", "space", "meadow")]
    assert [scene.scene_id for scene in subject.scenes] == ["in-the-kitchen", *names, "glasses-snow"]
    assert subject.scenes[4].prompt == "a drawing of a cat with a hat in the snow"
    assert [take.take for take in subject.takes] == [2] * 11


def test_the_quickstart_has_three_subjects_of_eight_scenes() -> None:
    plan = make_plan(load_job(str(FOLDER / "quickstart.yaml")))
    assert [len(subject.scenes) for subject in plan.subjects] == [8, 8, 8]
    assert all(len(subject.anchors) == 2 for subject in plan.subjects)


def test_the_poses_are_crossed_with_the_dragons_scenes_and_lead_some_of_the_cats() -> None:
    dragon, cat = make_plan(load_job(str(FOLDER / "poses.yaml"))).subjects
    assert [len(scene.control) for scene in (*dragon.scenes, *cat.scenes)] == [1] * 12 + [0, 1, 1]
    assert dragon.scenes[0].scene_id == "in-the-snow.hopping"
