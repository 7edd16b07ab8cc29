"""What has to be true of an output at every moment, whatever died."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from consistory_ray.output.index import read_index, read_parts
from consistory_ray.output.storage import MissingFileError, OutputStore
from consistory_ray.plan import Plan

Digests = Mapping[str, str]
"""SHA-256 of every picture file of an undisturbed run, by path."""

Alike = Callable[[str], bool]
"""Whether the picture at a path, whose file is another one, is the undisturbed run's within float tolerance."""

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
    * Every row, also those that others have replaced, says ok and its file is there, with the row's SHA-256, which is
      that of the undisturbed run's picture (where ``is_alike`` is given, such a picture will do); or it says failed and
      why.

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
        same = row["sha256"] == undisturbed[row["path"]] or is_alike(row["path"])
        assert same, f"{row['path']} differs from the undisturbed run's"
        assert digest(store, row["path"]) == row["sha256"], f"{row['path']} is not what its row says"
    return rows


def check_complete(store: OutputStore, plan: Plan, undisturbed: Digests, is_alike: Alike = never) -> None:
    """Once a run is over: :func:`check_rows`, and every planned asset exactly once in the index, done."""
    rows = check_rows(store, plan, undisturbed, is_alike)
    assert {row["asset_id"] for row in rows} == {asset.asset_id for asset in plan.assets()}
    failed = [row for row in rows if row["status"] != "ok"]
    assert not failed, f"{len(failed)} assets failed, the first one: {failed[:1]}"
    left = [file.path for file in store.list_files("index") if not file.path.endswith(".parquet")]
    assert not left, f"left behind: {left}"


def check_accounted(store: OutputStore, plan: Plan, undisturbed: Digests) -> list[dict[str, Any]]:
    """Once a run is over that may have given up assets: each planned one exactly once, done or failed with a reason.

    Returns:
        The rows of those that failed.
    """
    rows = check_rows(store, plan, undisturbed)
    assert {row["asset_id"] for row in rows} == {asset.asset_id for asset in plan.assets()}
    return [row for row in rows if row["status"] == "failed"]


def digests(store: OutputStore, plan: Plan) -> dict[str, str]:
    """SHA-256 of all picture files of a complete output."""
    found = {asset.path: digest(store, asset.path) for asset in plan.assets()}
    missing = [path for path, sha256 in found.items() if not sha256]
    assert not missing, f"not there: {missing}"
    return found


def digest(store: OutputStore, path: str) -> str:
    """SHA-256 of a file; empty when it is not there."""
    try:
        return hashlib.sha256(store.read(path)).hexdigest()
    except MissingFileError:
        return ""
