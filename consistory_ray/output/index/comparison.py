"""What an output lacks of a plan, at the end of a run: index and files as they are, whatever was done before.

A run has its own books, and they say nothing of what happened to the output meanwhile: a deletion, an unmounted file
system, a careless ``mv``. So before a run calls itself complete the index is read once more and compared with a
listing, by name and size. That reads no pictures: it takes 0.3 s for 100,000 of them and 3.2 s for a million, where a
resume takes 0.9 s and 4.6 s (``tests/output/resume_scale.py``), beside the requests for the listing itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from consistory_ray.output.index.index import Output, read_parts
from consistory_ray.output.index.rows import latest_rows
from consistory_ray.output.resume import PICTURE_FOLDERS
from consistory_ray.output.storage import as_store

_COLUMNS = ("asset_id", "subject", "kind", "scene", "path", "size", "status", "attempt", "created_at")
_BATCH_ROWS = 10_000
_LISTED = 5


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
        CorruptIndexError, InputError: the index cannot be read, see :func:`.index.read_parts`.
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
            if status == "failed":
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
