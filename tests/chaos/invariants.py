"""What has to be true of an output at every moment, whatever died."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from consistory_ray.engine.workers.anchor_store import checksum_path, stored_digest
from consistory_ray.output.assets import MASK_ENDING, read_metadata
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.parts import list_parts, read_parts
from consistory_ray.output.lease.holders import current_lease
from consistory_ray.output.storage import MissingFileError, OutputStore
from consistory_ray.plan.plan import Asset, Plan

Digests = Mapping[str, str]
"""What every picture of an undisturbed run is, by path, see :func:`content`."""

Marks = dict[str, tuple[int, int]]
"""For each picture file its inode and when it was written, in nanoseconds: another one in its place differs."""

Alike = Callable[[str], bool]
"""Whether the picture at a path, which is another one, is the undisturbed run's within float tolerance."""

MOST = 1
"""Levels, of 255, that a colour value may be off: it was rounded the other way."""
MOST_VALUES = 0.001
"""Share of a picture's colour values that may be off."""


def never(path: str) -> bool:
    """For renderers whose pictures are the same bit for bit."""
    return False


def alike(store: OutputStore, undisturbed: OutputStore) -> Alike:
    """For real models: a batch of another size adds up floats in another order, which turns a rounding now and then."""

    def compare(path: str) -> bool:
        found, expected = (
            np.asarray(Image.open(io.BytesIO(where.read(path)))).astype(int) for where in (store, undisturbed)
        )
        off = np.abs(found - expected)
        return bool(off.max() <= MOST and (off > 0).mean() <= MOST_VALUES)

    return compare


