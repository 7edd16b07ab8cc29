"""Pictures that a job gives instead of anchors: looked at while it is read, and known by their content from then on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from consistory_ray.errors import JobError
from consistory_ray.jobs.job import load_job, parse_job
from tests.pictures.making import disc, encoded, gradient, png_header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "one.png").write_bytes(encoded(gradient()))
    (tmp_path / "two.jpg").write_bytes(encoded(gradient(60, 60), "JPEG"))
    (tmp_path / "mask.png").write_bytes(encoded(Image.fromarray(disc())))
    return tmp_path


def job(pictures: Any, **changes: Any) -> dict[str, Any]:
    subject = {"concept": "cat", "style": "a drawing of", "subject": "a cat", "scenes": ["in space"]}
    return {"name": "own", "subjects": [{**subject, "pictures": pictures, **changes}]}


def written(folder: Path, pictures: Any, **changes: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job(pictures, **changes)))
    return path


def refused(folder: Path, *pictures: Any, **changes: Any) -> dict[str, str]:
    """Place -> value and fix of everything that is wrong."""
    with pytest.raises(JobError) as caught:
        load_job(written(folder, list(pictures), **changes))
    return {problem.path: f"{problem.value}: {problem.fix}" for problem in caught.value.problems}


def test_pictures_are_known_by_their_content(folder: Path) -> None:
    given = [{"image": "one.png", "mask": "mask.png", "prompt": "in the forest", "seed": 3}, "two.jpg"]
    first, second = load_job(written(folder, given)).subjects[0].pictures
    data = (folder / "one.png").read_bytes()
    assert (first.image.sha256, first.image.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert first.mask is not None and first.mask.format == "png" and first.fit == "crop"
    assert (second.image.format, second.prompt, second.mask, second.seed) == ("jpg", "", None, None)
    assert second.image.url == str(folder / "two.jpg")


def test_a_job_that_was_read_needs_its_pictures_no_more(folder: Path) -> None:
    read = load_job(written(folder, [{"image": "one.png", "mask": "mask.png"}]))
    for path in folder.glob("*"):
        path.unlink()
    again = parse_job(json.loads(json.dumps(read.model_dump(mode="json", exclude_unset=True))))
    assert again == read


def test_relative_paths_begin_at_the_job_file(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()
    path = written(inner, ["../one.png"])
    monkeypatch.chdir("/")
    assert load_job(path).subjects[0].pictures[0].image.bytes == len((folder / "one.png").read_bytes())
    monkeypatch.chdir(folder)
    assert parse_job(job(["one.png"])).subjects[0].pictures[0].image.format == "png"


def test_everything_that_is_wrong_is_told_at_once(folder: Path) -> None:
    frames = [gradient(), gradient().transpose(Image.Transpose.ROTATE_180)]
    bad = {
        "empty.png": b"",
        "broken.png": encoded(gradient())[:80],
        "moving.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "dot.png": encoded(Image.new("RGB", (1, 1))),
        "bomb.png": png_header(60000, 60000),
        "flat.png": encoded(Image.new("RGB", (64, 64), (1, 2, 3))),
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    wrong = refused(
        folder,
        *bad,
        {"image": "two.jpg", "mask": "mask.png", "prompt": 7},
        {"image": "nowhere.png", "fit": "stretch", "masque": "x"},
        style=3,
    )
    place = "subjects[0].pictures[{}].image".format
    assert "empty file" in wrong[place(0)]
    assert "damaged" in wrong[place(1)]
    assert "animated" in wrong[place(2)]
    assert "1x1" in wrong[place(3)]
    assert "60000x60000" in wrong[place(4)]
    assert "single colour" in wrong[place(5)]
    assert "40x24" in wrong["subjects[0].pictures[6].mask"] and "60x60" in wrong["subjects[0].pictures[6].mask"]
    assert "no such file" in wrong[place(7)]
    assert {"subjects[0].pictures[7].fit", "subjects[0].pictures[7].masque", "subjects[0].style"} <= set(wrong)
    assert "subjects[0].pictures[6].prompt" in wrong
    assert len(wrong) == 12


def test_pictures_or_anchors(folder: Path) -> None:
    assert "leave out" in refused(folder, "one.png", anchors=["in the forest"])["subjects[0].pictures"]
    assert "1 to 8" in refused(folder)["subjects[0].pictures"]
    assert "1 to 8" in refused(folder, *["one.png"] * 9)["subjects[0].pictures"]
    with pytest.raises(JobError, match=r"subjects\[0\].anchors: this key is missing"):
        parse_job({"subjects": [{"concept": "cat", "subject": "a cat", "scenes": ["here"]}]})


def test_the_caption_must_name_the_concept(folder: Path) -> None:
    wrong = refused(folder, {"image": "one.png", "prompt": "in the forest"}, "two.jpg", subject="an animal")
    assert "a picture's prompt must contain" in wrong["subjects[0].pictures[0].prompt"]
    assert "subjects[0].pictures[1].prompt" in wrong and "subjects[0].scenes[0]" in wrong


@pytest.mark.parametrize(
    ("details", "prompt"),
    [
        ("", "a drawing of a cat in space"),
        ("with purple glasses", "a drawing of a cat with purple glasses in space"),
        ("a striped cat with glasses", "a drawing of a striped cat with glasses in space"),
    ],
)
def test_details_are_for_scenes(folder: Path, details: str, prompt: str) -> None:
    given = [{"image": "one.png", "prompt": "in the forest"}]
    subject = load_job(written(folder, given, details=details)).subjects[0]
    assert subject.caption("in the forest") == "a drawing of a cat in the forest"
    assert subject.prompt("in space") == prompt


def test_pictures_obey_the_allow_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSISTORY_ALLOWED_URLS", f"file://{folder}/inner")
    wrong = refused(folder, "one.png", "https://user:secret@example.invalid/x.png?sig=secret")
    assert set(wrong) == {"subjects[0].pictures[0].image", "subjects[0].pictures[1].image"}
    assert all("CONSISTORY_ALLOWED_URLS" in told and "secret" not in told for told in wrong.values())


def test_keys_in_the_wrong_place_are_explained() -> None:
    for key, told in (("image", "pictures"), ("reference_image", "pictures"), ("photos", "pictures")):
        with pytest.raises(JobError) as caught:
            parse_job({"subjects": [{"concept": "cat", "anchors": ["a cat"], "scenes": ["a cat"], key: "x.png"}]})
        assert told in caught.value.problems[0].fix
