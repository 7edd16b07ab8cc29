"""Pictures and addresses that mean harm: one clear error each, and nothing read that must not be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from consistory_ray.errors import JobError
from consistory_ray.jobs.job import parse_job
from tests.pictures.making import encoded, gradient, png_header


def wrong_with(address: Any) -> str:
    """The one problem with a picture at an address."""
    subject = {"concept": "cat", "subject": "a cat", "pictures": [{"image": address}], "scenes": ["here"]}
    with pytest.raises(JobError) as caught:
        parse_job({"subjects": [subject]})
    (problem,) = caught.value.problems
    assert problem.path.startswith("subjects[0].pictures[0]")
    assert str(problem).isprintable()
    return f"{problem.value}: {problem.fix}"


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name, told in (("pipe.png", "pipe"), ("zero.png", "device"), ("folder.png", "folder")):
        assert told in wrong_with(f"{tmp_path}/{name}")


@pytest.mark.parametrize(
    "address",
    [
        "",
        "\0",
        "s3:/bucket/x.png",
        "data:image/png;base64,AAAA",
        "simplecache::file:///etc/passwd",
        "nothing://host/x.png",
        "../" * 50 + "etc/passwd",
        "/etc/passwd",
        7,
        None,
        [],
        {"url": "/etc/passwd"},
        {"url": "/etc/passwd", "sha256": "0" * 63 + "G", "bytes": 1, "format": "png"},
        {"url": "/etc/passwd", "sha256": "0" * 64, "bytes": 1, "format": "../../x"},
    ],
)
def test_addresses_that_lead_nowhere_good(address: Any) -> None:
    subject = {"concept": "cat", "subject": "a cat", "pictures": [{"image": address}], "scenes": ["here"]}
    with pytest.raises(JobError) as caught:
        parse_job({"subjects": [subject]})
    assert all(problem.path.startswith("subjects[0].pictures[0]") for problem in caught.value.problems)


def test_the_allow_list_is_asked_before_anything_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    os.mkfifo(outside / "x.png")  # whoever opens it waits for ever
    (inside / "link.png").symlink_to(outside / "x.png")
    monkeypatch.setenv("CONSISTORY_ALLOWED_URLS", f"file://{inside}")
    for address in (f"{outside}/x.png", f"{inside}/../outside/x.png", f"{inside}/link.png", "http://169.254.169.254/x"):
        assert "CONSISTORY_ALLOWED_URLS" in wrong_with(address)
    (inside / "fine.png").write_bytes(encoded(gradient()))
    given = {"concept": "cat", "subject": "a cat", "pictures": [f"{inside}/fine.png"], "scenes": ["here"]}
    assert parse_job({"subjects": [given]}).subjects[0].pictures[0].image.format == "png"


def test_credentials_are_not_told() -> None:
    for address in (
        "https://user:hunter2@localhost:9/x.png",
        "https://localhost:9/x.png?X-Amz-Signature=hunter2&token=hunter2",
    ):
        assert "hunter2" not in wrong_with(address)


def test_bombs_cost_nothing(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    assert "60000x60000" in wrong_with(f"{tmp_path}/bomb.png")
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(1 << 40)
    assert "MiB at most" in wrong_with(f"{tmp_path}/long.png")
