"""Parquet shards with the pictures inside: an output as a dataset that loads in one line and travels as a few files.

    datasets.load_dataset("parquet", data_files="out/dataset/*.parquet")  # PIL images in the column ``image``

A shard is named ``train-00000-of-00012-1a2b3c4d.parquet`` after its place and the content of the whole dataset. All
shards are written before ``dataset.json``, which lies beside their folder and lists them, and those of an earlier
dataset are deleted after it: at any moment the manifest names whole shards of one dataset. A shard whose name is there
need not be written again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consistory_ray.errors import AssetError, InputError, Problem, RunInterrupted
from consistory_ray.output.asked import pictures_of
from consistory_ray.output.files import bounded_map
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.rows import SCHEMA, described
from consistory_ray.output.index.takes import picture_ids
from consistory_ray.output.lease.fencing import Lost, delete_all, refuse_if_lost
from consistory_ray.output.storage import MissingFileError, Output, OutputStore, UnfitFileError, as_store

DATASET_FOLDER = "dataset"
MANIFEST = f"{DATASET_FOLDER}.json"
"""Beside the folder: readers of a folder take every file in it for a shard."""
OLD_MANIFEST = f"{DATASET_FOLDER}/manifest.json"
"""Where earlier versions wrote it; the next dataset takes its place."""
FORMAT_VERSION = 1
SHARD_BYTES = 100_000_000
GROUP_ROWS = 256
GROUP_BYTES = 32_000_000
"""A row group ends at 256 rows or 32 MB: a reader that wants one picture fetches that much."""

# what says when and by whom a picture was made is left out: the same pictures make the same shards
_TEXTS = ("asset_id", "kind", "subject", "scene", "prompt", "seed", "anchor_seeds", "width", "height", "sha256")
_ORIGIN = ("path", "model", "model_fingerprint", "settings_hash")
_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
DATASET_SCHEMA: pa.Schema = described(
    pa.schema([pa.field("image", _IMAGE), *(SCHEMA.field(name) for name in (*_TEXTS, *_ORIGIN))])
)
"""The shards' columns: ``image`` holds the PNG file and its path, the others are the index's."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """What was written.

    Attributes:
        paths: of the shards, relative to the output, in order.
        rows: how many pictures they hold.
        bytes: their size.
        written: how many of the shards were not there already.
    """

    paths: tuple[str, ...]
    rows: int
    bytes: int
    written: int


def write_dataset(
    output: Output,
    asset_ids: Collection[str] | None = None,
    *,
    split: str = "train",
    shard_bytes: int = SHARD_BYTES,
    group_rows: int = GROUP_ROWS,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    lost: Lost = str,
) -> Dataset:
    """Write the indexed pictures as Parquet shards, sorted by subject and scene, replacing an earlier dataset.

    At most one shard and a few dozen pictures are in memory at a time. Whatever ends it early leaves the earlier
    dataset whole; shards that no manifest names are taken over or deleted by the next one.

    Args:
        output: the output; nobody else may be writing its dataset.
        asset_ids: which pictures; all of the index without it.
        split: of the dataset, the beginning of the shards' names.
        shard_bytes: pictures' bytes in a shard, at most, unless a single one is larger.
        group_rows: rows in a row group, at most; a group also ends at 32 MB.
        on_progress: is told how many of how many shards are there.
        should_stop: is asked before every shard and every picture whether to stop.
        lost: why the output may no longer be written to; empty while it may.

    Raises:
        RunInterrupted: it was stopped.
        RunError: the output is lost.
        InputError: the index has none of these pictures, or the split's name is not made of letters and digits.
        AssetError: a picture is missing or not the one that was indexed.
        StorageError: the storage failed, or the index cannot be read.
    """
    if not (split.isascii() and split.isalnum()):
        raise InputError("the dataset cannot be written", [Problem("split", ascii(split), "use letters and digits")])
    store = as_store(output)
    table = _chosen(store, asset_ids)
    spans = list(_spans(table["size"].to_pylist(), shard_bytes))
    key = _content_key(table, spans, group_rows)
    names = [f"{DATASET_FOLDER}/{split}-{n:05d}-of-{len(spans):05d}-{key}.parquet" for n in range(len(spans))]
    there = {file.path: file.size for file in store.list_files(DATASET_FOLDER)}
    written = 0
    for number, (name, (start, end)) in enumerate(zip(names, spans, strict=True)):
        _go_on(should_stop)
        if name not in there:
            data = _shard(store, table.slice(start, end - start), group_rows, should_stop)
            refuse_if_lost(lost, "the dataset was not written")
            store.write_atomic(name, data)
            there[name] = len(data)
            written += 1
        if on_progress is not None:
            on_progress(number + 1, len(names))
    refuse_if_lost(lost, "the dataset was not published")
    _publish(store, names, spans, there, split)
    named = set(names)
    old = [OLD_MANIFEST] if OLD_MANIFEST in there else []
    delete_all(store, [*old, *(path for path in there if path not in named and path.endswith(".parquet"))], lost)
    return Dataset(tuple(names), len(table), sum(there[name] for name in names), written)


def _go_on(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise RunInterrupted("stopped while the dataset was written; the one before it, if any, is still whole")


def _chosen(store: OutputStore, asset_ids: Collection[str] | None) -> pa.Table:
    table = pictures_of(read_index(store), store)
    table = table.filter(pc.equal(table["status"], "ok"))
    if asset_ids is not None:
        table = table.filter(pc.is_in(picture_ids(table), value_set=pa.array(list(asset_ids), pa.string())))
    if not len(table):
        raise InputError("there is no picture for a dataset", [Problem("output", store.url, "render something first")])
    return table


def _spans(sizes: list[int], limit: int) -> Iterator[tuple[int, int]]:
    """Row ranges whose sizes add up to at most ``limit``; a row that is larger makes one of its own."""
    start, total = 0, 0
    for row, size in enumerate(sizes):
        if row > start and total + size > limit:
            yield start, row
            start, total = row, 0
        total += size
    if sizes:
        yield start, len(sizes)


def _content_key(table: pa.Table, spans: list[tuple[int, int]], group_rows: int) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, group_rows, spans]).encode())
    for batch in table.select([*_TEXTS, *_ORIGIN]).to_batches(10_000):
        digest.update(json.dumps(batch.to_pydict(), sort_keys=True).encode())
    return digest.hexdigest()[:8]


def _shard(store: OutputStore, rows: pa.Table, group_rows: int, should_stop: Callable[[], bool]) -> bytes:
    buffer = io.BytesIO()
    compression = {name: "zstd" for name in DATASET_SCHEMA.names if name != "image"}
    compression |= {"image.bytes": "none", "image.path": "zstd"}  # a PNG does not get smaller
    texts = [name for name in DATASET_SCHEMA.names if name != "image"]
    with pq.ParquetWriter(buffer, DATASET_SCHEMA, compression=compression, use_dictionary=texts) as writer:
        for start, end in _groups(rows["size"].to_pylist(), group_rows):
            some = rows.slice(start, end - start)
            records = some.select(["path", "size", "sha256"]).to_pylist()
            images = []
            for data, record in zip(bounded_map(lambda one: _picture(store, one), records), records, strict=True):
                _go_on(should_stop)
                images.append({"bytes": data, "path": record["path"]})
            columns = [pa.array(images, _IMAGE), *(some[name].combine_chunks() for name in texts)]
            writer.write_table(pa.Table.from_arrays(columns, schema=DATASET_SCHEMA))
    return buffer.getvalue()


def _groups(sizes: list[int], rows: int) -> Iterator[tuple[int, int]]:
    for start, end in _spans(sizes, GROUP_BYTES):
        yield from ((first, min(first + rows, end)) for first in range(start, end, rows))


def _picture(store: OutputStore, record: dict[str, Any]) -> bytes:
    advice = "run `consistory-ray verify --repair` on the output, then render again"
    try:
        data = store.read(record["path"])
    except MissingFileError as error:
        raise AssetError(f"{store.url}/{record['path']} is missing: {advice}") from error
    except UnfitFileError as error:
        raise AssetError(f"{error}: {advice}") from error
    if hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise AssetError(f"{store.url}/{record['path']} is not the picture that was indexed: {advice}")
    return data


def _publish(
    store: OutputStore, names: list[str], spans: list[tuple[int, int]], there: dict[str, int], split: str
) -> None:
    shards = [
        {"file": name.rsplit("/", 1)[-1], "rows": end - start, "bytes": there[name]}
        for name, (start, end) in zip(names, spans, strict=True)
    ]
    manifest = {"version": FORMAT_VERSION, "split": split, "rows": sum(end - start for start, end in spans)}
    store.write_atomic(MANIFEST, (json.dumps(manifest | {"shards": shards}, indent=1) + "\n").encode())
