"""SIGTERM for a ``consistory-ray render`` that is a process of its own: it stops as after Ctrl-C, whatever it is at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from consistory_ray.job import RenderJob
from consistory_ray.output.index import read_index, read_parts
from consistory_ray.output.lease import Lease, current_lease
from consistory_ray.output.processes import Process
from consistory_ray.output.run_record import read_run_record
from consistory_ray.output.storage import open_output
from consistory_ray.testing import read_trace

FAKE = "consistory_ray.testing:FakeRenderer"
ASSETS, SCENES = 24, 20
PATIENCE = 120.0
SOON = 30.0
"""Seconds in which a batch that takes less than one is in, the index committed and Ray left, on a busy machine."""


class Render:
    """A running ``consistory-ray render``.

    Args:
        job: the job file.
        out: the output.
        folder: scratch, with the renderer's trace.
        arguments: further ones.
        fake: options of the fake renderer.
    """

    def __init__(self, job: Path, out: Path, folder: Path, *arguments: str, **fake: Any) -> None:
        (folder / "trace").mkdir(parents=True, exist_ok=True)
        self.out, self.trace, self._log = out, folder / "trace", folder / "render.log"
        options = json.dumps({"trace": str(self.trace)} | fake)
        command = [sys.executable, "-m", "consistory_ray.cli", "render", str(job), "-o", str(out), "--no-gallery"]
        command += ["--workers", "1", "--cpus-per-worker", "1", "--batch-size", "2"]
        command += ["--renderer", FAKE, "--renderer-options", options, *arguments]
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment = inherited | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def text(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    def wait_until(self, there: Callable[[], bool]) -> None:
        """Wait for something that it does."""
        deadline = time.monotonic() + PATIENCE
        while not there():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.text()}"
            assert time.monotonic() < deadline, f"it took too long:\n{self.text()}"
            time.sleep(0.05)

    def batches(self) -> int:
        """How many batches of scenes are finished."""
        return sum(span.kind == "scenes" for span in read_trace(self.trace))

    def made(self) -> dict[str, int]:
        """How many pictures of each kind were rendered, by whichever process."""
        spans = [span for span in read_trace(self.trace) if span.kind != "load"]
        return {kind: sum(span.assets for span in spans if span.kind == kind) for kind in ("anchors", "scenes")}

    def terminate(self) -> int:
        """Send SIGTERM to the process, as ``kill`` and Kubernetes do; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SOON)

    def end(self) -> None:
        """Whatever is left of it and of a Ray that it has started."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if os.getsid(process.pid) == self.process.pid:
                    process.kill()
        self.process.kill()
        self.process.wait()


StartRender = Callable[..., Render]


@pytest.fixture
def start(make_job: Callable[..., RenderJob], tmp_path: Path) -> Iterator[StartRender]:
    """``start("--address", "local", seconds=0.3)``: a render of 2 subjects with 2 anchors and 10 scenes each."""
    job = tmp_path / "job.json"
    job.write_text(make_job(subjects=2, scenes=SCENES // 2).model_dump_json(exclude_unset=True))
    started: list[Render] = []

    def begin(*arguments: str, **fake: Any) -> Render:
        started.append(Render(job, tmp_path / "out", tmp_path, *arguments, **fake))
        return started[-1]

    yield begin
    for render in started:
        render.end()


def pictures(out: Path) -> set[str]:
    """Paths of all picture files, relative to the output."""
    return {str(path.relative_to(out)) for folder in ("anchors", "images") for path in (out / folder).rglob("*.png")}


def check_interrupted(render: Render) -> int:
    """The record says so, every picture that was written has its row, the output is free; returns how many rows."""
    text = render.text()
    assert "the same command resumes" in text and "Traceback" not in text, text
    record = read_run_record(str(render.out))
    assert record is not None and (record.state, record.error) == ("interrupted", None), record
    rows = read_index(str(render.out)).to_pylist()
    assert {row["status"] for row in rows} <= {"ok"}
    assert {row["path"] for row in rows} == pictures(render.out)
    lease = current_lease(str(render.out))
    assert lease is not None and lease.released
    return len(rows)


def check_resumed(render: Render) -> None:
    """All is there, and no picture was rendered twice."""
    assert render.process.wait(PATIENCE) == 0, render.text()
    rows = read_parts(open_output(str(render.out)))[0].to_pylist()
    assert len(rows) == ASSETS and {row["path"] for row in rows} == pictures(render.out)
    assert render.made() == {"anchors": ASSETS - SCENES, "scenes": SCENES}
    record = read_run_record(str(render.out))
    assert record is not None and record.state == "complete"


@pytest.fixture
def address(ray_cluster: None) -> str:
    """The session's cluster."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def test_sigterm_stops_a_run_that_has_joined_a_cluster(start: StartRender, address: str) -> None:
    render = start("--address", address, seconds=0.4)
    render.wait_until(lambda: render.batches() >= 2)
    assert render.terminate() == 75, render.text()
    assert 0 < check_interrupted(render) < ASSETS
    check_resumed(start("--address", address))


