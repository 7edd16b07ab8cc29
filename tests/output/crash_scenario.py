"""A small run, a repair and a dataset that can be killed at every step; started as a script by ``test_crash_points``.

    python crash_scenario.py FOLDER run|repair|dataset

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

from PIL import Image

from consistory_ray.output import storage
from consistory_ray.output.assets import encode_png, write_asset
from consistory_ray.output.index import IndexWriter
from consistory_ray.output.resume import resume
from consistory_ray.output.rows import IndexRow
from consistory_ray.output.run_record import RunRecord, write_run_record
from consistory_ray.output.shards import write_dataset
from consistory_ray.output.storage import open_output
from consistory_ray.output.verify import verify

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


SCENARIOS: dict[str, tuple[Callable[[str], object], Callable[[str], object]]] = {
    "run": (lambda folder: None, run),
    "repair": (damage, repair),
    "dataset": (publish_some, dataset),
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

    storage.open = open_half  # type: ignore[attr-defined]
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
