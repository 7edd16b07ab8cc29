"""What an output already holds of a plan: the index compared with the files, before anything is rendered.

Several things may be out of step after a kill, an edit of the job, or a careless ``rm``, and each is set right here:
pictures that no row speaks of yet are indexed; rows whose file is gone or of another size are dropped; rows of files
in whose place this plan wants another asset are dropped *before* that one is rendered, so that no row ever speaks of a
file that holds something else; pictures that have another name by now are moved.

A picture of another asset that lies where the plan wants one (an edited prompt is another asset in the same place) is
never overwritten. Before the new one is written the old one is copied to

    replaced/images/SUBJECT/SCENE.ASSET-ID.png

Locally the copy is a hard link, which costs nothing until the new picture is written. Nothing refers to the folder;
whoever needs the space deletes it.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.output.assets import WrittenAsset, picture_size, read_metadata
from consistory_ray.output.files import StoredFile, bounded_map
from consistory_ray.output.index.index import compact, set_aside
from consistory_ray.output.index.parts import CorruptIndexError, read_parts, write_part
from consistory_ray.output.index.rows import IndexRow, is_not_kept, latest_rows, rows_to_table
from consistory_ray.output.lease.fencing import Lost, refuse_if_lost
from consistory_ray.output.moving import Move, move_pictures
from consistory_ray.output.storage import (
    PICTURE_FOLDERS,
    MissingFileError,
    Output,
    OutputStore,
    UnfitFileError,
    as_store,
)

REPLACED = "replaced"
"""The folder that replaced pictures are kept in."""
_COLUMNS = ("asset_id", "subject", "kind", "scene", "path", "size", "status", "error", "attempt", "created_at")
_BATCH_ROWS = 10_000
_ROWS_PER_PART = 10_000
_ASSET_ID = re.compile(r"[0-9a-f]{32}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumed:
    """What is there.

    Attributes:
        done: ids of the plan's assets that need no rendering.
        failed: the last failed attempt number of those that failed or were rejected before and are not done.
        recovered: how many pictures were found without a row and indexed.
        dropped: how many rows were dropped because their file is gone, changed, or about to be replaced.
        set_aside: index parts that cannot be read and were moved to the folder ``damaged``, each with the reason.
        moved: how many pictures were moved because their subject or scene has another name now.
        rejected: of those that were rejected, why.
        replaced: how many pictures were kept in the folder ``replaced``, where another asset takes their place.
    """

    done: frozenset[str]
    failed: Mapping[str, int]
    recovered: int
    dropped: int
    set_aside: tuple[str, ...] = ()
    moved: int = 0
    replaced: int = 0
    rejected: Mapping[str, str] = field(default_factory=dict)


def resume(output: Output, plan_paths: Mapping[str, str], *, lost: Lost = str) -> Resumed:
    """Bring the index into step with the files, for a plan that is about to be rendered here.

    Parts of the index that cannot be read are moved away; the plan's pictures that they spoke of are found again.
    Pictures of the plan that lie under another name are moved, see :mod:`consistory_ray.output.moving`; what lies where
    the plan wants something else is kept.

    Files are compared by name and size, since a listing gives both at once; ``verify`` reads them. A million rows take
    about 0.7 GB beside the plan.

    Args:
        output: the output; the caller is its only writer.
        plan_paths: for each asset id of the plan its path below the output.
        lost: why the output may no longer be written to; empty while it may.

    Raises:
        InputError: a part of the index was written by a newer version; nothing was changed.
        RunError: the output is lost.
        StorageError: the storage failed.
    """
    store = as_store(output)
    planned_at = {path: asset_id for asset_id, path in plan_paths.items()}
    ok, failed, rejected, damaged = _rows(store, lost)
    claims = _claims(ok, plan_paths, planned_at)
    del ok  # memory: at a million rows every copy counts
    done: set[str] = set()
    unindexed: dict[str, str] = {}
    for folder in PICTURE_FOLDERS:
        for file in store.iter_files(folder):
            is_sound = claims.settle(file)
            asset_id = planned_at.get(file.path)
            if asset_id is None:
                continue
            if is_sound:
                done.add(asset_id)
            else:
                unindexed[asset_id] = file.path
    stale = claims.left()
    if stale:
        compact(store, drop=stale, lost=lost)
    in_the_way = {asset_id: unindexed[asset_id] for asset_id in claims.found.values() if asset_id in unindexed}
    replaced = _Replaced(store, lost)
    for _ in scan_unindexed(store, in_the_way, replaced):
        pass
    moved = _move(store, claims, plan_paths, lost)
    done |= moved
    for asset_id in moved:
        unindexed.pop(asset_id, None)
    recovered = 0
    for rows in _chunks(scan_unindexed(store, unindexed, replaced)):
        refuse_if_lost(lost, f"{len(rows)} pictures that were found were not indexed")
        write_part(store, rows_to_table(rows))
        done.update(row.asset_id for row in rows)
        recovered += len(rows)
    last = {key: attempt for key, attempt in failed.items() if key in plan_paths and key not in done}
    dropped = len(stale) + len(claims.found) - len(moved)
    why = {key: reason for key, reason in rejected.items() if key in last}
    return Resumed(frozenset(done), last, recovered, dropped, damaged, len(moved), len(replaced.paths), why)


def _move(store: OutputStore, claims: _Claims, plan_paths: Mapping[str, str], lost: Lost) -> set[str]:
    if not claims.found:
        return set()
    moves = [Move(asset_id, path, plan_paths[asset_id]) for path, asset_id in claims.found.items()]
    return move_pictures(store, moves, itertools.chain(plan_paths.values(), claims.settled), lost)


@dataclass(frozen=True)
class _Claims:
    """What ok rows say is there, until a file bears it out.

    Attributes:
        planned: size by path, of rows whose asset the plan wants in that very place.
        others: asset id and size by path, of rows of other assets in places that the plan does not want.
        moving: asset id and size by path, of rows whose asset the plan wants in another place.
        refuted: asset ids of rows that cannot stay whatever the files are like.
        found: asset id by path, of those to be moved that a file bears out.
        settled: paths of ``others`` that a file bears out, where there is something to be moved.
    """

    planned: dict[str, int]
    others: dict[str, tuple[str, int]]
    moving: dict[str, tuple[str, int]]
    refuted: set[str]
    planned_at: Mapping[str, str]
    found: dict[str, str] = field(default_factory=dict)
    settled: list[str] = field(default_factory=list)

    def settle(self, file: StoredFile) -> bool:
        """Strike out the claim that this file bears out; whether it was a planned asset's."""
        if self.planned.get(file.path) == file.size:
            del self.planned[file.path]
            return True
        if self.others.get(file.path, ("", -1))[1] == file.size:
            del self.others[file.path]
            if self.moving or self.found:
                self.settled.append(file.path)
        if self.moving.get(file.path, ("", -1))[1] == file.size:
            self.found[file.path], _ = self.moving.pop(file.path)
        return False

    def left(self) -> set[str]:
        """Asset ids of the rows that no file bears out."""
        others = {asset_id for asset_id, _ in itertools.chain(self.others.values(), self.moving.values())}
        return self.refuted | others | {self.planned_at[path] for path in self.planned}


