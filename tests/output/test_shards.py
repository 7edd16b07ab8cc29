"""The dataset: loads as pictures, is the same for the same output, and is replaced without a gap."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from consistory_ray.cli.app import app
from consistory_ray.errors import AssetError, InputError, RunError, RunInterrupted
from consistory_ray.output import shards
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.run_record import RunRecord, write_run_record
from consistory_ray.output.shards import DATASET_FOLDER, MANIFEST, OLD_MANIFEST, write_dataset
from consistory_ray.output.storage import OutputStore


def fill(store: OutputStore, render: Any, parameters: Any, numbers: range = range(7)) -> list[IndexRow]:
    rows = [render(store, number, subject="cat" if number % 2 else "ant") for number in numbers]
    with IndexWriter(store) as writer:
        writer.extend(rows)
        writer.add(IndexRow.failed(parameters(99), "broke"))
    return rows


def files(store: OutputStore) -> list[str]:
    return [file.path for file in store.list_files(DATASET_FOLDER)]


def test_shards_hold_pictures_and_what_is_known_of_them(store: OutputStore, render: Any, parameters: Any) -> None:
    rows = fill(store, render, parameters)
    size = rows[0].size or 0
    made = write_dataset(store, shard_bytes=3 * size + 9, group_rows=2)
    assert made.rows == 7 and len(made.paths) >= 3 and made.written == len(made.paths)
    tables = [pq.read_table(io.BytesIO(store.read(path))) for path in made.paths]
    records = [record for table in tables for record in table.to_pylist()]
    order = [(record["subject"], record["scene"]) for record in records]
    assert order == sorted(order) and len(set(order)) == 7
    for record in records:
        assert record["image"]["bytes"] == store.read(record["image"]["path"])
        assert Image.open(io.BytesIO(record["image"]["bytes"])).size == (record["width"], record["height"])
    metadata = pq.ParquetFile(io.BytesIO(store.read(made.paths[0]))).metadata
    assert metadata.row_group(0).num_rows == 2
    manifest = json.loads(store.read(MANIFEST))
    assert [f"{DATASET_FOLDER}/{shard['file']}" for shard in manifest["shards"]] == list(made.paths)
    assert manifest["rows"] == 7 and manifest["shards"][0]["bytes"] == len(store.read(made.paths[0]))
    assert sorted(files(store)) == sorted(made.paths)


def test_the_same_pictures_make_the_same_shards_once(local: OutputStore, render: Any, parameters: Any) -> None:
    fill(local, render, parameters)
    first = write_dataset(local, shard_bytes=500)
    before = {path: local.read(path) for path in files(local)}
    local.delete(first.paths[1])
    assert write_dataset(local, shard_bytes=500).written == 1
    assert {path: local.read(path) for path in files(local)} == before


def test_a_new_dataset_replaces_the_old_one_after_it_is_whole(
    local: OutputStore, render: Any, parameters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(local, render, parameters)
    old = write_dataset(local)
    fill(local, render, parameters, range(7, 12))

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_publish", killed)
        with pytest.raises(KeyboardInterrupt):
            write_dataset(local)
    named = [shard["file"] for shard in json.loads(local.read(MANIFEST))["shards"]]
    assert named == [path.rsplit("/", 1)[1] for path in old.paths] and local.exists(old.paths[0])
    new = write_dataset(local)
    assert new.rows == 12 and new.written == 0
    assert sorted(files(local)) == sorted(new.paths)


def whole_dataset(store: OutputStore, old: shards.Dataset) -> bool:
    """Whether the manifest names the shards of an earlier dataset, and they are there."""
    named = [f"{DATASET_FOLDER}/{shard['file']}" for shard in json.loads(store.read(MANIFEST))["shards"]]
    return named == list(old.paths) and all(store.exists(path) for path in named)


@pytest.mark.parametrize("asked", [1, 2, 9, 13])
def test_stopped_while_writing(local: OutputStore, render: Any, parameters: Any, asked: int) -> None:
    """Between shards and between pictures; the earlier dataset stays, and the next one leaves nothing else behind."""
    fill(local, render, parameters)
    old = write_dataset(local, shard_bytes=900)
    fill(local, render, parameters, range(7, 12))
    asking = iter(range(1, 1000))
    with pytest.raises(RunInterrupted, match="still whole"):
        write_dataset(local, shard_bytes=900, should_stop=lambda: next(asking) >= asked)
    assert next(asking) == asked + 1, "it stops when it is told to, not later"
    assert whole_dataset(local, old)
    new = write_dataset(local, [row["asset_id"] for row in read_index(local).to_pylist()[:3]], shard_bytes=900)
    assert sorted(files(local)) == sorted(new.paths)


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_nothing_is_written_once_the_output_is_lost(
    local: OutputStore, render: Any, parameters: Any, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    largest = max(row.size or 0 for row in fill(local, render, parameters))
    old = write_dataset(local)
    done: list[str] = []
    write = OutputStore.write_atomic

    def counting(self: OutputStore, path: str, data: bytes) -> None:
        write(self, path, data)
        done.append(path)

    monkeypatch.setattr(OutputStore, "write_atomic", counting)
    spans = 2  # of seven pictures, so that there are two shards
    with pytest.raises(RunError, match="another run"):
        write_dataset(
            local,
            shard_bytes=4 * largest,
            lost=lambda: "another run has taken over" if len(done) >= writes else "",
        )
    assert len(done) == writes
    assert local.exists(old.paths[0]), "nothing was deleted either"
    assert whole_dataset(local, old) == (writes <= spans)


def test_some_assets_and_none(local: OutputStore, render: Any, parameters: Any) -> None:
    with pytest.raises(InputError, match="no picture"):
        write_dataset(local)
    rows = fill(local, render, parameters)
    assert write_dataset(local, [rows[0].asset_id, rows[3].asset_id, "unknown"]).rows == 2
    with pytest.raises(InputError, match="split"):
        write_dataset(local, split="../train")


def test_a_damaged_picture_is_not_exported(local: OutputStore, render: Any, parameters: Any) -> None:
    rows = fill(local, render, parameters)
    local.write_atomic(str(rows[2].path), b"damaged")
    with pytest.raises(AssetError, match=r"scene-2\.png is not the picture .*verify --repair"):
        write_dataset(local)
    local.delete(str(rows[2].path))
    with pytest.raises(AssetError, match=r"scene-2\.png is missing"):
        write_dataset(local)
    assert not local.exists(MANIFEST)


def test_the_folder_holds_nothing_but_shards_and_an_older_manifest_leaves_it(
    local: OutputStore, render: Any, parameters: Any
) -> None:
    fill(local, render, parameters)
    local.write_atomic(OLD_MANIFEST, b"{}")
    made = write_dataset(local, shard_bytes=500)
    assert sorted(files(local)) == sorted(made.paths) and MANIFEST == "dataset.json"
    assert ds.dataset(f"{local.url}/{DATASET_FOLDER}").count_rows() == 7
    assert pd.read_parquet(f"{local.url}/{DATASET_FOLDER}").shape[0] == 7
    assert duckdb.sql(f"select count(*) from read_parquet('{local.url}/{DATASET_FOLDER}/*')").fetchall() == [(7,)]


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_datasets_gives_pictures(
    local: OutputStore, render: Any, parameters: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    rows = fill(local, render, parameters)
    write_dataset(local, shard_bytes=2000)
    pattern = f"{local.root}/{DATASET_FOLDER}/*.parquet"
    loaded = datasets.load_dataset("parquet", data_files=pattern, cache_dir=str(tmp_path / "cache"))["train"]
    assert len(loaded) == 7 and isinstance(loaded.features["image"], datasets.Image)
    by_id = {row.asset_id: row for row in rows}
    for item in loaded:
        row = by_id[item["asset_id"]]
        assert item["image"].size == (row.width, row.height)
        assert (item["prompt"], item["seed"], item["sha256"]) == (row.prompt, row.seed, row.sha256)
        assert item["anchor_seeds"] == list(row.anchor_seeds)
        with Image.open(f"{local.root}/{row.path}") as original:
            assert item["image"].tobytes() == original.tobytes()
    streamed = datasets.load_dataset("parquet", data_files=pattern, split="train", streaming=True)
    assert next(iter(streamed))["image"].size == (32, 24)
    folder = datasets.load_dataset(f"{local.root}/{DATASET_FOLDER}", cache_dir=str(tmp_path / "cache"))
    assert len(folder["train"]) == 7, "the folder by itself is a dataset, too"


def test_the_command(local: OutputStore, render: Any, parameters: Any) -> None:
    assert CliRunner().invoke(app, ["dataset", local.url]).exit_code == 2
    write_run_record(local, RunRecord("x", "m", {}))
    fill(local, render, parameters)
    result = CliRunner().invoke(app, ["dataset", local.url, "--split", "bestiary"])
    assert result.exit_code == 0 and "7 pictures in 1 shards" in result.stdout
    assert json.loads(local.read(MANIFEST))["split"] == "bestiary"
    told = json.loads(CliRunner().invoke(app, ["dataset", local.url, "--split", "bestiary", "--json"]).stdout)
    assert told["rows"] == 7 and told["written"] == 0
