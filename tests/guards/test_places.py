"""What is a URL and what is a path: one reading, the same as fsspec's, and nothing is opened that is no file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consistory_ray.engine.running import load
from consistory_ray.errors import InputError
from consistory_ray.guards.outside import NotAFile, open_regular
from consistory_ray.guards.places import place_of
from consistory_ray.jobs.allowlist import VARIABLE, check_allowed
from consistory_ray.jobs.job import load_job
from consistory_ray.output.storage import open_output

HEADS = [
    "",
    "file:",
    "file:/",
    "file://",
    "file:///",
    "local:",
    "local://",
    "FILE:",
    "FILE://",
    "Local:/",
    "~",
    "./",
    "/",
]
HEADS += ["s3:", "s3:/", "s3://", "memory:", "memory://", "memory:///", "C:", "C:/", "data:", "zip://", "dir://"]
HEADS += ["simplecache::", "simplecache::file://", "file:file:", "file://file:", "x:", "//", "././", "a b://", "/a://"]
PARTS = st.lists(
    st.sampled_from(["a", "team", "etc", ".", "..", "", "b:c", "~", "%2e%2e", "x::y", "é", "#", "?"]), max_size=4
)


def allowed(url: str, prefixes: str) -> bool:
    try:
        check_allowed("url", url, {VARIABLE: prefixes})
    except InputError:
        return False
    return True


@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(HEADS), PARTS)
def test_what_is_allowed_is_what_fsspec_would_open(tmp_path: Path, head: str, parts: list[str]) -> None:
    """Whatever the spelling: what the allow-list lets pass as a file below a folder is below that folder for fsspec."""
    inside = tmp_path / "team"
    inside.mkdir(exist_ok=True)
    for tail in ("/".join(parts), f"{inside}/{'/'.join(parts)}", f"{tmp_path}/{'/'.join(parts)}"):
        address = head + tail
        if not allowed(address, f"{inside},memory://team"):
            continue
        fs, path = place_of(address).filesystem()
        if isinstance(fs, LocalFileSystem):
            real = os.path.realpath(path)
            assert real == str(inside) or real.startswith(f"{inside}/"), address
            assert open_output(address).root == path
        else:
            assert path == "/team" or path.startswith("/team/"), address
        try:
            theirs, their_path = url_to_fs(address)
        except ValueError:
            continue  # a scheme in capitals, which fsspec does not know
        assert type(theirs) is type(fs), address
        assert os.path.normpath(their_path) == os.path.normpath(path), address


@pytest.mark.parametrize("spelling", ["file:{}", "local:{}", "file://{}", "local://{}", "FILE://{}", "{}", "/{}"])
def test_no_spelling_gets_past_the_allow_list(tmp_path: Path, spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (inside := tmp_path / "inside").mkdir()
    job = tmp_path / "job.yaml"
    job.write_text("subjects: [{concept: cat, subject: a cat, anchors: [a], scenes: [b]}]")
    monkeypatch.chdir(inside)
    assert load(spelling.format(job))[1].scene_count == 1, "it is a spelling of that file"
    monkeypatch.setenv(VARIABLE, str(inside))
    with pytest.raises(InputError, match="not allowed"):
        load(spelling.format(job))
    (inside / "job.yaml").write_text(f'subjects: [{{from: "{spelling.format(tmp_path)}", scenes: [b]}}]')
    with pytest.raises(InputError, match=VARIABLE):
        load("job.yaml")


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("S3://b/k", "s3://b/k"),
        ("~/x", os.path.expanduser("~/x")),
        ("file:///a/b/", "/a/b"),
        ("file:/a", "/a"),
        ("local:/a", "/a"),
        ("FILE:///a", "/a"),
        ("/a/./b", "/a/b"),
        ("x:y", os.path.join(os.getcwd(), "x:y")),
        ("zip://a::s3://b/c", "zip://a::s3://b/c"),
    ],
)
def test_an_address_has_one_way_of_writing(address: str, url: str) -> None:
    assert place_of(address).url == url


@pytest.mark.parametrize("address", ["", " ", "a\0b", "s3:/b/k", "memory:x", "FILE:/x", "http:/x", "HTTPS:x"])
def test_what_can_be_read_in_two_ways_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="address"):
        place_of(address)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "link to a device", "link to a pipe"])
def test_only_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.yaml"
    if "pipe" in kind:
        os.mkfifo(tmp_path / "pipe")
    if kind == "folder":
        path.mkdir()
    target = {"pipe": tmp_path / "pipe", "device": Path("/dev/zero")}.get(kind.rpartition(" ")[2], path)
    if target != path:
        path.symlink_to(target)
    with pytest.raises(NotAFile):
        open_regular(path, follow=True)
    with pytest.raises(InputError, match="give a file"):
        load_job(str(path))
