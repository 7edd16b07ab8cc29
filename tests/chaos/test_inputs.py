"""Coordinators die while they copy what a job gives, and after; then the originals are deleted."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.chaos.conftest import MakeRun
from tests.chaos.harness import Run, moments
from tests.chaos.invariants import check_complete, check_rows, digests
from tests.patience import PATIENCE
from tests.pictures.making import encoded

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

SUBJECTS, PICTURES, POSES, SCENES, SIDE = 5, 4, 2, 6, 64
COPIES = SUBJECTS * PICTURES + POSES


@pytest.fixture
def originals(tmp_path: Path) -> Iterator[str]:
    """The URL of a server that takes its time, so that copying does."""

    class Slow(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(0.4)
            super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is told."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Slow, directory=str(tmp_path / "job")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def job(tmp_path: Path, originals: str) -> Path:
    """Subjects of several pictures of noise; the last one is led by hints of noise in some poses."""
    folder = tmp_path / "job"
    folder.mkdir()
    noise = np.random.default_rng(15)
    subjects = []
    for number in range(SUBJECTS):
        poses = [f"pose-{pose}.png" for pose in range(POSES)] if number == SUBJECTS - 1 else []
        names = [f"cat-{number}-{picture}.png" for picture in range(PICTURES)]
        for name in (*names, *poses):
            pixels = noise.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
            (folder / name).write_bytes(encoded(Image.fromarray(pixels), compress_level=0))
        scenes = [{"id": "place", "prompt": "at some place", "count": SCENES}]
        who = {"id": f"cat-{number}", "concept": "cat", "subject": f"a cat number {number}"}
        led = {"poses": [f"{originals}/{name}" for name in poses]} if poses else {}
        subjects.append({**who, "pictures": [f"{originals}/{name}" for name in names], "scenes": scenes, **led})
    path = folder / "given.yaml"
    path.write_text(
        yaml.safe_dump({"name": "given", "model": "fake", "controlnets": ["acme/net"], "subjects": subjects})
    )
    return path


def whole_copies(run: Run) -> int:
    """How many copies there are; each of them is what its name says."""
    paths = [file.path for file in run.store.list_files("inputs")]
    for path in paths:
        assert hashlib.sha256(run.store.read(path)).hexdigest() == Path(path).stem
    return len(paths)


def test_originals_may_go_once_they_are_copied(make_run: MakeRun, job: Path, tmp_path: Path) -> None:
    undisturbed = make_run(url=str(tmp_path / "undisturbed"), job=job)
    undisturbed.finish()
    run, seen = make_run(job=job, seconds=0.1), set[int]()
    plan, expected = run.plan, digests(undisturbed.store, undisturbed.plan)
    assert whole_copies(undisturbed) == COPIES
    for wanted in (1, 7, 13, COPIES):
        coordinator = run.start()
        for _ in moments(PATIENCE):
            if len(run.store.list_files("inputs")) >= wanted:
                break
        assert run.kill(coordinator)
        seen.add(whole_copies(run))
        check_rows(run.store, plan, expected)
    assert len(seen) > 1 and max(seen) == COPIES, "no coordinator died while it was copying"
    run.job = tmp_path / "resumed.json"
    shutil.copy(Path(run.url, "run.json"), run.job)
    shutil.rmtree(job.parent)
    coordinator = run.start()
    for _ in moments(PATIENCE):
        if run.calls() >= 3 or coordinator.wait(0) is not None:
            break
    run.kill(coordinator)
    check_rows(run.store, plan, expected)
    run.finish(seconds=0.0)
    check_complete(run.store, plan, expected)
    assert whole_copies(run) == COPIES
    assert run.plan == plan
