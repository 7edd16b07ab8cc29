"""Killed at any point of its writes, a run loses nothing that was written and repeats nothing that was indexed."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow.parquet as pq
import pytest

from consistory_ray.errors import InputError, RunError
from consistory_ray.output.assets import encode_png, picture_size, read_metadata, write_asset
from consistory_ray.output.index import index
from consistory_ray.output.index.index import compact, read_index
from consistory_ray.output.index.parts import CorruptIndexError, list_parts, read_parts, write_part
from consistory_ray.output.index.rows import IndexRow, latest_rows, rows_to_table
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.resume import resume
from consistory_ray.output.run_record import read_run_record
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.output.verify import verify

Killer = Callable[[str], list[str]]


def pictures(store: OutputStore) -> dict[str, str]:
    """SHA-256 of every picture, by path."""
    return {file.path: hashlib.sha256(store.read(file.path)).hexdigest() for file in store.list_files("images")}


def check_rows(store: OutputStore) -> int:
    """Every row's file is there, whole, and the asset's own; returns how many rows there are."""
    found = pictures(store)
    rows = read_index(store).to_pylist()
    for row in rows:
        assert found[row["path"]] == row["sha256"]
    return len(rows)


def test_killed_at_every_step(
    scenario: ModuleType, kill_at_every_step: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariants at each crash point, before recovery: only whole files, and rows only of existing files with their
    checksum. After recovery: each asset once, no whole picture rendered again, all files as in an undisturbed run."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    undisturbed = tmp_path / "undisturbed"
    assert scenario.run(str(undisturbed)) == scenario.ASSETS
    expected = pictures(open_output(undisturbed))
    crashes = kill_at_every_step("run")
    assert len(crashes) > 60, "the scenario no longer passes its crash points"
    for crash in crashes:
        store = open_output(crash)
        record = read_run_record(store)
        assert record is None or record.state in ("running", "complete")
        written = pictures(store)
        assert all(expected[path] == sha256 for path, sha256 in written.items())
        assert check_rows(store) <= len(written)

        assert scenario.run(crash) == scenario.ASSETS - len(written)
        assert check_rows(store) == scenario.ASSETS
        assert pictures(store) == expected
        assert len(list_parts(store)) == 1
        store.sweep_temporaries(older_than_seconds=0)
        assert not list(Path(store.root).rglob("*.tmp"))


def test_a_repair_killed_at_every_step(
    scenario: ModuleType, kill_at_every_step: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each crash point the sound picture keeps its row, every row's file that is there is of its asset, and nothing
    sound is gone. Repaired again, the output is in order, and rendering makes the two pictures that were damaged."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    scenario.run(str(tmp_path / "undisturbed"))
    expected = pictures(open_output(tmp_path / "undisturbed"))
    crashes = kill_at_every_step("repair")
    assert len(crashes) > 20, "the scenario no longer passes its crash points"
    kept = scenario.path_of(2)
    for crash in crashes:
        store = open_output(crash)
        aside = [path for path in list_parts(store) if path == scenario.BROKEN_PART]
        assert aside or store.exists(f"damaged/{scenario.BROKEN_PART}"), "the broken part is somewhere"
        rows = latest_rows(read_parts(store, skip=aside)[0]).to_pylist()
        assert (kept, expected[kept]) in {(row["path"], row["sha256"]) for row in rows}
        assert pictures(store)[kept] == expected[kept]

        repaired = verify(store, repair=True)
        assert repaired.is_sound
        again = verify(store)
        assert (again.rows, dict(again.damage), again.caches) == (1, {}, 0)
        assert scenario.run(crash) == 2
        assert check_rows(store) == scenario.ASSETS
        assert pictures(store) == expected


def test_a_dataset_killed_at_every_step(
    scenario: ModuleType, kill_at_every_step: Killer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each crash point the manifest names whole shards of one dataset, the old or the new one; written again, the
    dataset is the undisturbed one, and nothing else is there."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    scenario.run(str(tmp_path / "undisturbed"))
    scenario.dataset(str(tmp_path / "undisturbed"))
    expected = shards(open_output(tmp_path / "undisturbed"))
    crashes = kill_at_every_step("dataset")
    assert len(crashes) > 15, "the scenario no longer passes its crash points"
    seen = set()
    for crash in crashes:
        store = open_output(crash)
        listed = json.loads(store.read("dataset.json"))
        rows = [
            pq.read_table(io.BytesIO(store.read(f"dataset/{shard['file']}"))).num_rows for shard in listed["shards"]
        ]
        assert rows == [shard["rows"] for shard in listed["shards"]]
        assert sum(rows) == listed["rows"]
        seen.add(sum(rows))
        scenario.dataset(crash)
        assert shards(store) == expected
    assert seen == {scenario.ASSETS - 1, scenario.ASSETS}


def shards(store: OutputStore) -> dict[str, str]:
    """SHA-256 of every file of the dataset, by path."""
    store.sweep_temporaries(older_than_seconds=0)
    return {file.path: hashlib.sha256(store.read(file.path)).hexdigest() for file in store.list_files("dataset")}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def test_killed_around_every_request(
    s3_options: dict[str, Any], scenario: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same on S3, before and after every PUT and DELETE."""
    bucket = open_output("s3://runs", **s3_options).fs
    scenario.run(str(tmp_path / "undisturbed"))
    expected = pictures(open_output(tmp_path / "undisturbed"))
    kills = 0
    for step in range(1000):
        store = OutputStore(bucket, f"runs/crash-{step}")
        monkeypatch.setattr(scenario, "open_output", lambda folder, store=store: store)
        with monkeypatch.context() as patch:
            remaining = step

            def around(call: Any) -> Any:
                def wrapper(*arguments: Any, **options: Any) -> Any:
                    nonlocal remaining
                    for moment in ("before", "after"):
                        if remaining == 0:
                            raise Killed
                        remaining -= 1
                        if moment == "before":
                            result = call(*arguments, **options)
                    return result

                return wrapper

            patch.setattr(bucket, "pipe_file", around(bucket.pipe_file))
            patch.setattr(bucket, "rm_file", around(bucket.rm_file))
            try:
                scenario.run("")
                break
            except Killed:
                kills += 1
        written = pictures(store)
        assert check_rows(store) <= len(written)
        assert scenario.run("") == scenario.ASSETS - len(written)
        assert check_rows(store) == scenario.ASSETS
        assert pictures(store) == expected
    assert kills > 12, "the scenario no longer passes its requests"


