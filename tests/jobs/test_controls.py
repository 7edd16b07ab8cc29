"""Hints, poses and ControlNets in a job: what may be written, what it becomes, what is refused and in which words."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from PIL import Image

from consistory_ray.errors import JobError
from consistory_ray.jobs.controls import MAX_POSES, Preprocess
from consistory_ray.jobs.job import RenderJob, load_job, parse_job
from consistory_ray.pictures.hints import PREPROCESSORS


def png(grey: int = 255) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (16, 16), grey).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of jobs with three poses in it, and something else."""
    poses = tmp_path / "poses"
    poses.mkdir()
    for number, name in enumerate(("Sitting down.png", "flying.PNG", "asleep.jpg")):
        (poses / name).write_bytes(png(number * 50))
    (poses / "notes.txt").write_text("not a pose")
    (poses / ".hidden.png").write_bytes(png(9))
    return tmp_path


def job(*scenes: Any, anchors: Any = ("in the forest",), nets: Any = ("miniature",), **subject: Any) -> dict[str, Any]:
    one = {"concept": "dragon", "subject": "a dragon", "anchors": list(anchors), "scenes": list(scenes or ["in space"])}
    return {"controlnets": list(nets), "subjects": [{**one, **subject}]}


def read(folder: Path, data: dict[str, Any]) -> RenderJob:
    (folder / "job.yaml").write_text(yaml.safe_dump(data))
    return load_job(str(folder / "job.yaml"))


def problems(folder: Path, data: dict[str, Any]) -> dict[str, tuple[str, str]]:
    with pytest.raises(JobError) as caught:
        read(folder, data)
    found = {problem.path: (problem.value, problem.fix) for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "one problem for one place"
    return found


def test_hints_are_written_short_or_long_and_become_files(folder: Path) -> None:
    long = {"image": "poses/flying.PNG", "scale": 0.5, "end": 0.6, "preprocess": "canny", "net": "edges", "mode": 2}
    loaded = read(
        folder,
        job(
            {"prompt": "in space", "control": "poses/asleep.jpg"},
            {"prompt": "in the snow", "control": [long, "poses/asleep.jpg"]},
            anchors=[{"prompt": "in the forest", "control": {"image": "poses/flying.PNG"}}],
            nets=["miniature", {"model": "acme/edges", "name": "edges"}],
        ),
    )
    first, second = loaded.subjects[0].scenes
    (short,) = first.control
    assert (short.scale, short.start, short.end, short.preprocess, short.net, short.mode) == (1, 0, 1, "none", 0, None)
    assert short.image.url == str(folder / "poses" / "asleep.jpg")
    assert short.image.format == "png", "by its content, not by its name"
    assert (second.control[0].scale, second.control[0].net, second.control[0].mode) == (0.5, "edges", 2)
    assert second.control[1] == short
    assert loaded.subjects[0].anchors[0].control[0].image == second.control[0].image
    assert [(net.model, net.called) for net in loaded.controlnets] == [
        ("miniature", "miniature"),
        ("acme/edges", "edges"),
    ]


def test_a_job_with_hints_survives_dumping_without_its_files(folder: Path) -> None:
    scene = {"prompt": "in space", "control": "poses/asleep.jpg"}
    loaded = read(folder, job(scene, poses={"folder": "poses", "scale": 0.5}))
    for file in (folder / "poses").iterdir():
        file.unlink()
    assert parse_job(json.loads(loaded.model_dump_json(exclude_unset=True))) == loaded


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("poses", ["sitting-down", "asleep", "flying"]),
        ({"folder": "poses", "scale": 0.5}, ["sitting-down", "asleep", "flying"]),
        (["poses/flying.PNG", {"image": "poses/asleep.jpg", "name": "tired"}], ["flying", "tired"]),
        (
            {"images": ["poses/flying.PNG", {"image": "poses/asleep.jpg", "scale": 1}], "scale": 0.5},
            ["flying", "asleep"],
        ),
        ("poses/flying.PNG", ["flying"]),
    ],
)
def test_poses_are_a_folder_or_a_list_in_an_order_that_stays(folder: Path, written: Any, names: list[str]) -> None:
    poses = read(folder, job(poses=written)).subjects[0].poses
    assert [pose.name for pose in poses] == names
    shared = isinstance(written, dict)
    assert poses[0].scale == (0.5 if shared else 1)
    assert poses[-1].scale == (0.5 if shared and "folder" in written else 1), "a pose's own counts"


def test_poses_in_a_bucket_are_listed() -> None:
    import fsspec

    storage = fsspec.filesystem("memory")
    for name in ("b.png", "a.png", "c.txt"):
        with storage.open(f"/some-poses/{name}", "wb") as file:
            file.write(png(ord(name[0])))
    poses = parse_job(job(poses="memory://some-poses")).subjects[0].poses
    assert [(pose.name, pose.image.url) for pose in poses] == [
        ("a", "memory://some-poses/a.png"),
        ("b", "memory://some-poses/b.png"),
    ]


