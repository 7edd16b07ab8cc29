"""What the coordinator does besides talking to Ray, up to a million pictures: plan, resume, decide, write rows.

Everything runs the engine's own code; three things are made up. The reports of the workers are built here instead of
arriving through Ray (they are pickled and unpickled, as they would be). No picture is written. And where an output of a
million pictures is resumed, its listing comes from memory (:class:`ListedStore`), since the time that a million names
take is the storage's: about a second and a half on a local disk, 1,000 requests to S3.
"""

from __future__ import annotations

import csv
import hashlib
import pickle
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.engine_model.apart import Meter
from consistory_ray.engine.coordinator import SECONDS_PER_PART
from consistory_ray.engine.events import Event
from consistory_ray.engine.ledger import Ledger
from consistory_ray.engine.scheduling.remaining import subject_works, without_broken_sets
from consistory_ray.engine.scheduling.scheduler import Scheduler
from consistory_ray.engine.scheduling.work import Call
from consistory_ray.engine.workers.worker import Delivered, Report
from consistory_ray.jobs.job import load_job
from consistory_ray.output.assets import WrittenAsset
from consistory_ray.output.files import StoredFile
from consistory_ray.output.index.parts import write_part
from consistory_ray.output.index.rows import SCHEMA
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.resume import resume
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.plan.plan import Asset, Plan, make_plan

PICTURE_BYTES = 1_800_000
CACHE_BYTES = 5_500_000_000
PARTS = 20


@dataclass(frozen=True)
class ListedStore(OutputStore):
    """An output in which all pictures of a plan are listed, without being there."""

    plan: Plan | None = None

    def list_files(self, prefix: str = "") -> list[StoredFile]:
        """See :meth:`iter_files`."""
        return list(self.iter_files(prefix))

    def iter_files(self, prefix: str) -> Iterator[StoredFile]:
        """The plan's pictures below ``prefix``, and what really is there."""
        for asset in self.plan.assets() if self.plan is not None else ():
            if asset.path.startswith(f"{prefix}/"):
                yield StoredFile(asset.path, PICTURE_BYTES)
        yield from super().list_files(prefix)


def write_job(path: Path, pictures: int, scenes: int) -> None:
    """A CSV job of so many scenes, ``scenes`` of each subject, two anchors besides."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("subject_id", "concept", "subject", "kind", "prompt", "id"))
        for first in range(0, pictures, scenes):
            own = (f"subject-{first // scenes}", "dragon", f"a dragon number {first // scenes}")
            rows.writerows((*own, "anchor", f"at home {number}", "") for number in range(2))
            for number in range(first, min(first + scenes, pictures)):
                rows.writerow((*own, "scene", f"somewhere in the mountains, place {number}", f"scene-{number}"))


def plan_cost(job: str) -> dict[str, float]:
    """Seconds and bytes that reading a job file and planning it take."""
    with Meter() as meter:
        plan = make_plan(load_job(job))
    return {"pictures": plan.anchor_count + plan.scene_count, **vars(meter)}


def books_cost(job: str, folder: str, workers: int, batch_size: int) -> dict[str, float]:
    """CPU seconds of a whole run's decisions and rows, from an empty output to a merged index; and peak memory."""
    plan = make_plan(load_job(job))
    with Meter() as meter:
        pictures = keep_books(plan, open_output(folder), workers, batch_size)
    return {"pictures": pictures, **vars(meter)}


def keep_books(plan: Plan, store: OutputStore, workers: int, batch_size: int) -> int:
    """Everything the coordinator does for a run, apart from Ray; returns the number of pictures."""
    found = resume(store, {asset.asset_id: asset.path for asset in plan.assets()})
    done = without_broken_sets(plan, found.done)
    sizes = {subject.subject_id: CACHE_BYTES for subject in plan.subjects}
    scheduler = Scheduler(subject_works(plan, done, sizes), batch_size=batch_size)
    events: deque[Event] = deque(maxlen=100)
    ledger = Ledger(plan.model, IndexWriter(store, seconds_per_part=SECONDS_PER_PART), events.append)
    subjects = {subject.subject_id: subject for subject in plan.subjects}
    assets = {asset.asset_id: asset for asset in plan.assets() if asset.asset_id not in done}
    for number in range(workers):
        scheduler.add_worker(f"worker-{number}", f"node-{number // 8}")
    out: deque[Call] = deque()
    while not scheduler.finished:
        out.extend(scheduler.assign())
        call = out.popleft()
        report = pickle.loads(pickle.dumps(_report(call, assets)))
        scheduler.done(call, {}, report.cache_bytes or None)
        for item in report.delivered:
            ledger.delivered(assets[item.asset_id], subjects[call.subject_id], item, call.worker, call.attempt)
        scheduler.take_released()
        ledger.tick()
    ledger.close(merge=True)
    return ledger.rendered


def _report(call: Call, assets: dict[str, Asset]) -> Report:
    items = (assets[asset_id] for asset_id in call.assets)
    delivered = tuple(
        Delivered(item.asset_id, WrittenAsset(item.path, PICTURE_BYTES, _digest(item)), (1024, 1024), 8.0)
        for item in items
    )
    return Report(delivered, {}, made=call.kind == "anchors", cache_bytes=CACHE_BYTES if call.kind == "anchors" else 0)


def write_full_index(job: str, folder: str) -> int:
    """An index that says that a whole job is done, in several parts; returns its rows."""
    plan, store = make_plan(load_job(job)), open_output(folder)
    assets = list(plan.assets())
    share = -(-len(assets) // PARTS)
    for first in range(0, len(assets), share):
        write_part(store, _table(plan, assets[first : first + share]))
    return len(assets)


def resume_cost(job: str, folder: str) -> dict[str, float]:
    """Seconds and bytes from a plan and an index of all of it to what is left to do; the bytes include the plan's."""
    plan = make_plan(load_job(job))
    pictures = plan.anchor_count + plan.scene_count
    plain = open_output(folder)
    store = ListedStore(plain.fs, plain.root, plan)
    with Meter() as meter:
        found = resume(store, {asset.asset_id: asset.path for asset in plan.assets()})
        done = without_broken_sets(plan, found.done)
        works = subject_works(plan, done, {subject.subject_id: CACHE_BYTES for subject in plan.subjects})
        Scheduler(works, batch_size=4)
    if works or len(done) != pictures:
        raise RuntimeError(f"{pictures - len(done)} pictures were not found again")
    return {"pictures": pictures, **vars(meter)}


def _table(plan: Plan, assets: list[Asset]) -> pa.Table:
    """Index rows, column by column."""
    same: dict[str, Any] = {
        "anchor_seeds": [1, 2], "settings_hash": "5" * 64, "model": plan.model, "model_fingerprint": "f" * 64,
        "size": PICTURE_BYTES, "width": 1024, "height": 1024, "seconds": 8.0, "worker": "worker-7", "attempt": 1,
        "status": "ok", "created_at": datetime.now(timezone.utc),
    }  # fmt: skip
    own = {
        "asset_id": lambda asset: asset.asset_id, "kind": lambda asset: asset.kind,
        "subject": lambda asset: asset.subject_id, "scene": lambda asset: asset.scene_id,
        "prompt": lambda asset: asset.prompt, "seed": lambda asset: asset.seed, "path": lambda asset: asset.path,
        "sha256": _digest,
    }  # fmt: skip
    columns = [
        pa.array([own[item.name](asset) if item.name in own else same.get(item.name) for asset in assets], item.type)
        for item in SCHEMA
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _digest(asset: Asset) -> str:
    return hashlib.sha256(asset.asset_id.encode()).hexdigest()
