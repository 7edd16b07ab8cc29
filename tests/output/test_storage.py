"""The storage layer: whole writes, exclusive creation, paths that stay inside, and errors that say what and where."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.dircache import DirCache
from fsspec.implementations.dirfs import DirFileSystem

from consistory_ray.errors import DiskFullError, InputError, StorageError
from consistory_ray.output import files
from consistory_ray.output.files import StoredFile
from consistory_ray.output.storage import MissingFileError, OutputStore, as_store, open_output

AtOnce = Callable[[Callable[[int], object]], None]
NO_RETRIES = {"max_attempts": 1}


def test_write_read_list_delete(store: OutputStore) -> None:
    assert store.list_files() == []
    assert store.list_files("images") == []
    store.write_atomic("images/b/2.bin", b"two")
    store.write_atomic("images/a/1.bin", memoryview(b"one"))
    store.write_atomic("images-old/x", b"")
    store.write_atomic("images/b/2.bin", b"second")
    assert store.read("images/b/2.bin") == b"second"
    assert store.exists("images/a/1.bin")
    assert not store.exists("images/a")
    assert not store.exists("images/a/9.bin")
    assert store.list_files("images") == [StoredFile("images/a/1.bin", 3), StoredFile("images/b/2.bin", 6)]
    assert [file.path for file in store.list_files()] == ["images-old/x", "images/a/1.bin", "images/b/2.bin"]
    store.delete("images/a/1.bin")
    store.delete("images/a/1.bin")
    assert not store.exists("images/a/1.bin")


def test_folders_are_listed_one_after_the_other(store: OutputStore) -> None:
    assert list(store.iter_files("images")) == []
    for path in ("images/here.png", "images/b/2.png", "images/a/1.png", "images/a/deep/3.png", "images-old/x.png"):
        store.write_atomic(path, path.encode())
    assert sorted(store.iter_files("images"), key=lambda file: file.path) == store.list_files("images")


def test_a_checksum_without_the_whole_file_in_memory(store: OutputStore) -> None:
    data = os.urandom(1 << 20)
    store.write_atomic("anchors/large", data)
    assert store.sha256("anchors/large") == hashlib.sha256(data).hexdigest()
    with pytest.raises(MissingFileError):
        store.sha256("anchors/none")


def test_a_write_by_another_process_is_seen_at_once(store: OutputStore) -> None:
    store.write_atomic("index/part-1", b"1")
    assert [file.path for file in store.list_files("index")] == ["index/part-1"]
    other = pickle.loads(pickle.dumps(store))
    if not store.is_local and "s3" in str(store.fs.protocol):
        other.fs.clear_instance_cache()
        other = OutputStore(type(other.fs)(**other.fs.storage_options, skip_instance_cache=True), other.root)
    other.write_atomic("index/part-2", b"22")
    other.delete("index/part-1")
    assert store.list_files("index") == [StoredFile("index/part-2", 2)]
    assert store.exists("index/part-2")
    assert not store.exists("index/part-1")


def test_create_exclusive(store: OutputStore) -> None:
    assert store.create_exclusive("lease", b"first")
    assert not store.create_exclusive("lease", b"second")
    assert store.create_exclusive("lease", b"first"), "a repeated request of the winner is still its own"
    assert store.read("lease") == b"first"


def test_one_of_many_writers_creates(store: OutputStore, at_once: AtOnce) -> None:
    if "memory" in str(store.fs.protocol):
        pytest.skip("the memory file system is not for several writers")
    won: list[int] = []

    def write(number: int) -> None:
        if store.create_exclusive("deep/down/lease", f"writer {number}".encode() * 1000):
            won.append(number)

    at_once(write)
    assert len(won) == 1
    assert store.read("deep/down/lease") == f"writer {won[0]}".encode() * 1000


def test_einval_of_a_lost_race_is_settled_by_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_output("memory://einval")
    store.write_atomic("taken", b"theirs")

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.EINVAL, "precondition failed")

    monkeypatch.setattr(store.fs, "pipe_file", refuse)
    assert not store.create_exclusive("taken", b"ours")
    assert store.create_exclusive("taken", b"theirs")
    with pytest.raises(StorageError, match="precondition failed"):
        store.create_exclusive("free", b"ours")


def test_exclusive_creation_without_hard_links(local: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert local.create_exclusive("lease", b"first")
    assert not local.create_exclusive("lease", b"second")
    assert [file.path for file in local._walk("")] == ["lease"]


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../x", "a/../../x", "a/..", ".", "a//b", "a/", "a\\..\\b", "a\0b", "a\nb", "C:/x", "s3://b/x"],
)
def test_paths_that_could_leave_are_refused(store: OutputStore, path: str) -> None:
    for action in (store.read, store.exists, store.delete, lambda p: store.write_atomic(p, b"")):
        with pytest.raises(InputError, match="would leave the output"):
            action(path)


def test_unusual_but_harmless_names(store: OutputStore) -> None:
    for path in ("images/moss-dragon/été 猫.png", "a/..b", "a/b..", "...", "a%2e/x", "a b/c#d?e"):
        store.write_atomic(path, path.encode())
        assert store.read(path) == path.encode()
        assert path in [file.path for file in store.list_files()]


def test_a_missing_file(store: OutputStore) -> None:
    with pytest.raises(MissingFileError, match="nothing/here"):
        store.read("nothing/here")


def test_errors_name_the_address_and_the_cause(local: OutputStore, s3_options: dict[str, Any]) -> None:
    local.write_atomic("file", b"")
    with pytest.raises(StorageError, match=r"could not write .*/out/file/below: NotADirectoryError"):
        local.write_atomic("file/below", b"")
    nowhere = open_output("s3://no-such-bucket/run", **s3_options)
    with pytest.raises(StorageError, match=r"could not write s3://no-such-bucket/run/x: .*bucket"):
        nowhere.write_atomic("x", b"")


def test_a_storage_that_fails_is_not_taken_for_an_absent_file(local: OutputStore) -> None:
    local.write_atomic("file", b"")
    assert not local.exists("file/below")
    with pytest.raises(StorageError, match=r"could not look up .*File name too long"):
        local.exists("x" * 300)
    client = {"endpoint_url": "http://127.0.0.1:9"}
    away = open_output(
        "s3://runs/away", key="k", secret="s", client_kwargs=client, config_kwargs={"retries": NO_RETRIES}
    )
    with pytest.raises(StorageError, match=r"could not look up s3://runs/away/run.json"):
        away.exists("run.json")


@pytest.mark.parametrize(
    ("url", "given"),
    [
        ("s3://bucket/run", {"anon": True}),
        ("gs://bucket/run", {"token": "anon"}),
        ("abfs://container/run", {"account_name": "somebody", "anon": True}),
    ],
)
def test_no_listing_is_remembered(url: str, given: dict[str, Any]) -> None:
    """Neither within a run nor by what opens the same output again in this process."""
    first = open_output(url, **given).fs
    first.dircache["bucket/run"] = [{"name": "bucket/run/old"}]
    assert "bucket/run" not in first.dircache
    first.dircache = DirCache()
    first.dircache["bucket/run"] = [{"name": "bucket/run/old"}]
    assert "bucket/run" not in open_output(url, **given).fs.dircache


def test_a_full_disk_leaves_nothing(local: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    local.write_atomic("a/file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="No space left on device; make room") as caught:
        local.write_atomic("a/file", b"new")
    assert caught.value.lasting and isinstance(caught.value, StorageError)
    assert pickle.loads(pickle.dumps(caught.value)).lasting
    assert local.read("a/file") == b"old"
    assert [file.path for file in local._walk("")] == ["a/file"]


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_output("out/x/").url == str(tmp_path / "out/x"), "absolute: other processes have other folders"
    assert open_output(f"file://{tmp_path}/y").url == str(tmp_path / "y")
    assert open_output("memory://z").url == "memory:///z"
    store = open_output(tmp_path)
    assert as_store(store) is store
    assert as_store(str(tmp_path)) == store
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("url", ["", "  ", "gopher9://x/y", "simplecache::s3://b/x", "a\0b"])
def test_addresses_that_cannot_be_used(url: str) -> None:
    with pytest.raises(InputError, match="the output cannot be used"):
        open_output(url)


def test_credentials_are_not_shown() -> None:
    with pytest.raises(InputError) as caught:
        open_output("gopher9://name:secret@host/y")
    assert "secret" not in str(caught.value.problems[0].value)


def test_temporaries_are_invisible_and_swept(local: OutputStore) -> None:
    local.write_atomic("images/cat/1.png", b"1")
    left_behind = Path(local.root, "images/cat", files.temporary_name("2.png"))
    left_behind.write_bytes(b"half")
    assert [file.path for file in local.list_files()] == ["images/cat/1.png"]
    assert not local.list_files("images")[0].path.endswith(".tmp")
    assert local.sweep_temporaries(older_than_seconds=60) == 0, "its writer may still be alive"
    os.utime(left_behind, (0, 0))
    assert local.sweep_temporaries(older_than_seconds=60) == 1
    assert local.read("images/cat/1.png") == b"1"
    assert not left_behind.exists()


def test_names_of_any_length(local: OutputStore) -> None:
    name = "é" * 120 + ".png"  # 244 bytes; the temporary name must not be longer than a name may be
    local.write_atomic(name, b"x")
    assert local.read(name) == b"x"


def test_other_file_systems_write_by_move(tmp_path: Path) -> None:
    store = OutputStore(DirFileSystem(str(tmp_path), fs=open_output(tmp_path).fs), "out")
    store.write_atomic("a/b", b"old")
    store.write_atomic("a/b", b"data")
    assert store.read("a/b") == b"data"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "out"]
