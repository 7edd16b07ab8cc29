"""How long resuming and the comparison at the end of a run take, with many rows and a listing that is made up.

    python tests/output/resume_scale.py --rows 1000000

The last line is JSON: seconds, and the memory in GB before (the plan's ids and paths) and at the peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timezone

import pyarrow as pa

from consistory_ray.output.comparison import lacking
from consistory_ray.output.files import StoredFile
from consistory_ray.output.index.parts import write_part
from consistory_ray.output.index.rows import SCHEMA
from consistory_ray.output.resume import resume
from consistory_ray.output.storage import OutputStore, open_output

SCENES = 500
SIZE = 1_800_000


class Listed(OutputStore):
    """A store whose picture folders hold what the plan says, without a file on the disk."""

    def iter_files(self, prefix: str) -> Iterator[StoredFile]:
        if prefix == "images":
            yield from (StoredFile(path_of(number), SIZE) for number in range(rows_of[self.root]))


rows_of: dict[str, int] = {}


def path_of(number: int) -> str:
    return f"images/subject-{number // SCENES:06d}/scene-{number % SCENES:04d}.png"


def id_of(number: int) -> str:
    return f"{number * 2654435761 % 2**64:032x}"


def write_index(store: OutputStore, rows: int, per_part: int) -> None:
    """Parts of an index with ok rows."""
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    for start in range(0, rows, per_part):
        numbers = range(start, min(start + per_part, rows))
        values = {
            "asset_id": [id_of(number) for number in numbers],
            "kind": "scene",
            "subject": [f"subject-{number // SCENES:06d}" for number in numbers],
            "scene": [f"scene-{number % SCENES:04d}" for number in numbers],
            "prompt": [f"a watercolour of a moss dragon, scene number {number % SCENES}" for number in numbers],
            "seed": [number % 2**32 for number in numbers],
            "anchor_seeds": [[1, 2]] * len(numbers),
            "settings_hash": "5" * 64,
            "model": "miniature",
            "model_fingerprint": "f" * 64,
            "path": [path_of(number) for number in numbers],
            "size": SIZE,
            "sha256": [id_of(number) * 2 for number in numbers],
            "width": 1024,
            "height": 1024,
            "seconds": 2.5,
            "worker": "worker-0",
            "attempt": 1,
            "status": "ok",
            "created_at": now,
        }
        columns = []
        for field in SCHEMA:
            value = values.get(field.name)
            many = value if isinstance(value, list) else [value] * len(numbers)
            columns.append(pa.array(many, field.type))
        write_part(store, pa.Table.from_arrays(columns, schema=SCHEMA))


def gigabytes() -> float:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(folder: str, rows: int) -> dict[str, float]:
    """Resume a plan of so many pictures that are all there, in CPU seconds; a new process measures best."""
    store = open_output(folder)
    listed = Listed(store.fs, store.root)
    rows_of[listed.root] = rows
    plan_paths = {id_of(number): path_of(number) for number in range(rows)}
    before = gigabytes()
    began = time.process_time()
    found = resume(listed, plan_paths)
    seconds = time.process_time() - began
    assert (len(found.done), found.recovered, found.dropped) == (rows, 0, 0)
    peak = gigabytes()
    began = time.process_time()
    assert not lacking(listed, plan_paths).paths
    return {
        "rows": rows,
        "resume_seconds": round(seconds, 2),
        "comparison_seconds": round(time.process_time() - began, 2),
        "gb_before": round(before, 3),
        "gb_peak": round(peak, 3),
    }


def main() -> None:
    """The command."""
    import subprocess
    import sys

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--per-part", type=int, default=50_000)
    parser.add_argument("--folder", help="where the index is already")
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(measure(options.folder, options.rows)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_index(open_output(folder), options.rows, options.per_part)
        again = [sys.executable, __file__, "--rows", str(options.rows), "--folder", folder]
        subprocess.run(again, check=True)


if __name__ == "__main__":
    main()
