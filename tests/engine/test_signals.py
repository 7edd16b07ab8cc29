"""SIGTERM for a ``consistory-ray render`` that is a process of its own: it stops as after Ctrl-C, whatever it is at."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from consistory_ray.output.index.index import read_index
from consistory_ray.output.lease.holders import current_lease
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.lease.processes import Process
from consistory_ray.output.run_record import read_run_record
from tests.engine.renders import ASSETS, Render, StartRender, check_resumed, pictures
from tests.patience import SOON


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
    render = start("--address", address, seconds=10 * SOON, anchor_seconds=0.0)
    render.wait_until(lambda: "anchors made" in render.text() and render.is_at("scenes"))
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
