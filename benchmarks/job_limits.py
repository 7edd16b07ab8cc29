"""What CPU seconds and memory does it take to check and plan a job, as ``validate`` does it? The last line is JSON.

``parse_seconds`` is what reading the file as YAML takes alone: a yardstick of the machine.

python benchmarks/job_limits.py                  # 100,000 scenes
python benchmarks/job_limits.py --scenes 1000000
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import yaml

from consistory_ray.engine.running import load

PER_SUBJECT = 1000


def write_job(path: Path, scenes: int) -> None:
    """A YAML job of subjects with a thousand scenes each, every other one a mapping with an id and a seed."""
    with path.open("w") as file:
        file.write("subjects:\n")
        for first in range(0, scenes, PER_SUBJECT):
            head = f"  - {{id: s{first}, concept: dragon, subject: a dragon, anchors: [in a wood, at sea], scenes: ["
            entries = (
                f"in place number {number}"
                if number % 2
                else f"{{id: p{number}, prompt: in place number {number}, seed: {number}}}"
                for number in range(first, min(first + PER_SUBJECT, scenes))
            )
            file.write(f"{head}{', '.join(entries)}]}}\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=100_000)
    scenes = parser.parse_args().scenes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        write_job(path, 10)
        load(str(path))  # imports are no part of it
        write_job(path, scenes)
        before = time.process_time()
        _, plan = load(str(path))
        seconds = time.process_time() - before
        before = time.process_time()
        for _ in yaml.parse(path.read_text(), Loader=yaml.CSafeLoader):
            pass
        parsing = time.process_time() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    assert plan.scene_count == scenes
    told = {"scenes": scenes, "cpu_seconds": round(seconds, 2), "parse_seconds": round(parsing, 2), "peak_mib": peak}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
