"""What has to be true of an output at every moment, whatever died."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from consistory_ray.output.index import read_index, read_parts
from consistory_ray.output.storage import MissingFileError, OutputStore
from consistory_ray.plan import Plan

Digests = Mapping[str, str]
"""SHA-256 of every picture file of an undisturbed run, by path."""


def check_rows(store: OutputStore, plan: Plan, undisturbed: Digests) -> list[dict[str, Any]]:
    """At any moment, also while a coordinator is dead or at work.

    * The index can be read, and has one row at most for each asset.
    * No row speaks of an asset that was not planned.
    * Every row, also those that others have replaced, says ok and its file is there, with the row's SHA-256, which is
      that of the undisturbed run's picture; or it says failed and why.

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
        assert row["sha256"] == undisturbed[row["path"]], f"{row['path']} differs from the undisturbed run's"
        assert digest(store, row["path"]) == row["sha256"], f"{row['path']} is not what its row says"
    return rows


def check_complete(store: OutputStore, plan: Plan, undisturbed: Digests) -> None:
    """Once a run is over: :func:`check_rows`, and every planned asset exactly once in the index, done."""
    rows = check_rows(store, plan, undisturbed)
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