def test_killed_while_merging(store: OutputStore, scenario: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed rows, which no picture could bring back, are there at every moment of a merge: before and after the new
    part is written, and whatever subset of the old parts is deleted, since they are deleted side by side."""
    old = [
        write_part(store, rows_to_table([IndexRow.failed(scenario.parameters(number), f"error {number}")]))
        for number in range(3)
    ]
    expected = read_index(store)
    contents = {path: store.read(path) for path in old}
    for subset in subsets(old):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(index, "delete_all", delete_some_and_die(subset))
            compact(store)
        assert set(list_parts(store)).isdisjoint(subset)
        assert read_index(store).equals(expected)
        for path in old:
            store.write_atomic(path, contents[path])
    compact(store)
    assert len(list_parts(store)) == 1
    assert read_index(store).equals(expected)


def test_killed_while_dropping_rows(scenario: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are dropped all at once or not at all, and never does an older row of the same file come back to life:
    neither an asset's own older row nor that of another asset which had the path before."""
    store = open_output(f"memory://{uuid.uuid4().hex}")
    first, second, third = (_render(store, scenario, number) for number in range(3))
    usurper = dataclasses.replace(first, asset_id="e" * 32, created_at=first.created_at + timedelta(seconds=1))
    again = dataclasses.replace(second, sha256="0" * 64, created_at=second.created_at + timedelta(seconds=1))
    for rows in ([first, second], [third], [usurper], [again]):
        write_part(store, rows_to_table(rows))
    contents = {path: store.read(path) for path in list_parts(store)}
    before = read_index(store)
    drop = {usurper.asset_id, again.asset_id}
    kills = 0
    for step in (1, 2):
        for subset in subsets(sorted(contents)):
            with monkeypatch.context() as patch, pytest.raises(Killed):
                patch.setattr(index, "delete_all", delete_some_and_die(subset, step))
                compact(store, drop=drop)
            kills += 1
            assert read_index(store).equals(before)
            compact(store, drop=drop)
            assert read_index(store)["asset_id"].to_pylist() == [third.asset_id]
            for path in list_parts(store):
                store.delete(path)
            for path, data in contents.items():
                store.write_atomic(path, data)
    assert kills == 32


def subsets(paths: Sequence[str]) -> Iterator[set[str]]:
    """Every subset."""
    for size in range(len(paths) + 1):
        yield from map(set, itertools.combinations(paths, size))


def delete_some_and_die(subset: set[str], step: int = 1) -> Callable[..., None]:
    """Stands for ``delete_all``: at its ``step``-th call it deletes those files of the subset and dies."""
    calls = itertools.count(1)

    def delete(store: OutputStore, paths: Sequence[str], lost: Any = str) -> None:
        last = next(calls) == step
        for path in paths:
            if not last or path in subset:
                store.delete(path)
        if last:
            raise Killed

    return delete


def test_resume_indexes_only_whole_pictures_of_the_plan(store: OutputStore, scenario: ModuleType, picture: Any) -> None:
    plan = scenario.plan(range(4))
    for number in (0, 1, 2):
        write_asset(store, scenario.path_of(number), encode_png(picture(number), scenario.parameters(number)))
    whole = store.read(scenario.path_of(1))
    store.write_atomic(scenario.path_of(1), whole[:-20])
    store.write_atomic(scenario.path_of(3), store.read(scenario.path_of(2)))  # another asset's picture
    resumed = resume(store, plan)
    assert resumed.done == {scenario.parameters(number)["asset_id"] for number in (0, 2)}
    assert (resumed.recovered, resumed.dropped) == (2, 0)
    assert check_rows(store) == 2
    assert resume(store, plan).recovered == 0


def test_resume_drops_rows_whose_file_is_gone_or_changed(store: OutputStore, scenario: ModuleType) -> None:
    with IndexWriter(store) as writer:
        for number in range(4):
            writer.add(_render(store, scenario, number))
    store.delete(scenario.path_of(0))
    store.write_atomic(scenario.path_of(1), b"replaced by hand")
    resumed = resume(store, scenario.plan(range(4)))
    assert resumed.done == {scenario.parameters(number)["asset_id"] for number in (2, 3)}
    assert resumed.dropped == 2
    assert check_rows(store) == 2


def test_an_edit_and_its_undoing(store: OutputStore, scenario: ModuleType) -> None:
    """A picture that an edited job replaced is rendered again when the edit is undone, even after a kill in between."""
    first, edited = scenario.parameters(0), {**scenario.parameters(0), "asset_id": "e" * 32, "seed": 77}
    path = scenario.path_of(0)
    with IndexWriter(store) as writer:
        writer.add(_render(store, scenario, 0))
    assert resume(store, {edited["asset_id"]: path}).done == frozenset()
    assert check_rows(store) == 0, "the row is dropped before its file is overwritten"
    assert resume(store, {first["asset_id"]: path}).done == {first["asset_id"]}, "nothing was overwritten yet"
    resume(store, {edited["asset_id"]: path})
    image = scenario.Image.new("RGB", (8, 8), "red")
    write_asset(store, path, encode_png(image, edited))  # killed here: no row
    assert resume(store, {first["asset_id"]: path}).done == frozenset()
    assert resume(store, {edited["asset_id"]: path}).done == {edited["asset_id"]}
    assert check_rows(store) == 1


def test_rows_outside_the_plan_stay(store: OutputStore, scenario: ModuleType) -> None:
    with IndexWriter(store) as writer:
        for number in range(3):
            writer.add(_render(store, scenario, number))
    ids = [scenario.parameters(number)["asset_id"] for number in range(3)]
    resumed = resume(store, {ids[0]: scenario.path_of(0)})
    assert (resumed.done, resumed.dropped, resumed.moved) == ({ids[0]}, 0, 0)
    assert set(read_index(store)["asset_id"].to_pylist()) == set(ids)


def test_failed_attempts_are_counted_on(store: OutputStore, scenario: ModuleType) -> None:
    with IndexWriter(store) as writer:
        writer.add(IndexRow.failed(scenario.parameters(0), "broke", attempt=2))
        writer.add(IndexRow.failed(scenario.parameters(1), "broke", attempt=3))
        writer.add(_render(store, scenario, 1))
    assert resume(store, scenario.plan()).failed == {scenario.parameters(0)["asset_id"]: 2}


def four_in_two_parts(store: OutputStore, scenario: ModuleType) -> list[str]:
    """Four pictures with rows in two parts, whose paths are returned."""
    writer = IndexWriter(store, rows_per_part=2)
    for number in range(4):
        writer.add(_render(store, scenario, number))
    return list_parts(store)


@pytest.mark.parametrize("damage", ["cut", "emptied", "foreign", "one bit"])
def test_a_broken_part_is_set_aside_and_its_pictures_are_found_again(
    store: OutputStore, scenario: ModuleType, damage: str
) -> None:
    broken, sound = four_in_two_parts(store, scenario)
    whole = store.read(broken)
    bit = whole.index(b"PAR1") + 200  # in the first pages, which resuming does not need
    data = {
        "cut": whole[:50],
        "emptied": b"",
        "foreign": b"PAR1 and no more",
        "one bit": whole[:bit] + bytes([whole[bit] ^ 4]) + whole[bit + 1 :],
    }[damage]
    store.write_atomic(broken, data)
    with pytest.raises(CorruptIndexError, match="Rendering again moves them away"):
        read_index(store)
    resumed = resume(store, scenario.plan(range(4)))
    assert (len(resumed.done), resumed.recovered, resumed.dropped) == (4, 2, 0)
    assert len(resumed.set_aside) == 1 and resumed.set_aside[0].startswith(f"{broken} (")
    assert store.read(f"damaged/{broken}") == data
    assert broken not in list_parts(store) and sound in list_parts(store)
    compact(store)
    assert check_rows(store) == 4
    assert resume(store, scenario.plan(range(4))).set_aside == ()


def test_a_part_of_a_newer_version_is_never_moved(store: OutputStore, scenario: ModuleType) -> None:
    broken, sound = four_in_two_parts(store, scenario)
    store.write_atomic(broken, b"broken")
    newer = pq.read_table(io.BytesIO(store.read(sound))).replace_schema_metadata({b"consistory_index_version": b"99"})
    buffer = io.BytesIO()
    pq.write_table(newer, buffer)
    store.write_atomic(sound, buffer.getvalue())
    before = store.list_files()
    with pytest.raises(InputError, match="newer version"):
        resume(store, scenario.plan(range(4)))
    assert store.list_files() == before, "nothing is touched, not even what is broken"


def test_a_part_that_was_only_read_badly_stays(
    local: OutputStore, scenario: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = four_in_two_parts(local, scenario)
    read, torn = OutputStore.read, []

    def tearing(self: OutputStore, path: str) -> bytes:
        data = read(self, path)
        if path == parts[0] and not torn:
            torn.append(path)
            return data[:50]
        return data

    monkeypatch.setattr(OutputStore, "read", tearing)
    resumed = resume(local, scenario.plan(range(4)))
    assert torn and (len(resumed.done), resumed.recovered, resumed.set_aside) == (4, 0, ())
    assert list_parts(local) == parts


@pytest.mark.parametrize("what", ["broken part", "stale row", "picture without a row"])
def test_resume_changes_nothing_once_the_output_is_lost(local: OutputStore, scenario: ModuleType, what: str) -> None:
    part = four_in_two_parts(local, scenario)[0]
    if what == "broken part":
        local.write_atomic(part, b"broken")
    else:
        local.delete(scenario.path_of(0) if what == "stale row" else part)
    before = {file.path: local.read(file.path) for file in local.list_files()}
    with pytest.raises(RunError, match="another run has taken over"):
        resume(local, scenario.plan(range(4)), lost=lambda: "another run has taken over")
    assert {file.path: local.read(file.path) for file in local.list_files()} == before
    resume(local, scenario.plan(range(4)))
    assert check_rows(local) >= 3


def test_recovered_rows_tell_the_anchor_cache(store: OutputStore, scenario: ModuleType, picture: Any) -> None:
    """Those of older pictures, which do not know theirs, tell none."""
    caches: list[Any] = ["c" * 64, None, 17]
    for number, cache in enumerate(caches):
        values = scenario.parameters(number) | ({"cache_sha256": cache} if cache else {})
        write_asset(store, scenario.path_of(number), encode_png(picture(number), values))
    assert resume(store, scenario.plan()).recovered == 3
    found = {row["scene"]: row["cache_sha256"] for row in read_index(store).to_pylist()}
    assert found == {"scene-0": "c" * 64, "scene-1": None, "scene-2": None}


def _render(store: OutputStore, scenario: ModuleType, number: int) -> IndexRow:
    values = scenario.parameters(number)
    image = scenario.Image.new("RGB", (8, 8), (number, number, number))
    data = encode_png(image, values)
    assert read_metadata(data) is not None
    assert picture_size(data) == (8, 8)
    return IndexRow.rendered(values, write_asset(store, scenario.path_of(number), data), image.size)
