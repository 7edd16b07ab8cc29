"""Which anchor caches are written, what has to be there at the end of a run, what stays of a subject's anchors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from consistory_ray.engine.workers.anchor_store import checksum_path
from consistory_ray.output.comparison import lacking
from consistory_ray.output.index.index import compact
from consistory_ray.output.lease.fencing import Lost, delete_all
from consistory_ray.output.storage import OutputStore
from consistory_ray.plan.forecast import keeps_caches

if TYPE_CHECKING:
    from consistory_ray.engine.options import KeepAnchors
    from consistory_ray.plan.plan import Plan, SubjectPlan

SAVE_AFTER_SECONDS = 300.0
"""A cache that will not be kept is written to the output only if its subject is not finished by then: making a few
again in a resume costs less than writing all of them."""


class CachePolicy:
    """What becomes of the caches that a run makes. No clock and no files.

    Args:
        keep: what was asked for.
        expected: bytes of all caches of the plan, as expected.
    """

    def __init__(self, keep: KeepAnchors, expected: int) -> None:
        self._keep = keep
        self._expected = expected
        self._scale: float | None = None

    @property
    def saves(self) -> bool:
        """Whether a cache is ever written to the output."""
        return self._keep != "none"

    @property
    def keeps(self) -> bool:
        """Whether the caches of finished subjects stay there."""
        return keeps_caches(self._keep, self.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all caches of the plan, as they are expected since the first one was made."""
        return round(self._expected * (1.0 if self._scale is None else self._scale))

    @property
    def delay(self) -> float:
        """After how many seconds a new cache is saved, if it is needed for so long."""
        return 0.0 if self.keeps else SAVE_AFTER_SECONDS

    def learn(self, expected: int, size: int) -> bool:
        """A cache is there. Only the first one decides: all of a run's caches are treated alike.

        Returns:
            Whether it was the first.
        """
        first = self._scale is None
        if first:
            self._scale = size / expected if expected else 1.0
        return first


def finished_subjects(plan: Plan, done: Collection[str]) -> list[SubjectPlan]:
    """The subjects of which every scene is there."""
    there = frozenset(done)
    return [subject for subject in plan.subjects if all(asset.asset_id in there for asset in subject.scenes)]


def anchors_of_finished(plan: Plan, done: Collection[str]) -> frozenset[str]:
    """The anchors that nobody needs any more, whether they are there or not."""
    return frozenset(anchor.asset_id for subject in finished_subjects(plan, done) for anchor in subject.anchors)


def missing_pictures(
    store: OutputStore, plan: Plan, expected: Mapping[str, str], given_up: Collection[str], keep: KeepAnchors
) -> dict[str, str]:
    """Pictures of a run that is over which are neither there, by index and listing, nor known to have failed.

    Args:
        store: the output.
        plan: what was to be rendered.
        expected: for each asset id that has to be there by now its path.
        given_up: ids of the assets that the run has given up, each with a row that says so.
        keep: what stays of anchors; those that nobody needs any more are not missed.

    Raises:
        CorruptIndexError, InputError, StorageError: the index cannot be read.
    """
    found = lacking(store, expected)
    missing = found.missing(given_up)
    if missing and keep == "none":
        spared = anchors_of_finished(plan, expected.keys() - found.paths.keys())
        missing = {asset_id: path for asset_id, path in missing.items() if asset_id not in spared}
    return missing


def clear_anchors(store: OutputStore, plan: Plan, done: Collection[str], *, previews: bool, lost: Lost = str) -> int:
    """Delete the anchor caches of finished subjects, and their anchors' pictures and rows too unless ``previews``.

    Rows go before their files, so that no row ever speaks of a file that is gone. Returns how many subjects were
    cleared.

    Args:
        store: the output.
        plan: what was to be rendered.
        done: ids of the assets that are there.
        previews: whether the anchors' pictures stay.
        lost: why the output may no longer be written to; empty while it may.

    Raises:
        RunError: the output is lost.
        StorageError: the storage failed; what is left is cleared by the next run.
    """
    finished = finished_subjects(plan, done)
    present = {file.path for file in store.list_files("anchors")}
    if not previews:
        anchors = [anchor for subject in finished for anchor in subject.anchors]
        if any(anchor.path in present for anchor in anchors):
            compact(store, drop={anchor.asset_id for anchor in anchors}, lost=lost)
            delete_all(store, (anchor.path for anchor in anchors), lost)
    cached = [subject for subject in finished if subject.cache_path in present]
    # a cache without a checksum is no cache
    delete_all(store, (checksum_path(subject.cache_path) for subject in cached), lost)
    delete_all(store, (subject.cache_path for subject in cached), lost)
    return len(cached)


def clear_cache(store: OutputStore, subject: SubjectPlan) -> None:
    """Delete a subject's anchor cache.

    Raises:
        StorageError: the storage failed.
    """
    store.delete(checksum_path(subject.cache_path))  # a cache without a checksum is no cache
    store.delete(subject.cache_path)
