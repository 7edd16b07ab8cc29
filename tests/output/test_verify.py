"""Verification: every kind of damage is found, repairing takes away no more than it must, and nothing sound suffers."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from consistory_ray.cli.app import app
from consistory_ray.errors import InputError, OutputBusyError, StorageError
from consistory_ray.output.assets import encode_png
from consistory_ray.output.index.index import compact, read_index
from consistory_ray.output.index.parts import list_parts
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.resume import resume
from consistory_ray.output.run_record import RunRecord, write_run_record
from consistory_ray.output.storage import MissingFileError, OutputStore
from consistory_ray.output.verify import KINDS, verify

COUNT = 9


@pytest.fixture
def rows(store: OutputStore, render: Any, parameters: Any) -> list[IndexRow]:
    """An output with nine pictures, a failed asset and two anchor caches."""
    made = [render(store, number) for number in range(COUNT)]
    with IndexWriter(store) as writer:
        writer.extend(made)
        writer.add(IndexRow.failed(parameters(COUNT), "broke"))
    for name in ("cat", "dog"):
        save_cache(store, f"anchors/{name}/0123456789abcdef.safetensors", name.encode() * 1000)
    return made


def save_cache(store: OutputStore, path: str, data: bytes) -> None:
    store.write_atomic(path, data)
    store.write_atomic(f"{path}.sha256", f"{hashlib.sha256(data).hexdigest()}  {path}\n".encode())


def damage(store: OutputStore, rows: list[IndexRow], parameters: Any) -> Counter[str]:
    """One of each kind that files can have."""
    paths = [str(row.path) for row in rows]
    store.delete(paths[0])
    whole = store.read(paths[1])
    store.write_atomic(paths[1], whole[:-20])
    store.write_atomic(paths[2], whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    store.write_atomic(paths[3], store.read(paths[4]))
    other = encode_png(Image.new("RGB", (32, 24), "white"), parameters(5))
    store.write_atomic(paths[5], other)
    plain = store.read(paths[6])
    store.write_atomic(paths[6], _without_text(plain))
    store.write_atomic("anchors/dog/0123456789abcdef.safetensors", b"dig" * 1000)
    return Counter(missing=1, undecodable=2, foreign=1, changed=1, unmarked=1, cache=1)


def _without_text(png: bytes) -> bytes:
    import io

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        clean = Image.new("RGB", image.size)
        clean.paste(image)
    clean.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_sound_output(store: OutputStore, rows: list[IndexRow]) -> None:
    told: list[tuple[int, int]] = []
    found = verify(store, on_progress=lambda done, total: told.append((done, total)))
    assert found.is_sound and not found.repaired
    assert (found.rows, found.caches, found.orphans, found.unfinished_caches) == (COUNT, 2, 0, 0)
    assert found.bytes == sum(row.size or 0 for row in rows)
    assert told[-1] == (COUNT, COUNT)
    assert not store.list_files("lease"), "checking alone writes nothing"


def test_every_kind_of_damage_is_found_and_nothing_touched(
    store: OutputStore, rows: list[IndexRow], parameters: Any
) -> None:
    expected = damage(store, rows, parameters)
    before = store.list_files()
    found = verify(store)
    assert found.damage == expected
    assert {item.kind for item in found.listed} <= set(KINDS)
    assert not found.is_sound
    assert store.list_files() == before
    assert {item.asset_id for item in found.listed if item.asset_id} == {row.asset_id for row in rows[:4] + rows[5:7]}


def test_repair_and_rendering_again_make_it_sound(
    store: OutputStore, rows: list[IndexRow], parameters: Any, render: Any
) -> None:
    damage(store, rows, parameters)
    found = verify(store, repair=True)
    assert found.repaired and found.is_sound
    assert (found.dropped_rows, found.deleted_files) == (6, 3)
    paths = [str(row.path) for row in rows]
    assert [store.exists(path) for path in paths[:7]] == [False, False, False, True, True, True, True]
    assert not store.exists("anchors/dog/0123456789abcdef.safetensors.sha256")
    again = verify(store)
    assert again.is_sound and again.rows == COUNT - 6 and again.orphans == 3
    resumed = resume(store, {row.asset_id: str(row.path) for row in rows})
    assert resumed.recovered == 1, "a whole picture of the right asset is indexed as it is"
    with IndexWriter(store) as writer:
        writer.extend(render(store, number) for number in range(COUNT) if rows[number].asset_id not in resumed.done)
    assert verify(store).is_sound
    statuses = Counter(read_index(store)["status"].to_pylist())
    assert statuses == {"ok": COUNT, "failed": 1}, "the failed row is still there"


def test_unreadable_index_parts_are_set_aside(store: OutputStore, rows: list[IndexRow], render: Any) -> None:
    with IndexWriter(store) as writer:
        writer.add(render(store, 20))
        writer.close(merge=False)
        small = min(list_parts(store), key=lambda path: len(store.read(path)))
        store.write_atomic(small, store.read(small)[:40])
        found = verify(store)
        assert found.damage == {"index-part": 1} and found.rows == COUNT and found.orphans == 1
        assert verify(store, repair=True).repaired
        assert len(store.read(f"damaged/{small}")) == 40
    assert verify(store).is_sound
    row = render(store, 20)
    assert resume(store, {row.asset_id: str(row.path)}).recovered == 1


def test_an_index_that_is_gone_is_damage(local: OutputStore, render: Any) -> None:
    """Pictures without rows alone would look like a run that was killed early."""
    record = RunRecord("cats", "fake", {}, state="complete", totals={"found": 1, "rendered": 2, "failed": 0})
    write_run_record(local, record)
    local.write_atomic("images/cat/scene-0.png", b"a picture")
    for repair in (False, True):
        found = verify(local, repair=repair)
        assert found.damage == {"index": 1} and not found.is_sound
        assert "3 pictures" in found.listed[0].detail


def test_repair_is_refused_while_a_run_holds_the_output(
    store: OutputStore, rows: list[IndexRow], parameters: Any
) -> None:
    damage(store, rows, parameters)
    with Lease.acquire(store, "a run"):
        assert verify(store).damage.total() == 7
        with pytest.raises(OutputBusyError, match="a run"):
            verify(store, repair=True)
    assert len(read_index(store)) == COUNT + 1


def test_a_storage_that_fails_is_no_damage_to_repair(
    local: OutputStore, render: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with IndexWriter(local) as writer:
        writer.extend([render(local, number) for number in range(3)])
    read = OutputStore.read

    def flaky(self: OutputStore, path: str) -> bytes:
        if path.endswith("scene-1.png"):
            raise StorageError("503 slow down")
        return read(self, path)

    monkeypatch.setattr(OutputStore, "read", flaky)
    found = verify(local, repair=True)
    assert found.damage == {"unreadable": 1} and not found.is_sound and found.dropped_rows == 0
    assert len(read_index(local)) == 3


def test_a_picture_rendered_again_meanwhile_is_no_damage(
    local: OutputStore, render: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with IndexWriter(local) as writer:
        writer.add(render(local, 1))
        read, done = OutputStore.read, []

        def render_meanwhile(self: OutputStore, path: str) -> bytes:
            if path.endswith(".png") and not done:
                done.append(path)
                writer.add(render(local, 1, size=(16, 16)))
                writer.flush()
            return read(self, path)

        monkeypatch.setattr(OutputStore, "read", render_meanwhile)
        writer.flush()
        assert verify(local).is_sound
        assert done


def test_rows_that_point_outside_and_caches_half_written(local: OutputStore, render: Any) -> None:
    row = render(local, 1)
    secret = local.root.rsplit("/", 1)[0] + "/secret"
    with open(secret, "wb") as file:
        file.write(b"x")
    import dataclasses

    with IndexWriter(local) as writer:
        writer.add(dataclasses.replace(row, path="../secret"))
    local.write_atomic("anchors/cat/x.safetensors", b"half")
    local.write_atomic("anchors/dog/x.safetensors", b"whole")
    local.write_atomic("anchors/dog/x.safetensors.sha256", b"")
    found = verify(local, repair=True)
    assert found.damage == {"bad-path": 1, "cache": 1} and found.unfinished_caches == 1
    assert found.repaired and len(read_index(local)) == 0
    with open(secret, "rb") as file:
        assert file.read() == b"x"
    with pytest.raises(MissingFileError):
        local.read("anchors/dog/x.safetensors")


def test_the_command(local: OutputStore, render: Any, parameters: Any) -> None:
    with IndexWriter(local) as writer:
        rows = [render(local, number) for number in range(3)]
        writer.extend(rows)

    def call(*more: str) -> Any:
        return CliRunner().invoke(app, ["verify", local.url, *more])

    sound = call()
    assert sound.exit_code == 0 and "3 pictures" in sound.stdout and "is sound" in sound.stdout
    local.delete(str(rows[0].path))
    bad = call()
    assert bad.exit_code == 1 and "1 missing" in bad.stdout and "is damaged" in bad.stdout
    told = json.loads(call("--json").stdout)
    assert told["damage"] == {"missing": 1} and told["sound"] is False
    assert told["listed"][0]["path"] == rows[0].path
    mended = call("--repair")
    assert mended.exit_code == 0 and "is repaired" in mended.stdout and "render again" in mended.stdout
    with Lease.acquire(local, "a run"):
        busy = call("--repair")
    assert busy.exit_code == 3 and "a run" in busy.stderr
    nothing = CliRunner().invoke(app, ["verify", local.url + "-typo"])
    assert nothing.exit_code == 2
    with pytest.raises(InputError, match="nothing to verify"):
        verify(local.url + "-typo")
    compact(local)
