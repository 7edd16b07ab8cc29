"""Pictures that a job file refers to: where they are looked for, what they become, what is said of unusable ones."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from PIL import Image

from consistory_ray.errors import InputError
from consistory_ray.jobs.allowlist import VARIABLE
from consistory_ray.jobs.input_files import MAX_FILES, InputFiles


def png(colour: tuple[int, int, int] = (200, 10, 30), size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "PNG")
    return buffer.getvalue()


def refused(files: InputFiles, address: str) -> tuple[str, str, str]:
    with pytest.raises(InputError) as caught:
        files.look_up("here", address)
    (problem,) = caught.value.problems
    return problem.path, problem.value, problem.fix


def test_a_relative_address_goes_by_the_job_file_and_is_known_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, elsewhere = tmp_path / "jobs", tmp_path / "elsewhere"
    (jobs / "poses").mkdir(parents=True)
    elsewhere.mkdir()
    (jobs / "poses" / "a.png").write_bytes(png())
    (elsewhere / "b.png").write_bytes(png())
    monkeypatch.chdir(elsewhere)
    files = InputFiles(str(jobs / "job.yaml"))
    beside = files.look_up("here", "poses/a.png")
    assert beside.url == str(jobs / "poses" / "a.png")
    assert (beside.sha256, beside.bytes, beside.format) == (hashlib.sha256(png()).hexdigest(), len(png()), "png")
    assert files.look_up("here", f"file://{jobs}/poses/a.png") == beside
    assert refused(files, "b.png")[2].startswith("check the path")
    assert InputFiles("the job").look_up("here", "b.png").sha256 == beside.sha256
    assert InputFiles("-").look_up("here", "./b.png").url == str(elsewhere / "b.png")
    monkeypatch.chdir(tmp_path)
    assert InputFiles("jobs/job.yaml").look_up("here", "poses/a.png").url == beside.url


def test_a_picture_beside_a_job_on_storage_is_read_from_there() -> None:
    import fsspec

    with fsspec.filesystem("memory").open("/jobs-of-mine/hint.png", "wb") as file:
        file.write(png())
    found = InputFiles("memory://jobs-of-mine/job.yaml?version=3").look_up("here", "hint.png")
    assert (found.url, found.bytes) == ("memory://jobs-of-mine/hint.png", len(png()))


def test_each_is_read_once_whether_it_can_be_used_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    from consistory_ray.jobs import input_files

    monkeypatch.setattr(
        input_files, "read_all", lambda place, limit: reads.append(place.url) or Path(place.path).read_bytes()
    )
    (tmp_path / "good.png").write_bytes(png())
    (tmp_path / "bad.png").write_bytes(b"GIF89a" + bytes(100))
    files = InputFiles(str(tmp_path / "job.yaml"))
    assert files.look_up("first", "good.png") is files.look_up("second", "good.png")
    told = [refused(files, "bad.png") for _ in range(2)]
    assert told[0] == told[1] == ("here", "a GIF", "save it as PNG, JPEG or WebP, one picture of it")
    assert reads == [str(tmp_path / name) for name in ("good.png", "bad.png")]


def test_bad_addresses_are_told_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = InputFiles(str(tmp_path / "job.yaml"))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(png(size=64)[:-30])
    assert refused(files, "empty.png")[1] == "an empty file"
    assert "damaged or cut off" in refused(files, "cut.png")[1]
    assert "(no such file)" in refused(files, "none.png")[2]
    assert "(a folder)" in refused(files, ".")[2]
    assert "give a path or a URL" in refused(files, " ")[2]
    monkeypatch.setenv(VARIABLE, "s3://allowed")
    assert refused(files, "cut.png")[2] == f"use a place under s3://allowed ({VARIABLE})"
    assert "password" not in "".join(refused(files, "https://me:password@example.com/a.png"))


def test_a_job_may_refer_to_many_pictures_but_not_to_any_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from consistory_ray.jobs import input_files

    assert MAX_FILES >= 1000
    monkeypatch.setattr(input_files, "MAX_FILES", 2)
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(png())
    files = InputFiles(str(tmp_path / "job.yaml"))
    assert files.look_up("here", "a.png") and files.look_up("here", "b.png") and files.look_up("here", "a.png")
    assert "2 pictures at most" in refused(files, "c.png")[2]
