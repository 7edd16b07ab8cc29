"""Everything that writes to an output, in small, to be killed at every step; started as a script by the tests.

    python crash_scenario.py FOLDER run|repair|dataset|settle|move|set-aside|lease|cache|cache-again|clear

For every step of the scenario's writes the process forks; the child dies without any clean-up at that step, and the
parent prints one JSON line: the step and the folder it left behind. The last line is the number of steps.
"""

from __future__ import annotations

import builtins
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from consistory_ray.engine.anchor_files import clear_anchors
from consistory_ray.engine.workers.anchor_store import save_cache
from consistory_ray.jobs.job import parse_job
from consistory_ray.jobs.stored_subjects import describe_subject, subject_file
from consistory_ray.output import local_files
from consistory_ray.output.assets import asset_parameters, encode_png, write_asset
from consistory_ray.output.index.parts import list_parts
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.lease.record import lease_path
from consistory_ray.output.resume import resume
from consistory_ray.output.run_record import RunRecord, write_run_record
from consistory_ray.output.shards import write_dataset
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.output.verify import verify
from consistory_ray.plan.plan import Plan, make_plan

KILLED = 9
ASSETS = 3


def parameters(number: int) -> dict[str, Any]:
    """An asset of the scenario."""
    return {
        "asset_id": f"{number:032x}", "kind": "scene", "subject": "cat", "scene": f"scene-{number}", "prompt": "a cat",
        "seed": number, "anchor_seeds": [1], "settings_hash": "s", "model": "m", "model_fingerprint": "f",
    }  # fmt: skip


def path_of(number: int) -> str:
    """Where its picture goes."""
    return f"images/cat/scene-{number}.png"


def plan(numbers: Iterator[int] | range = range(ASSETS)) -> dict[str, str]:
    """Paths by asset id."""
    return {parameters(number)["asset_id"]: path_of(number) for number in numbers}


def run(folder: str) -> int:
    """Render what is missing, as an engine would; returns how many pictures were rendered."""
    store = open_output(folder)
    write_run_record(store, RunRecord("crash", "m", {}))
    done = resume(store, plan()).done
    rendered = 0
    writer = IndexWriter(store, rows_per_part=2)
    for number in range(ASSETS):
        values = parameters(number)
        if values["asset_id"] in done:
            continue
        image = Image.new("RGB", (8, 8), (number, number, number))
        written = write_asset(store, path_of(number), encode_png(image, values))
        writer.add(IndexRow.rendered(values, written, image.size))
        rendered += 1
    writer.close()
    write_run_record(store, RunRecord("crash", "m", {}).update(state="complete"))
    return rendered


CACHE = "anchors/cat/0123456789abcdef.safetensors"
BROKEN_PART = "index/part-broken.parquet"


def damage(folder: str) -> None:
    """A complete run of which one picture is cut, one is lost, and of which a cache and a part cannot be used."""
    run(folder)
    store = open_output(folder)
    store.write_atomic(path_of(0), store.read(path_of(0))[:-20])
    store.delete(path_of(1))
    store.write_atomic(CACHE, b"rotten")
    store.write_atomic(f"{CACHE}.sha256", f"{hashlib.sha256(b'sound').hexdigest()}  {CACHE}\n".encode())
    store.write_atomic(BROKEN_PART, b"PAR1 and no more")


def repair(folder: str) -> None:
    """Set right what is damaged."""
    assert verify(open_output(folder), repair=True, threads=1).is_sound


def publish_some(folder: str) -> None:
    """A complete run with a dataset of some of its pictures."""
    run(folder)
    dataset(folder, some=ASSETS - 1)


def dataset(folder: str, some: int = ASSETS) -> None:
    """Write a dataset of the first ``some`` pictures, a shard for each."""
    write_dataset(open_output(folder), [parameters(number)["asset_id"] for number in range(some)], shard_bytes=1)


EDITED = parameters(0) | {"asset_id": "e" * 32, "seed": 77}


def edited_plan() -> dict[str, str]:
    """The plan after an edit of the first asset, whose picture is to be replaced by another one."""
    return {EDITED["asset_id"]: path_of(0), **plan(range(1, ASSETS))}


def draw(store: OutputStore, number: int, values: dict[str, Any] | None = None) -> IndexRow:
    """Write the picture of an asset; returns its row."""
    values = values or parameters(number)
    image = Image.new("RGB", (8, 8), (values["seed"], number, number))
    return IndexRow.rendered(values, write_asset(store, path_of(number), encode_png(image, values)), image.size)


def unsettle(folder: str) -> None:
    """Rows in three parts; the file of one of them is gone."""
    all_drawn(folder)
    store = open_output(folder)
    store.delete(path_of(1))


def settle(folder: str) -> None:
    """Resume with the edited job, which drops two rows, and render the edited asset over the old picture."""
    store = open_output(folder)
    if EDITED["asset_id"] not in resume(store, edited_plan()).done:
        with IndexWriter(store) as writer:
            writer.add(draw(store, 0, EDITED))


def renamed_plan() -> dict[str, str]:
    """The plan after the second and the third scene got other names, the second that of the third."""
    ids = list(plan())
    return dict(zip(ids, (path_of(0), path_of(2), "images/cat/renamed.png"), strict=True))


