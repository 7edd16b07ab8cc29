"""Stored subjects are packed for a profile: what is written, that jobs take it, and what is refused before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from typer.testing import CliRunner, Result

from consistory_ray.cli.app import app
from consistory_ray.consistory import AnchorCache
from consistory_ray.consistory.method.steps import Pass, StepPlan
from consistory_ray.engine.packing import pack_subject
from consistory_ray.engine.workers.anchor_store import load_source
from consistory_ray.errors import CacheMismatchError, InputError, StorageError
from consistory_ray.guards.choices import Profile
from consistory_ray.jobs.stored_subjects import resolve_stored
from consistory_ray.settings import MethodSettings

SETTINGS = MethodSettings(num_inference_steps=20, height=64, width=64)
GRIDS = {"coarse": (4, 4), "fine": (8, 8)}


def synthetic(settings: MethodSettings = SETTINGS) -> AnchorCache:
    """A cache of noise with every tensor that its settings ask for."""
    generator, plan = torch.Generator().manual_seed(0), StepPlan.from_settings(settings)
    tensors: dict[str, torch.Tensor] = {"features.fine": torch.randn(32, 64, generator=generator)}
    for at in sorted(plan.reads):
        for level, channels in (("coarse", 128), ("fine", 64)):
            name = f"pass{at.number}.step{at.step:03d}"
            tensors[f"{name}.shared.{level}"] = torch.randn(2, 2, 16, channels, generator=generator)
            tensors[f"{name}.positions.{level}"] = torch.arange(16, dtype=torch.int32)
    for step in plan.injected:
        tensors[f"pass2.step{step:03d}.injected.fine"] = torch.randn(3, 32, 64, generator=generator)
    tensors |= {f"mask.{level}": torch.ones(2, rows * columns) > 0 for level, (rows, columns) in GRIDS.items()}
    return AnchorCache(settings, "f" * 64, ("cat",), ("a cat", "a cat in snow"), (1, 2), GRIDS, tensors)


def store(folder: str, cache: AnchorCache) -> str:
    """A stored subject as a run leaves it; returns its folder."""
    buffer = cache.to_buffer()
    digest, name = hashlib.sha256(buffer.data).hexdigest(), "0123456789abcdef.safetensors"
    record = {
        "format": 1, "subject_id": "tom", "concept": ["cat"], "style": "", "subject": "a grey cat",
        "anchors": [{"prompt": prompt, "seed": seed} for prompt, seed in zip(cache.prompts, (1, 2), strict=True)],
        "settings": cache.settings.to_dict(), "model": "miniature", "model_fingerprint": cache.fingerprint,
        "cache": {"file": name, "sha256": digest, "bytes": buffer.nbytes}, "kept": "as it is",
    }  # fmt: skip
    files = {name: buffer.tobytes(), f"{name}.sha256": f"{digest}  {name}\n".encode()}
    files["subject.json"] = json.dumps(record).encode()
    for file, content in files.items():
        with fsspec.open(f"{folder}/{file}", "wb", auto_mkdir=True) as stream:
            stream.write(content)
    return folder


def taken_up(folder: str) -> tuple[dict[str, Any], AnchorCache]:
    """What a job gets from ``from: folder``, and the cache that workers load, its checksum compared."""
    subjects = resolve_stored("job", {"subjects": [{"from": folder, "scenes": ["a cat at night"]}]})["subjects"]
    found = load_source(subjects[0]["from"]["url"])
    assert found.buffer is not None and found.problem == "" and found.sha256 == subjects[0]["from"]["sha256"]
    assert subjects[0]["from"]["bytes"] == found.buffer.nbytes
    return subjects[0], AnchorCache.from_buffer(found.buffer)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path) if request.param == "local" else f"memory://{tmp_path.name}"


def names(folder: str) -> set[str]:
    fs, path = fsspec.url_to_fs(folder)
    return {file.rpartition("/")[2] for file in fs.find(path)}


def test_a_new_subject_is_written_and_jobs_take_it(folder: str) -> None:
    source = store(f"{folder}/tom", synthetic())
    packed = pack_subject(source, f"{folder}/small", profile="fast")
    subject, cache = taken_up(f"{folder}/small")
    assert subject["from"]["settings"] == cache.settings.to_dict() and cache.settings.profile == "fast"
    assert (subject["id"], subject["concept"], subject["subject"]) == ("tom", ["cat"], "a grey cat")
    assert cache.codec == packed.codec == "int8" and packed.bytes_after < 0.35 * packed.bytes_before
    assert packed.output == f"{cache_url(f'{folder}/small')}" and packed.sha256 == subject["from"]["sha256"]
    with fsspec.open(f"{folder}/small/subject.json") as stream:
        assert json.load(stream)["kept"] == "as it is"
    assert taken_up(source)[1].codec == "none", "the old one is as it was"
    assert len(names(f"{folder}/small")) == 3


def cache_url(folder: str) -> str:
    (file,) = (name for name in names(folder) if name.endswith(".safetensors"))
    return f"{folder.replace('memory://', 'memory:///')}/{file}" if folder.startswith("memory:") else f"{folder}/{file}"


def test_in_place_the_old_cache_is_gone(folder: str) -> None:
    source = store(f"{folder}/tom", synthetic())
    pack_subject(source, None, profile="exact", codec="fp8", in_place=True)
    _, cache = taken_up(source)
    assert (cache.codec, cache.settings.profile) == ("fp8", "exact") and len(names(source)) == 3
    pack_subject(source, None, profile="exact", codec="none", in_place=True)
    assert taken_up(source)[1].codec == "none" and len(names(source)) == 3
    again = pack_subject(source, None, profile="exact", in_place=True)
    assert again.bytes_before == again.bytes_after and taken_up(source)[1].nbytes == synthetic().nbytes


def test_a_kill_in_between_leaves_a_whole_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = store(str(tmp_path / "tom"), synthetic())

    def killed(*_: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr("consistory_ray.engine.packing.packed_words", killed)
    with pytest.raises(KeyboardInterrupt):
        pack_subject(source, None, profile="fast", in_place=True)
    assert taken_up(source)[1].codec == "none"


def test_a_cache_that_lies_alone(folder: str) -> None:
    synthetic().save(f"{folder}/tom.safetensors")
    pack_subject(f"{folder}/tom.safetensors", f"{folder}/small.safetensors", profile="turbo")
    cache = AnchorCache.load(f"{folder}/small.safetensors")
    assert cache.settings.profile == "turbo" and names(folder) == {"tom.safetensors", "small.safetensors"}
    pack_subject(f"{folder}/tom.safetensors", None, profile="turbo", in_place=True)
    assert AnchorCache.load(f"{folder}/tom.safetensors").to_buffer().tobytes() == cache.to_buffer().tobytes()


Change = Callable[[Path], object]


@pytest.mark.parametrize(
    ("error", "told", "change", "more"),
    [
        (InputError, "either --output, or --in-place", None, {"output": None}),
        (InputError, "either --output, or --in-place", None, {"in_place": True}),
        (InputError, "give a folder", None, {"output": "x.safetensors"}),
        (InputError, "there is a cache already", lambda at: store(str(at / "new"), synthetic()), {}),
        (InputError, "no stored subject", lambda at: (at / "tom" / "subject.json").unlink(), {}),
        (StorageError, "is damaged", lambda at: spoil(at / "tom"), {}),
        (StorageError, "could not read", lambda at: (at / "tom" / "0123456789abcdef.safetensors").unlink(), {}),
        (CacheMismatchError, "lacks", lambda at: store(str(at / "tom"), synthetic(SETTINGS.with_profile("fast"))),
         {"profile": "exact"}),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_before_anything_is_written(
    error: type[Exception], told: str, change: Change | None, more: dict[str, Any], tmp_path: Path
) -> None:
    source = store(str(tmp_path / "tom"), synthetic())
    if change is not None:
        change(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    profile: Profile = more.get("profile", "fast")
    output = more.get("output", str(tmp_path / "new"))
    with pytest.raises(error) as caught:
        pack_subject(source, output, profile=profile, in_place=more.get("in_place", False))
    assert told in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def spoil(folder: Path) -> None:
    path = folder / "0123456789abcdef.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def call(*args: object) -> Result:
    return CliRunner().invoke(app, ["pack", *(str(arg) for arg in args)])


def test_the_command_line(tmp_path: Path) -> None:
    source = store(str(tmp_path / "tom"), synthetic())
    shown = call(source, "--profile", "fast", "-o", tmp_path / "fast")
    assert shown.exit_code == 0 and " before, " in shown.stdout and "for fast, packed as int8" in shown.stdout
    told = json.loads(call(source, "--codec", "int4", "-o", tmp_path / "four", "--json").stdout)
    assert (told["codec"], told["profile"]) == ("int4", "fast")
    assert told["bytes_after"] == taken_up(str(tmp_path / "four"))[0]["from"]["bytes"] < told["bytes_before"]
    refused = call(source)
    assert refused.exit_code == 2 and "--in-place" in refused.stderr
    lacking = call(tmp_path / "fast", "--profile", "exact", "-o", tmp_path / "exact")
    assert lacking.exit_code == 2 and "make the subject again with profile: exact" in lacking.stderr
    assert not (tmp_path / "exact").exists()


def test_the_steps_that_are_kept(tmp_path: Path) -> None:
    pack_subject(store(str(tmp_path / "tom"), synthetic()), str(tmp_path / "fast"), profile="fast")
    cache, plan = taken_up(str(tmp_path / "fast"))[1], StepPlan.from_settings(SETTINGS.with_profile("fast"))
    steps = {Pass(int(name[4]), int(name[10:13])) for name in cache.tensors if ".shared." in name}
    assert steps == plan.reads
