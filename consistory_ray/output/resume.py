"""What an output already holds of a plan: the index compared with the files, before anything is rendered.

Three things may be out of step after a kill, an edit of the job, or a careless ``rm``, and each is set right here:
pictures that no row speaks of yet are indexed; rows whose file is gone or of another size are dropped; rows of files
that this plan is about to overwrite with another asset are dropped *before* that happens, so that no row ever speaks of
a file that holds something else.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.output.assets import WrittenAsset, picture_size, read_metadata
from consistory_ray.output.index import Output, compact, read_parts, write_part
from consistory_ray.output.rows import IndexRow, latest_rows, rows_to_table
from consistory_ray.output.storage import MissingFileError, OutputStore, as_store

PICTURE_FOLDERS = ("anchors", "images")
_COLUMNS = ("asset_id", "subject", "kind", "scene", "path", "size", "status", "attempt", "created_at")
_THREADS = 16
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """What is there.

    Attributes:
        done: ids of the plan's assets that need no rendering.
        failed: the last failed attempt number of those that failed before and are not done.
        recovered: how many pictures were found without a row and indexed.
        dropped: how many rows were dropped because their file is gone, changed, or about to be replaced.
    """

    done: frozenset[str]
    failed: Mapping[str, int]
    recovered: int
    dropped: int


def resume(output: Output, plan_paths: Mapping[str, str]) -> Resumed:
    """Bring the index into step with the files, for a plan that is about to be rendered here.

    Args:
        output: the output; the caller is its only writer.
        plan_paths: for each asset id of the plan its path below the output.

    Raises:
        CorruptIndexError, InputError, StorageError: see :func:`consistory_ray.output.index.read_parts`.
    """
    store = as_store(output)
    table = latest_rows(read_parts(store, _COLUMNS)[0])
    sizes = {file.path: file.size for folder in PICTURE_FOLDERS for file in store.list_files(folder)}
    planned_at = {path: asset_id for asset_id, path in plan_paths.items()}
    stale, done = set(), set()
    ok = table.filter(pc.equal(table["status"], "ok"))
    columns = (ok[name].to_pylist() for name in ("asset_id", "path", "size"))
    for asset_id, path, size in zip(*columns, strict=True):
        path_taken = planned_at.get(path, asset_id) != asset_id
        moved = plan_paths.get(asset_id, path) != path
        if sizes.get(path) != size or path_taken or moved:
            stale.add(asset_id)
        elif asset_id in plan_paths:
            done.add(asset_id)
    if stale:
        compact(store, drop=stale)
    missing = {asset_id: path for asset_id, path in plan_paths.items() if asset_id not in done and path in sizes}
    recovered = scan_unindexed(store, missing)
    if recovered:
        write_part(store, rows_to_table(recovered))
        done.update(row.asset_id for row in recovered)
    return Resumed(frozenset(done), _failed_attempts(table, plan_paths, done), len(recovered), len(stale))


def scan_unindexed(store: OutputStore, plan_paths: Mapping[str, str]) -> list[IndexRow]:
    """Rows for those of these assets whose pictures are there, recognised by the id inside them and wholly decodable.

    Args:
        store: the output.
        plan_paths: for each asset id its path; the caller leaves out those that are indexed.

    Returns:
        Rows in the order of ``plan_paths``. A file that is missing, broken, or another asset's gives no row.
    """

    def scan(item: tuple[str, str]) -> IndexRow | None:
        return _recognise(store, *item)

    with ThreadPoolExecutor(_THREADS) as pool:
        return [row for row in pool.map(scan, plan_paths.items()) if row is not None]


def _recognise(store: OutputStore, asset_id: str, path: str) -> IndexRow | None:
    try:
        data = store.read(path)
    except MissingFileError:
        return None
    parameters = read_metadata(data)
    if parameters is None or parameters.get("asset_id") != asset_id:
        return None
    size = picture_size(data)
    if size is None:
        _log.warning("%s/%s is damaged and will be rendered again", store.url, path)
        return None
    try:
        return IndexRow.rendered(parameters, WrittenAsset(path, len(data), hashlib.sha256(data).hexdigest()), size)
    except (KeyError, TypeError, ValueError) as error:
        _log.warning("%s/%s lacks parameters (%s) and will be rendered again", store.url, path, error)
        return None


def _failed_attempts(table: pa.Table, plan_paths: Mapping[str, str], done: Iterable[str]) -> dict[str, int]:
    failed = table.filter(pc.equal(table["status"], "failed"))
    columns: Any = (failed["asset_id"].to_pylist(), failed["attempt"].to_pylist())
    finished = set(done)
    return {key: attempt for key, attempt in zip(*columns, strict=True) if key in plan_paths and key not in finished}