def _claims(ok: pa.Table, plan_paths: Mapping[str, str], planned_at: Mapping[str, str]) -> _Claims:
    claims = _Claims({}, {}, {}, set(), planned_at)
    for batch in ok.select(["asset_id", "path", "size"]).to_batches(_BATCH_ROWS):
        for asset_id, path, size in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            wanted = plan_paths.get(asset_id)
            if wanted is not None and wanted == path:
                claims.planned[wanted] = size  # the plan's own string: no second million of them
            elif wanted is None and path not in planned_at:
                claims.others[path] = (asset_id, size)
            elif wanted is not None:
                claims.moving[path] = (asset_id, size)
            else:  # another asset takes its place
                claims.refuted.add(asset_id)
    return claims


def _rows(store: OutputStore, lost: Lost) -> tuple[pa.Table, dict[str, int], dict[str, str], tuple[str, ...]]:
    """The ok rows, the attempts of the others, why pictures were rejected, what had to be moved away to read them."""
    moved: dict[str, str] = {}
    try:
        table, _ = read_parts(store, _COLUMNS)
    except CorruptIndexError as error:
        moved = set_aside(store, error.parts, lost)
        table, _ = read_parts(store, _COLUMNS)
    table = latest_rows(table)
    failed = table.filter(is_not_kept(table))
    attempts = dict(zip(failed["asset_id"].to_pylist(), failed["attempt"].to_pylist(), strict=True))
    rejected = failed.filter(pc.equal(failed["status"], "rejected"))
    reasons = dict(zip(rejected["asset_id"].to_pylist(), rejected["error"].to_pylist(), strict=True))
    told = tuple(f"{path} ({reason})" for path, reason in moved.items())
    ok = table.filter(pc.equal(table["status"], "ok")).select(["asset_id", "path", "size"])
    return ok, attempts, reasons, told


