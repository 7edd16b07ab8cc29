"""What an output that was begun means for a plan: what is made already, and whose seeds it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consistory_ray.output.damaged import set_aside
from consistory_ray.output.index.index import CorruptIndexError, current_index, read_index
from consistory_ray.output.lease.fencing import Lost
from consistory_ray.output.storage import OutputStore

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Plan


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


def pictures_made(plan: Plan, store: OutputStore) -> tuple[set[str], list[float]]:
    """Ids of the plan's assets that are there, and the seconds that pictures took, as the index says.

    Raises:
        InputError, StorageError: see :func:`consistory_ray.output.index.index.read_index`.
    """
    table = read_index(store).select(["asset_id", "status", "seconds"])
    planned = {asset.asset_id for asset in plan.assets()}  # what lies under another name will be moved
    done, seconds = set(), []
    columns = (table[name].to_pylist() for name in ("asset_id", "status", "seconds"))
    for asset_id, status, taken in zip(*columns, strict=True):
        if status == "ok" and asset_id in planned:
            done.add(asset_id)
            if taken is not None:
                seconds.append(taken)
    return done, seconds
