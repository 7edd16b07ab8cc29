"""Anchors at the output: what goes once nobody needs it, and what moves with a subject that has another name now."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from consistory_ray.engine.workers.anchor_store import checksum_path
from consistory_ray.engine.workload import finished_subjects
from consistory_ray.jobs.stored_subjects import subject_file
from consistory_ray.output.assets import mask_path
from consistory_ray.output.index.index import compact
from consistory_ray.output.lease.fencing import Lost, delete_all, refuse_if_lost
from consistory_ray.output.storage import MissingFileError, OutputStore

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Plan, SubjectPlan


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
        delete_all(store, (path for anchor in anchors if (path := mask_path(anchor.path)) in present), lost)
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


def move_caches(store: OutputStore, plan: Plan, lost: Lost = str) -> int:
    """Move finished caches to where the plan looks for them; the words about a subject are written anew with them.

    A cache's file name is a hash of what decides it, so that it is recognised in the folder of the old name.

    The cache goes before its checksum, and both before the old ones are deleted: whatever a kill leaves is whole.

    Args:
        store: the output; the caller is its only writer.
        plan: with the new names.
        lost: why the output may no longer be written to; empty while it may.

    Returns:
        How many were moved.

    Raises:
        RunError: the output is lost.
        StorageError: the storage failed.
    """
    there = {file.path for file in store.list_files("anchors") if file.path.endswith((".safetensors", ".sha256"))}
    by_name = {path.rpartition("/")[2]: path for path in sorted(there) if checksum_path(path) in there}
    wanted = {subject.cache_path for subject in plan.subjects}
    moved = 0
    for subject in plan.subjects:
        new = subject.cache_path
        old = by_name.get(new.rpartition("/")[2])
        if old is None or old in wanted or checksum_path(new) in there or subject.source is not None:
            continue
        refuse_if_lost(lost, f"{store.url}/{old} was not moved")
        store.copy(old, new)
        store.copy(checksum_path(old), checksum_path(new))
        _rewrite_words(store, old, subject)
        delete_all(store, [checksum_path(old)], lost)  # a cache without a checksum is no cache
        delete_all(store, [old], lost)
        moved += 1
    return moved


def _rewrite_words(store: OutputStore, old: str, subject: SubjectPlan) -> None:
    """``subject.json`` beside the cache, with the subject's new name; only ``from`` reads it."""
    try:
        words = json.loads(store.read(subject_file(old)))
        words["subject_id"] = subject.subject_id
    except (MissingFileError, ValueError, TypeError, RecursionError):
        return
    store.write_atomic(subject_file(subject.cache_path), json.dumps(words, indent=2, ensure_ascii=False).encode())
    store.delete(subject_file(old))