def _chunks(rows: Iterator[IndexRow]) -> Iterator[list[IndexRow]]:
    while chunk := list(itertools.islice(rows, _ROWS_PER_PART)):
        yield chunk


def replaced_path(path: str, asset_id: str) -> str:
    """Where an asset's picture is kept that lay at ``path``."""
    return f"{REPLACED}/{path.removesuffix('.png')}.{asset_id}.png"


class _Replaced:
    """Keeps files that are about to be overwritten with another asset's picture.

    Attributes:
        paths: of the pictures that were kept.
    """

    def __init__(self, store: OutputStore, lost: Lost) -> None:
        self._store = store
        self._lost = lost
        self.paths: set[str] = set()

    def __call__(self, path: str, data: bytes, parameters: Mapping[str, Any] | None) -> None:
        asset_id = str((parameters or {}).get("asset_id"))
        if not _ASSET_ID.fullmatch(asset_id):
            asset_id = f"unknown-{hashlib.sha256(data).hexdigest()[:24]}"
        refuse_if_lost(self._lost, f"{self._store.url}/{path} was not kept")
        self._store.copy(path, replaced_path(path, asset_id))
        self.paths.add(path)


def scan_unindexed(
    store: OutputStore,
    plan_paths: Mapping[str, str],
    on_other: Callable[[str, bytes, Mapping[str, Any] | None], None] | None = None,
) -> Iterator[IndexRow]:
    """Rows for those of these assets whose pictures are there, recognised by the id inside them and wholly decodable.

    Args:
        store: the output.
        plan_paths: for each asset id its path; the caller leaves out those that are indexed.
        on_other: is given path, content and parameters of each file that is another asset's, or none of ours.

    Yields:
        Rows in the order of ``plan_paths``. A file that is missing, broken, or another asset's gives no row.
    """
    found = bounded_map(lambda item: _recognise(store, *item, on_other), plan_paths.items())
    return (row for row in found if row is not None)


def _recognise(
    store: OutputStore,
    asset_id: str,
    path: str,
    on_other: Callable[[str, bytes, Mapping[str, Any] | None], None] | None,
) -> IndexRow | None:
    try:
        data = store.read(path)
    except MissingFileError:
        return None
    except UnfitFileError as error:
        _log.warning("%s; it will be rendered again", error)
        return None
    parameters = read_metadata(data)
    if parameters is None or parameters.get("asset_id") != asset_id:
        if on_other is not None:
            on_other(path, data, parameters)
        return None
    cache = parameters.get("cache_sha256")
    size = picture_size(data)
    if size is None:
        _log.warning("%s/%s is damaged and will be rendered again", store.url, path)
        return None
    written = WrittenAsset(path, len(data), hashlib.sha256(data).hexdigest())
    try:
        return IndexRow.rendered(parameters, written, size, cache_sha256=cache if isinstance(cache, str) else None)
    except (KeyError, TypeError, ValueError) as error:
        _log.warning("%s/%s lacks parameters (%s) and will be rendered again", store.url, path, error)
        return None
