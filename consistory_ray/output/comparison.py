"""What an output has and lacks of a plan.

Before a run the index says what is made already, and whose seeds it has. At the end of one it is read once more and
compared with a listing, by name and size, before the run calls itself complete: a run has its own books, and they say
nothing of what happened to the output meanwhile, such as a deletion, an unmounted file system, a careless ``mv``. That
reads no pictures: it takes 0.3 s for 100,000 of them and 3.2 s for a million, where a resume takes 0.9 s and 4.6 s
(``tests/output/resume_scale.py``), beside the requests for the listing itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consistory_ray.output.index.index import current_index, read_index, set_aside
from consistory_ray.output.index.parts import CorruptIndexError, read_parts
from consistory_ray.output.index.rows import NOT_KEPT, latest_rows
from consistory_ray.output.lease.fencing import Lost
from consistory_ray.output.storage import PICTURE_FOLDERS, Output, OutputStore, as_store

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Plan

_COLUMNS = ("asset_id", "subject", "kind", "scene", "path", "size", "status", "attempt", "created_at")
_BATCH_ROWS = 10_000
_LISTED = 5


def plan_as_begun(plan: Plan, store: OutputStore, lost: Lost | None = None) -> Plan:
    """:func:`~consistory_ray.plan.plan.as_begun` for what an output holds, which is read only if need be.

    A version whose seeds depended on a subject's neighbours may have begun it: those individuals stay.

    Args:
        plan: of the job.
        store: the output.
        lost: given by whoever holds the output: damaged index parts are then moved away, as a resume would.

    Raises:
        InputError, StorageError: see :func:`consistory_ray.output.index.index.read_index`.
    """
    from consistory_ray.plan.plan import as_begun

    asked = {asset.asset_id for subject in plan.subjects for one in subject.former for asset in one.assets()}
    if not asked:
        return plan
    asked |= {asset.asset_id for subject in plan.subjects if subject.former for asset in subject.assets()}
    try:
        rows = current_index(store, asked)
    except CorruptIndexError as error:
        if lost is None:
            raise
        set_aside(store, error.parts, lost)
        rows = current_index(store, asked)
    pairs = zip(rows["asset_id"].to_pylist(), rows["status"].to_pylist(), strict=True)
    return as_begun(plan, {asset_id for asset_id, status in pairs if status == "ok"})


def pictures_made(plan: Plan, store: OutputStore) -> tuple[set[str], dict[str, float]]:
    """Ids of the plan's assets that are there, and the seconds that each took, as far as the index says.

    Raises:
        InputError, StorageError: see :func:`consistory_ray.output.index.index.read_index`.
    """
    table = read_index(store).select(["asset_id", "status", "seconds"])
    planned = {asset.asset_id for asset in plan.assets()}  # what lies under another name will be moved
    done, seconds = set(), {}
    columns = (table[name].to_pylist() for name in ("asset_id", "status", "seconds"))
    for asset_id, status, taken in zip(*columns, strict=True):
        if status == "ok" and asset_id in planned:
            done.add(asset_id)
            if taken is not None:
                seconds[asset_id] = taken
    return done, seconds


@dataclass(frozen=True)
class Lacking:
    """What is not there.

    Attributes:
        paths: by asset id, of planned pictures that have no ok row, or whose file is missing or of another size.
        failed: ids of those among them that have a row which says that they failed.
    """

    paths: Mapping[str, str]
    failed: frozenset[str]

    def missing(self, given_up: Collection[str]) -> dict[str, str]:
        """Those for which there is neither a picture nor, among those that were given up, a row that says why."""
        excused = self.failed.intersection(given_up)
        return {asset_id: path for asset_id, path in self.paths.items() if asset_id not in excused}


def lacking(output: Output, plan_paths: Mapping[str, str]) -> Lacking:
    """Compare an output with a plan.

    Args:
        output: the output.
        plan_paths: for each asset id of the plan its path below the output.

    Raises:
        CorruptIndexError, InputError: the index cannot be read, see :func:`.index.parts.read_parts`.
        StorageError: the storage failed.
    """
    store = as_store(output)
    rows = latest_rows(read_parts(store, _COLUMNS)[0])
    sizes: dict[str, int] = {}
    failed: set[str] = set()
    for batch in rows.select(["asset_id", "path", "size", "status"]).to_batches(_BATCH_ROWS):
        for asset_id, path, size, status in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            wanted = plan_paths.get(asset_id)
            if wanted is None:
                continue
            if status in NOT_KEPT:
                failed.add(asset_id)
            elif path == wanted:
                sizes[wanted] = size  # the plan's own string: no second million of them
    del rows
    for file in itertools.chain.from_iterable(store.iter_files(folder) for folder in PICTURE_FOLDERS):
        if sizes.get(file.path) == file.size:
            sizes[file.path] = -1  # it is there
    left = {asset_id: path for asset_id, path in plan_paths.items() if sizes.get(path) != -1}
    return Lacking(left, frozenset(failed.intersection(left)))


def named(paths: Collection[str]) -> str:
    """A few of these paths, and how many more there are."""
    few = ", ".join(sorted(paths)[:_LISTED])
    return few if len(paths) <= _LISTED else f"{few} and {len(paths) - _LISTED} more"