@pytest.mark.slow
def test_sigterm_stops_a_run_that_has_a_ray_of_its_own(start: StartRender, address: str) -> None:
    """Its Ray goes with it; what it has left is resumed elsewhere."""
    render = start("--address", "local", seconds=0.4)
    render.wait_until(lambda: render.batches() >= 1)
    below = psutil.Process(render.process.pid).children(recursive=True)
    assert any(process.name() == "raylet" for process in below)
    assert render.terminate() == 75, render.text()
    assert 0 < check_interrupted(render) < ASSETS
    _, alive = psutil.wait_procs(below, timeout=SOON)
    assert not alive, "processes outlive the run"
    check_resumed(start("--address", address))


@pytest.mark.parametrize("more", [pytest.param(0.0, marks=pytest.mark.slow), 1.5])
def test_sigterm_stops_a_run_that_joins_the_cluster_just_now(start: StartRender, address: str, more: float) -> None:
    """It has the output already, and may be anywhere between comparing files and loading its worker's model."""
    render = start("--address", address, load_seconds=5.0)
    render.wait_until(lambda: read_run_record(str(render.out)) is not None)
    time.sleep(more)
    assert render.terminate() == 75, render.text()
    assert check_interrupted(render) == 0
    assert not pictures(render.out)


@pytest.mark.slow
def test_sigterm_stops_a_run_whose_own_ray_is_starting(start: StartRender) -> None:
    """``ray.init`` takes seconds, in which it has handlers of its own."""
    render = start("--address", "local")
    below: list[psutil.Process] = []

    def is_starting() -> bool:
        below[:] = psutil.Process(render.process.pid).children(recursive=True)
        return any(process.name() == "gcs_server" for process in below)

    render.wait_until(is_starting)
    assert render.terminate() == 75, render.text()
    assert check_interrupted(render) == 0
    _, alive = psutil.wait_procs(below, timeout=SOON)
    assert not alive, "processes outlive the run"


@pytest.mark.slow
def test_a_second_sigterm_leaves_at_once(start: StartRender, address: str) -> None:
    """What is on the device is given up; what was finished before has its rows."""
    render = start("--address", address, seconds=300.0, anchor_seconds=0.0)
    render.wait_until(lambda: "anchors made" in render.text())
    time.sleep(1)  # until a scene is being rendered
    render.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        render.process.wait(3)
    assert render.terminate() == 75, render.text()
    assert {row["path"] for row in read_index(str(render.out)).to_pylist()} == pictures(render.out)
    check_resumed(start("--address", address))


def test_sigterm_stops_a_run_that_waits_for_the_output(start: StartRender, tmp_path: Path) -> None:
    """Somebody on another machine holds it and may be dead; Ray is not needed to wait for that."""
    out = tmp_path / "out"
    elsewhere = Process("elsewhere", "another-machine/1", 4242, "17")
    lease = Lease.acquire(str(out), "somebody", process=elsewhere)
    render = start()
    render.wait_until(lambda: "is held by somebody" in render.text().replace("\n", " "))
    assert render.terminate() == 75, render.text()
    assert "Traceback" not in render.text()
    assert read_run_record(str(out)) is None and not pictures(out)
    found = current_lease(str(out))
    assert found is not None and (found.token, found.released) == (lease.record.token, False), "it is still theirs"