def check_rows(store: OutputStore, plan: Plan, undisturbed: Digests, is_alike: Alike = never) -> list[dict[str, Any]]:
    """At any moment, also while a coordinator is dead or at work.

    * The index can be read, and has one row at most for each asset.
    * No row speaks of an asset that was not planned.
    * Every row, also those that others have replaced, says ok and its file is there, with the row's SHA-256, and is
      the undisturbed run's picture (where ``is_alike`` is given, such a picture will do); or it says failed and why.
    * Every anchor cache that has a checksum is what the checksum says.

    Returns:
        The index's rows.
    """
    planned = {asset.asset_id: asset for asset in plan.assets()}
    rows: list[dict[str, Any]] = read_index(store).to_pylist()
    twice = [asset_id for asset_id, times in Counter(row["asset_id"] for row in rows).items() if times > 1]
    assert not twice, f"more than one row for {twice}"
    written: list[dict[str, Any]] = read_parts(store)[0].to_pylist()
    for row in {(row["asset_id"], row["status"], row["sha256"], row["path"]): row for row in written}.values():
        assert row["asset_id"] in planned, f"a row without a plan: {row}"
        if row["status"] == "failed":
            assert row["error"] and row["path"] is None, row
            continue
        assert (row["status"], row["path"]) == ("ok", planned[row["asset_id"]].path), row
        data = there(store, row["path"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"], f"{row['path']} is not what its row says"
        same = content(data) == undisturbed[row["path"]] or is_alike(row["path"])
        assert same, f"{row['path']} differs from the undisturbed run's"
    check_caches(store, plan)
    return rows


def check_caches(store: OutputStore, plan: Plan) -> None:
    """Every anchor cache that has a checksum is what the checksum says, and no file is one of another plan's."""
    files = {file.path for file in store.list_files("anchors")}
    for subject in plan.subjects:
        if checksum_path(subject.cache_path) in files:
            expected = stored_digest(store, subject.cache_path)
            assert digest(store, subject.cache_path) == expected, f"{subject.cache_path} is not what its checksum says"
    caches = {subject.cache_path for subject in plan.subjects}
    strange = [path for path in files if path.endswith(".safetensors") and path not in caches]
    assert not strange, f"anchor caches of nobody: {strange}"


def check_over(store: OutputStore, plan: Plan, *, released: bool = True) -> None:
    """Once a run has come to its end, whether or not assets have failed.

    * Merged: the index is one part, with exactly one row for each planned asset, nothing else lies beside it.
    * Every picture file has its place in the plan, and so a row.
    * The lease was given back; a storage that fails may keep it from that (``released=False``), then it runs out.
    """
    parts = list_parts(store)
    assert len(parts) == 1, f"not merged: {parts}"
    left = [file.path for file in store.list_files("index") if file.path not in parts]
    assert not left, f"left behind: {left}"
    ids: list[str] = read_parts(store)[0]["asset_id"].to_pylist()
    assert sorted(ids) == sorted(asset.asset_id for asset in plan.assets()), "not one row for each planned asset"
    strange = pictures(store) - {asset.path for asset in plan.assets()}
    assert not strange, f"pictures without a plan: {strange}"
    lease = current_lease(store)
    assert lease is not None and (lease.released or not released), f"the lease is still held: {lease}"


def check_complete(
    store: OutputStore, plan: Plan, undisturbed: Digests, is_alike: Alike = never, *, released: bool = True
) -> None:
    """Once a run has ended with 0: :func:`check_rows`, :func:`check_over`, and every planned asset is done."""
    rows = check_rows(store, plan, undisturbed, is_alike)
    check_over(store, plan, released=released)
    failed = [row for row in rows if row["status"] != "ok"]
    assert not failed, f"{len(failed)} assets failed, the first one: {failed[:1]}"


def check_accounted(store: OutputStore, plan: Plan, undisturbed: Digests) -> list[dict[str, Any]]:
    """Once a run has ended with 1: each planned asset exactly once in the index, done or failed with a reason.

    Returns:
        The rows of those that failed.
    """
    rows = check_rows(store, plan, undisturbed)
    check_over(store, plan)
    return [row for row in rows if row["status"] == "failed"]


def check_told(store: OutputStore, plan: Plan) -> None:
    """Once a coordinator has stopped by itself, while nothing writes: every picture file has a row that says ok."""
    rows = [row for row in read_index(store).to_pylist() if row["status"] == "ok"]
    untold = pictures(store) - {row["path"] for row in rows}
    assert not untold, f"pictures without a row: {untold}"
    lease = current_lease(store)
    assert lease is not None and lease.released, f"the lease is still held: {lease}"


def pictures(store: OutputStore) -> set[str]:
    """Paths of all whole picture files that are assets; what shows masks of given pictures is none."""
    files = [file.path for folder in ("anchors", "images") for file in store.list_files(folder)]
    return {path for path in files if path.endswith(".png") and not path.endswith(MASK_ENDING)}


def keepsakes(store: OutputStore, plan: Plan) -> Marks:
    """The pictures that no later run of this plan may render again: whatever lies in its place with its id inside.

    Take it while no coordinator lives that might write, and after the last worker has gone: what such a worker still
    had on its device may overwrite a picture. Anchors count only together with their cache, without which they are
    made again, all of a subject's at once.
    """
    marks = {}
    for subject in plan.subjects:
        anchors = {anchor.path: mark for anchor in subject.anchors if (mark := _mark(store, anchor)) is not None}
        if len(anchors) == len(subject.anchors) and stored_digest(store, subject.cache_path):
            marks |= anchors
        marks |= {scene.path: mark for scene in subject.scenes if (mark := _mark(store, scene)) is not None}
    return marks


def check_kept(store: OutputStore, marks: Marks) -> None:
    """Those pictures are still the very files that they were."""
    again = [path for path, mark in marks.items() if _file_mark(store, path) != mark]
    assert not again, f"{len(again)} pictures that were there were rendered again: {again[:5]}"


def _mark(store: OutputStore, asset: Asset) -> tuple[int, int] | None:
    mark = _file_mark(store, asset.path)
    inside = read_metadata(store.read(asset.path)) if mark is not None else None
    return mark if inside is not None and inside.get("asset_id") == asset.asset_id else None


def _file_mark(store: OutputStore, path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(store.join(path))
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def digests(store: OutputStore, plan: Plan) -> dict[str, str]:
    """What all pictures of a complete output are."""
    found = {asset.path: there(store, asset.path) for asset in plan.assets()}
    missing = [path for path, data in found.items() if not data]
    assert not missing, f"not there: {missing}"
    return {path: content(data) for path, data in found.items()}


def there(store: OutputStore, path: str) -> bytes:
    """A file; empty when it is not there."""
    try:
        return store.read(path)
    except MissingFileError:
        return b""


def content(data: bytes) -> str:
    """SHA-256 of a picture and its parameters.

    The digest of the anchor cache is left out: caches of other sizes are made for some scenarios.
    """
    parameters = dict(read_metadata(data) or {})
    parameters.pop("cache_sha256", None)
    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image).tobytes()
    return hashlib.sha256(json.dumps(parameters, sort_keys=True).encode() + pixels).hexdigest()


def digest(store: OutputStore, path: str) -> str:
    """SHA-256 of a file, also of one that is not there."""
    return hashlib.sha256(there(store, path)).hexdigest()
