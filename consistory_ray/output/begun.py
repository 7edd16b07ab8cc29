"""Outputs that were begun by a version whose seeds depended on a subject's neighbours: their individuals stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consistory_ray.output.damaged import set_aside
from consistory_ray.output.fencing import Lost
from consistory_ray.output.index import CorruptIndexError, current_index
from consistory_ray.output.storage import OutputStore

if TYPE_CHECKING:
    from consistory_ray.plan import Plan


def plan_as_begun(plan: Plan, store: OutputStore, lost: Lost | None = None) -> Plan:
    """:func:`consistory_ray.plan.as_begun` for what an output holds; reads it only where it could make a difference.

    Args:
        plan: of the job.
        store: the output.
        lost: given by whoever holds the output: damaged index parts are then moved away, as a resume would.

    Raises:
        InputError, StorageError: see :func:`consistory_ray.output.index.read_index`.
    """
    from consistory_ray.plan import as_begun

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