def all_drawn(folder: str) -> None:
    """Rows in three parts."""
    store = open_output(folder)
    writer = IndexWriter(store, rows_per_part=1)
    for number in range(ASSETS):
        writer.add(draw(store, number))


def move(folder: str) -> None:
    """Resume with the new names."""
    resume(open_output(folder), renamed_plan())


def break_a_part(folder: str) -> None:
    """Rows in three parts, one of which is cut off."""
    all_drawn(folder)
    store = open_output(folder)
    part = list_parts(store)[0]
    store.write_atomic(part, store.read(part)[:-10])


def take_up(folder: str) -> None:
    """Resume."""
    resume(open_output(folder), plan())


def lease_twice(folder: str) -> None:
    """An output that was held twice, and whose first lease file was never tidied up."""
    store = open_output(folder)
    Lease.acquire(store, "the first").release()
    first = store.read(lease_path(1))
    Lease.acquire(store, "the second").release()
    store.write_atomic(lease_path(1), first)


def lease(folder: str) -> None:
    """Take the lease, renew it, give it back."""
    held = Lease.acquire(open_output(folder), "the third")
    assert held.renew()
    held.release()


JOB = {
    "name": "anchored",
    "model": "fake",
    "subjects": [{"id": "cat", "concept": "cat", "subject": "a cat", "anchors": ["here", "there"], "scenes": ["away"]}],
}
CACHES = (b"first" * 100, b"second" * 100)


def anchored_plan() -> Plan:
    """A subject with two anchors and a scene."""
    return make_plan(parse_job(JOB))


def save(folder: str, content: bytes) -> None:
    """Store an anchor cache and the words about it."""
    store, subject = open_output(folder), anchored_plan().subjects[0]
    digest = save_cache(store, subject.cache_path, np.frombuffer(content, np.uint8))
    words = describe_subject(subject, "fake", "f", digest, len(content))
    store.write_atomic(subject_file(subject.cache_path), words)


def furnish(folder: str) -> None:
    """The subject's pictures, rows and cache."""
    store, made = open_output(folder), anchored_plan()
    save(folder, CACHES[0])
    with IndexWriter(store) as writer:
        for asset in made.assets():
            values = asset_parameters(asset, made.subjects[0], model="fake", model_fingerprint="f")
            data = encode_png(Image.new("RGB", (8, 8), "navy"), values)
            writer.add(IndexRow.rendered(values, write_asset(store, asset.path, data), (8, 8)))


def clear(folder: str) -> None:
    """Resume, and clear the anchors of the finished subject."""
    store, made = open_output(folder), anchored_plan()
    resume(store, {asset.asset_id: asset.path for asset in made.assets()})
    clear_anchors(store, made, {asset.asset_id for asset in made.assets()}, previews=False)


def nothing(folder: str) -> None:
    """An empty output."""


SCENARIOS: dict[str, tuple[Callable[[str], object], Callable[[str], object]]] = {
    "run": (nothing, run),
    "repair": (damage, repair),
    "dataset": (publish_some, dataset),
    "settle": (unsettle, settle),
    "move": (all_drawn, move),
    "set-aside": (break_a_part, take_up),
    "lease": (lease_twice, lease),
    "cache": (nothing, lambda folder: save(folder, CACHES[0])),
    "cache-again": (lambda folder: save(folder, CACHES[0]), lambda folder: save(folder, CACHES[1])),
    "clear": (furnish, clear),
}
"""What is there before, and what is killed."""


def die_at(step: int) -> None:
    """Make the process exit, as if killed, at its ``step``-th point before or after a system call or within a write."""
    points = itertools.count()

    def point() -> None:
        if next(points) == step:
            os._exit(KILLED)

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            point()
            result = call(*arguments, **options)
            point()
            return result

        return wrapper

    class HalfWritten:
        """A file whose write may end in the middle."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: Any) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: bytes) -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            point()
            self._file.write(data[len(data) // 2 :])

    def open_half(path: str, mode: str = "r") -> Any:
        point()
        return HalfWritten(builtins.open(path, mode))

    local_files.open = open_half  # type: ignore[attr-defined]
    os.fsync = lambda descriptor: None  # a kill, unlike a power cut, does not undo what was written
    for name in ("replace", "link", "unlink", "fsync"):
        setattr(os, name, guarded(getattr(os, name)))


def main() -> None:
    """Kill one child at each step."""
    root = Path(sys.argv[1])
    prepare, scenario = SCENARIOS[sys.argv[2]]
    before = root / "before"
    before.mkdir(parents=True)
    prepare(str(before))
    rehearsal = root / "rehearsal"  # what is imported, read or compiled once is so here, not in every child
    shutil.copytree(before, rehearsal)
    scenario(str(rehearsal))
    for step in itertools.count():
        folder = root / f"step-{step}"
        shutil.copytree(before, folder)
        child = os.fork()
        if child == 0:
            die_at(step)
            scenario(str(folder))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            print(json.dumps({"steps": step}))
            return
        if code != KILLED:
            raise SystemExit(f"step {step} ended with {code}")
        print(json.dumps({"step": step, "folder": str(folder)}))


if __name__ == "__main__":
    main()
