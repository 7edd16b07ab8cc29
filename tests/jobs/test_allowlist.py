"""The allow-list of places: what it lets through, and the tricks that do not get past it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistory_ray.errors import InputError
from consistory_ray.jobs.allowlist import VARIABLE, check_allowed, check_allowed_model


def allowed(url: str, prefixes: str) -> bool:
    try:
        check_allowed("output", url, {VARIABLE: prefixes})
    except InputError as error:
        assert error.problems[0].path == "output", error
        return False
    return True


@pytest.mark.parametrize("prefixes", ["", "  "])
def test_unset_allows_everything(prefixes: str) -> None:
    assert allowed("s3://anything", prefixes) and allowed("/etc/passwd", prefixes)
    check_allowed("job", "https://example.org/../x", {})


@pytest.mark.parametrize(
    ("url", "prefixes"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b.yaml", "s3://bucket"),
        ("s3://bucket/a/b.yaml", "gs://x, s3://bucket/a/"),
        ("s3a://bucket/a", "s3://bucket"),
        ("S3://bucket/a", "s3://bucket"),
        ("gcs://bucket/a", "gs://bucket"),
        ("s3://anything/at/all", "s3://"),
        ("https://Example.org:443/jobs/a.yaml?version=..", "https://example.org/jobs"),
        ("https://user:pw@example.org/jobs/a.yaml", "https://example.org"),
        ("memory://run/1", "memory://run"),
        ("/data/out/1", "/data/out"),
        ("file:///data/out/1", "/data/out"),
        ("/data/out", "file:///data/out/"),
        ("/anything", "/"),
    ],
)
def test_what_is_under_a_prefix(url: str, prefixes: str) -> None:
    assert allowed(url, prefixes)


@pytest.mark.parametrize(
    ("url", "prefixes"),
    [
        ("s3://bucket-evil/a", "s3://bucket"),
        ("s3://bucket/team-2", "s3://bucket/team"),
        ("s3://bucket", "s3://bucket/team"),
        ("s3://Bucket/a", "s3://bucket"),
        ("s3://bucket/team?x/a", "s3://bucket/team"),
        ("s3://bucket/team#x/a", "s3://bucket/team"),
        ("s3://other@bucket/a", "s3://bucket"),
        ("s3://bucket/team/../other", "s3://bucket/team"),
        ("s3://bucket/team/%2e%2e/other", "s3://bucket/team"),
        ("https://example.org/jobs/%252e%252e/x", "https://example.org/jobs"),
        ("https://example.org/jobs/..%2fx", "https://example.org/jobs"),
        ("https://example.org/jobs\\..\\x", "https://example.org/jobs"),
        ("https://example.org@evil.example/jobs", "https://example.org"),
        ("https://evil.example#@example.org/jobs", "https://example.org"),
        ("https://evil.example?@example.org/jobs", "https://example.org"),
        ("https://evil.example\\@example.org/jobs", "https://example.org"),
        ("https://example.org.evil.example/jobs", "https://example.org"),
        ("https://example.org:8443/jobs", "https://example.org"),
        ("http://example.org/jobs", "https://example.org"),
        ("simplecache::s3://bucket/a", "s3://bucket"),
        ("s3://bucket/a::file:///etc/passwd", "s3://bucket"),
        ("data:text/plain,x", "s3://bucket"),
        ("/data/out/../secret", "/data/out"),
        ("/data/outside", "/data/out"),
        ("file:///etc/passwd", "s3://bucket"),
        ("~/x", "/data"),
        ("s3://bucket/a\nb", "s3://bucket"),
        (" s3://bucket/a", "s3://bucket"),
        ("", "s3://bucket"),
        ("s3://bucket/a", ","),
    ],
)
def test_what_is_not(url: str, prefixes: str) -> None:
    assert not allowed(url, prefixes)


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    (inside := tmp_path / "inside").mkdir()
    (outside := tmp_path / "outside").mkdir()
    (inside / "link").symlink_to(outside)
    (tmp_path / "alias").symlink_to(inside)
    assert allowed(str(inside / "run"), str(inside))
    assert allowed(str(inside / "run"), str(tmp_path / "alias")), "a prefix may be a link itself"
    assert not allowed(str(inside / "link" / "run"), str(inside))


def test_relative_paths_are_taken_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert allowed("out/run", str(tmp_path))
    assert not allowed("out/run", str(tmp_path / "elsewhere"))


def test_models() -> None:
    environment = {VARIABLE: "hf://stabilityai,/models"}
    for model in ("miniature", "stabilityai/stable-diffusion-xl-base-1.0", "/models/tuned", "/models/a.safetensors"):
        check_allowed_model(model, environment)
    for model in ("stabilityai-evil/model", "nobody/model", "/tmp/model.safetensors", "model.safetensors", "../models"):
        with pytest.raises(InputError, match="model"):
            check_allowed_model(model, environment)


@pytest.mark.parametrize("prefix", ["bucket/a", "s3://bucket/../a", "a::b"])
def test_an_allow_list_with_a_mistake_closes_everything(prefix: str) -> None:
    with pytest.raises(InputError, match=VARIABLE):
        check_allowed("job", "s3://fine/a", {VARIABLE: f"s3://fine,{prefix}"})


def test_a_refusal_names_field_place_and_fix_without_credentials() -> None:
    with pytest.raises(InputError) as caught:
        check_allowed("job", "https://me:secret@evil.example/a.yaml?sig=secret", {VARIABLE: "s3://bucket"})
    text = str(caught.value)
    assert "job: use a place under s3://bucket" in text and "https://evil.example/a.yaml" in text
    assert "secret" not in text


@given(st.lists(st.sampled_from(["..", ".", "", "a", "%2e%2e", "..%2f", "%2f", "b%00", "\\..", "team"]), max_size=6))
def test_whatever_the_path_what_is_allowed_stays_below(parts: list[str]) -> None:
    """The path that a file system or server would resolve lies below the prefix whenever it is allowed."""
    from urllib.parse import unquote

    path = "/".join(["/data/team", *parts])
    if allowed(f"https://example.org{path}", "https://example.org/data/team"):
        resolved = os.path.normpath(unquote(unquote(path)).replace("\\", "/"))
        assert resolved == "/data/team" or resolved.startswith("/data/team/")


def test_the_configurations_of_a_single_file_are_a_place_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from consistory_ray.engine.running import load

    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    (tmp_path / "open" / "model.safetensors").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "open"))
    subject = '{concept: cat, subject: "a cat", anchors: [at home], scenes: [at sea]}'
    for place, good in (("open", True), ("closed", False)):
        path = tmp_path / "open" / f"{place}.yaml"
        model = f"model: {tmp_path}/open/model.safetensors\nconfig: {tmp_path}/{place}\n"
        path.write_text(f"name: test\n{model}subjects: [{subject}]\n")
        if good:
            assert load(str(path))[0].config == f"{tmp_path}/{place}"
            continue
        with pytest.raises(InputError, match="config: use a place under"):
            load(str(path))