def test_files_whose_names_say_the_same_get_different_names(folder: Path) -> None:
    (folder / "poses" / "sitting-down.webp").write_bytes(png(77))
    names = [pose.name for pose in read(folder, job(poses="poses")).subjects[0].poses]
    assert len({str(name) for name in names}) == 4
    assert sum(str(name).startswith("sitting-down-") for name in names) == 2


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        ({"nets": []}, "subjects[0].scenes[0].control", "name the ControlNet that it is for"),
        ({"control": {"net": 1}}, "subjects[0].scenes[0].control.net", 'controlnets: 0 ("miniature")'),
        ({"control": {"net": "edges"}}, "subjects[0].scenes[0].control.net", 'controlnets: 0 ("miniature")'),
        ({"control": {"start": 0.5, "end": 0.5}}, "subjects[0].scenes[0].control.end", "above start"),
        ({"control": {"start": 1.0}}, "subjects[0].scenes[0].control.start", "from 0 to below 1"),
        ({"control": {"end": 0}}, "subjects[0].scenes[0].control.end", "above start"),
        ({"control": {"scale": -1}}, "subjects[0].scenes[0].control.scale", "from 0 to 10"),
        ({"control": {"preprocess": "depth"}}, "subjects[0].scenes[0].control.preprocess", '"canny"'),
        ({"control": {"image": "none.png"}}, "subjects[0].scenes[0].control.image", "check the path (no such file)"),
        ({"control": {"image": "job.yaml"}}, "subjects[0].scenes[0].control.image", "PNG, JPEG or WebP"),
        ({"control": {"strength": 1}}, "subjects[0].scenes[0].control.strength", "scale"),
        ({"control": {"image": 3}}, "subjects[0].scenes[0].control.image", "path or URL of a PNG"),
        ({"poses": "nowhere"}, "subjects[0].poses", "no such folder"),
        ({"poses": "empty"}, "subjects[0].poses", "at least one PNG, JPEG or WebP file"),
        ({"poses": {"folder": "empty"}}, "subjects[0].poses.folder", "at least one PNG, JPEG or WebP file"),
        ({"poses": "job.yaml"}, "subjects[0].poses", "a file, give a folder"),
        ({"poses": []}, "subjects[0].poses", "folder of hints"),
        ({"poses": {"folder": "poses", "scael": 1}}, "subjects[0].poses.scael", 'did you mean "scale"'),
        ({"poses": {"folder": "poses", "scale": -1}}, "subjects[0].poses.scale", "from 0 to 10"),
        ({"poses": {"folder": "poses", "images": ["a.png"]}}, "subjects[0].poses.images", "one of them"),
        ({"poses": ["poses/flying.PNG"] * 2}, "subjects[0].poses[1].image", "poses[0] is the same picture"),
        ({"poses": ["a.png"] * (MAX_POSES + 1)}, "subjects[0].poses", "up to 1000"),
        ({"nets": ["miniature", "miniature"]}, "controlnets[1]", "give it a name"),
        ({"nets": ["net.ckpt"]}, "controlnets[0]", "pickled weights can run code"),
        ({"nets": ["https://example.com/net.safetensors"]}, "controlnets[0]", "such as owner/name"),
        ({"nets": ["miniature", *(f"acme/{n}" for n in range(8))]}, "controlnets", "up to 8"),
    ],
)
def test_bad_input_is_one_error_with_field_value_and_fix(
    folder: Path, changes: dict[str, Any], place: str, words: str
) -> None:
    (folder / "empty").mkdir()
    scene: Any = {"prompt": "in space", "control": {"image": "poses/asleep.jpg", **changes.pop("control", {})}}
    found = problems(folder, job(scene, **changes))
    assert list(found) == [place]
    assert words in found[place][1]


def test_names_of_poses_differ(folder: Path) -> None:
    named = [{"image": "poses/flying.PNG", "name": "up"}, {"image": "poses/asleep.jpg", "name": "UP"}]
    assert "capitals" in problems(folder, job(poses=named))["subjects[0].poses[1].name"][1]
    named[1]["name"] = "../up"
    assert list(problems(folder, job(poses=named))) == ["subjects[0].poses[1].name"]


def test_a_scene_led_otherwise_may_have_the_same_seed(folder: Path) -> None:
    one = {"prompt": "in space", "seed": 3, "control": "poses/asleep.jpg"}
    read(folder, job(one, {**one, "control": "poses/flying.PNG"}, {"prompt": "in space", "seed": 3}))
    assert "same seed" in problems(folder, job(one, {**one}))["subjects[0].scenes[1].seed"][1]


def test_poses_count_for_the_limit_of_pictures(folder: Path) -> None:
    many = [{"prompt": f"{n}", "count": 90_000} for n in range(10)]
    found = problems(folder, job(*many, poses="poses"))
    assert found["subjects"] == ('"2700000 pictures"', "split the job, it may have 2000000 pictures at most")


def test_a_hint_that_many_scenes_share_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from consistory_ray.jobs import input_files

    reads: list[str] = []
    whole = input_files.read_all
    monkeypatch.setattr(input_files, "read_all", lambda place, limit: reads.append(place.url) or whole(place, limit))
    scenes = [{"prompt": f"in {n}", "control": "poses/asleep.jpg"} for n in range(50)]
    read(folder, job(*scenes))
    assert len(reads) == 1


def test_the_preprocessors_of_jobs_are_those_that_there_are() -> None:
    assert list(get_args(Preprocess)) == list(PREPROCESSORS)
