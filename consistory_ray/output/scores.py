"""Where an output keeps what was measured: ``evaluation/part-HASH.parquet``, written once, named by their content.

As in the index, writers only add parts, and one that is cut off or changed is told and never used. Only who holds the
output's lease writes. ``evaluation/summary.json`` is written last: with it an evaluation is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consistory_ray.guards.outside import Limits, parse_json
from consistory_ray.output.lease.fencing import Lost, delete_all, refuse_if_lost
from consistory_ray.output.storage import MissingFileError, Output, OutputStore, UnfitFileError, as_store
from consistory_ray.quality.scores import KEY, SCHEMA, SCORES_VERSION, VERSION_KEY, newest_scores

EVALUATION_FOLDER = "evaluation"
EVALUATION_PAGE = f"{EVALUATION_FOLDER}/index.html"
SUMMARY = f"{EVALUATION_FOLDER}/summary.json"
_PART = f"{EVALUATION_FOLDER}/part-"
_MAX_BYTES = 512 << 20
_MAX_NAME = 400


def list_score_parts(store: OutputStore) -> list[str]:
    """Paths of the parts."""
    paths = (file.path for file in store.list_files(EVALUATION_FOLDER))
    return [path for path in paths if path.startswith(_PART) and path.endswith(".parquet")]


def read_scores(output: Output) -> tuple[pa.Table, dict[str, str]]:
    """The scores, of each asset, take, metric and version the newest, and why parts cannot be used, by their paths.

    Raises:
        StorageError: the storage failed.
    """
    store = as_store(output)
    tables, broken = [SCHEMA.empty_table()], {}
    for path in list_score_parts(store):
        try:
            tables.append(_decoded(path, store.read(path)))
        except MissingFileError:
            continue  # merged into another one since it was listed, which the next reading finds
        except (UnfitFileError, ValueError, pa.ArrowException, OSError, KeyError) as error:
            broken[path] = str(error).splitlines()[0] if str(error) else type(error).__name__
    return newest_scores(pa.concat_tables(tables)), broken


def write_scores(store: OutputStore, table: pa.Table, lost: Lost = str) -> str:
    """Add a part; returns its path.

    Raises:
        RunError: the output is lost.
        StorageError: the storage failed.
    """
    buffer = io.BytesIO()
    pq.write_table(table.cast(SCHEMA), buffer, compression="zstd")
    data = buffer.getvalue()
    path = _name(data)
    refuse_if_lost(lost, f"{len(table)} scores were not written")
    store.write_atomic(path, data)
    return path


def merge_scores(store: OutputStore, lost: Lost = str) -> str | None:
    """Make one part of all, and delete the others, those that cannot be used too; returns its path.

    The new part is written first: a kill in between leaves rows twice, which readers do not notice.
    """
    table, broken = read_scores(store)
    before = list_score_parts(store)
    if not len(table):
        delete_all(store, broken, lost)
        return None
    merged = write_scores(store, table, lost)
    delete_all(store, [path for path in before if path != merged], lost)
    return merged


def write_summary(store: OutputStore, summary: Mapping[str, Any], lost: Lost = str) -> None:
    """Say that an evaluation is complete, and what came of it."""
    refuse_if_lost(lost, "the summary was not written")
    store.write_atomic(SUMMARY, json.dumps(summary, indent=2, sort_keys=True).encode())


def read_summary(output: Output) -> dict[str, Any] | None:
    """What an evaluation has said at its end; None where there was none, or it cannot be read."""
    try:
        found = parse_json(as_store(output).read(SUMMARY), Limits(depth=16))
    except (MissingFileError, UnfitFileError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def scores_of(table: pa.Table, rows: pa.Table, metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """The values of some metrics by asset id, of pictures that are still those that were looked at.

    Args:
        table: of :func:`read_scores`.
        rows: of the index, with ``asset_id`` and ``sha256``.
        metrics: names; of several versions of one the newest counts.

    Returns:
        asset id -> metric -> value.
    """
    wanted = table.filter(pc.is_in(table["metric"], value_set=pa.array(list(metrics), pa.string())))
    wanted = wanted.take(pc.sort_indices(wanted, sort_keys=[("scored_at", "ascending")]))
    current = dict(zip(rows["asset_id"].to_pylist(), rows["sha256"].to_pylist(), strict=True))
    found: dict[str, dict[str, float]] = {}
    for row in wanted.select(["asset_id", "sha256", "metric", "value"]).to_pylist():
        if row["value"] is not None and current.get(row["asset_id"]) == row["sha256"]:
            found.setdefault(row["asset_id"], {})[row["metric"]] = row["value"]
    return found


def _name(data: bytes) -> str:
    return f"{_PART}{hashlib.sha256(data).hexdigest()[:32]}.parquet"


def _decoded(path: str, data: bytes) -> pa.Table:
    """A part's rows.

    Raises:
        ValueError, ArrowException: it is no such part, or holds what nobody has written.
    """
    if _name(data) != path:
        raise ValueError("its content is not what its name says")
    file = pq.ParquetFile(pa.BufferReader(data))
    version = int((file.schema_arrow.metadata or {}).get(VERSION_KEY, b"0"))
    if not 1 <= version <= SCORES_VERSION:
        raise ValueError(f"it has version {version}, this package reads 1 to {SCORES_VERSION}")
    groups = range(file.metadata.num_row_groups)
    if sum(file.metadata.row_group(number).total_byte_size for number in groups) > _MAX_BYTES:
        raise ValueError("it is too large")
    table = file.read(columns=SCHEMA.names).cast(SCHEMA)
    for name in KEY:
        column = table[name]
        if pa.types.is_string(column.type) and (pc.max(pc.binary_length(column)).as_py() or 0) > _MAX_NAME:
            raise ValueError(f"{name} is too long")
    return table
