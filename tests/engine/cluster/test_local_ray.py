"""A Ray of our own: its token, what it leaves behind when it ends or does not start, what a run does without it."""

from __future__ import annotations

import inspect
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import create_autospec

import psutil  # type: ignore[import-untyped]
import pytest

from consistory_ray.engine.cluster import local_ray
from consistory_ray.engine.cluster.cluster_watch import PATIENCE_SECONDS, ClusterWatch
from consistory_ray.engine.cluster.local_ray import LocalRay, start_local_ray
from consistory_ray.errors import ClusterLostError, RunError
from consistory_ray.output.run_record import read_run_record
from tests.engine.renders import ASSETS, Render, StartRender, pictures
from tests.operations.heads import ray_head
from tests.patience import PATIENCE, SOON


def ray_processes(root: int) -> dict[str, psutil.Process]:
    """Of the Ray that a process has started, by name."""
    found = {}
    for process in psutil.Process(root).children(recursive=True):
        with suppress(psutil.Error):
            found[process.name()] = process
    return found


@pytest.fixture
def reap() -> Iterator[list[psutil.Process]]:
    """Processes that have to be gone at the end; they are killed if they are not."""
    processes: list[psutil.Process] = []
    yield processes
    left = [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        process.kill()
    assert not left, left


def test_a_dead_process_of_our_own_ray_is_found() -> None:
    """Without Ray: what counts is that the processes are there."""
    ray = LocalRay("token", [])
    assert not ray.dead() and ClusterWatch(ray).answers()
    child = psutil.Popen(["sleep", "60"])
    ray._essential = [child]
    assert ClusterWatch(ray).answers()
    child.kill()  # and is not waited for: what is left of it is no living process
    deadline = time.monotonic() + SOON
    while not ray.dead() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(ClusterLostError, match="sleep is dead") as caught:
        ClusterWatch(ray).answers()
    assert caught.value.own and "the same command goes on" in str(caught.value)
    child.wait()


def test_a_joined_cluster_may_be_away_for_a_while() -> None:
    """Its head may be started again elsewhere; for longer than Ray allows nobody waits."""
    now = [0.0]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        watch = ClusterWatch(endpoint=("127.0.0.1", port), clock=lambda: now[0])
        assert watch.answers()
    now[0] += PATIENCE_SECONDS
    assert not watch.answers()
    with socket.create_server(("127.0.0.1", port)):
        assert watch.answers()
    now[0] += PATIENCE_SECONDS
    assert not watch.answers()
    now[0] += 1
    with pytest.raises(ClusterLostError, match=f"127.0.0.1:{port} is gone, nobody answers") as caught:
        watch.answers()
    assert not caught.value.own


@pytest.fixture
def settings_read_again() -> Iterator[None]:
    """The session's Ray goes on with the token that the environment has for it."""
    import ray  # noqa: F401, which sets a variable itself

    yield
    with local_ray.ray_environment():
        pass


@pytest.mark.parametrize("mode", ["disabled", "token", None])
def test_the_token_is_there_while_ray_starts_and_nowhere_afterwards(
    settings_read_again: None, monkeypatch: pytest.MonkeyPatch, mode: str | None
) -> None:
    """Whatever the environment says about clusters that may be joined, it says so again afterwards."""
    for name, value in {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": mode and "a" * 64}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    before, seen = dict(os.environ), list[str]()
    monkeypatch.setattr("ray.init", lambda **given: seen.append(_started_with()))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    first, second = start_local_ray(), start_local_ray()
    assert dict(os.environ) == before
    assert seen == [first.environment["RAY_AUTH_TOKEN"], second.environment["RAY_AUTH_TOKEN"]]
    assert len({*seen, "a" * 64}) == 3 and all(len(token) == 64 for token in seen)
    first.stop()
    second.stop()


def _started_with() -> str:
    environment = dict(os.environ)
    assert (environment["RAY_AUTH_MODE"], environment["RAY_worker_niceness"]) == ("token", "0")
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    return os.environ["RAY_AUTH_TOKEN"]


def test_a_node_that_is_slow_is_waited_for_and_a_dead_one_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (program := tmp_path / "raylet").symlink_to("/bin/sleep")
    looks, below = list[str](), list[psutil.Process]()

    def find(gcs_address: str, node_id: str) -> str:
        looks.append(node_id)
        if len(looks) < 4:
            raise RuntimeError("not there yet")
        return "there"

    services = pytest.importorskip("ray._private.services")
    monkeypatch.setattr(services, "get_node", find)
    monkeypatch.setattr(local_ray, "_processes_below", lambda: below)
    before = dict(os.environ)
    with local_ray.patience_with_nodes():
        with pytest.raises(RuntimeError, match="not there yet"):
            services.get_node("127.0.0.1:1", "one")
        below.append(psutil.Popen([str(program), "600"]))
        assert services.get_node("127.0.0.1:1", "two") == "there" and looks == ["one", "two", "two", "two"]
        assert int(dict(os.environ)["RAY_gcs_server_port_wait_time_s"]) > 30
    assert services.get_node is find and dict(os.environ) == before
    below[0].kill()
    below[0].wait()


def test_agents_are_told_their_ports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each its own; one that was chosen already stays."""
    services = pytest.importorskip("ray._private.services")
    monkeypatch.setattr(services, "start_raylet", (told := create_autospec(services.start_raylet)))
    needed = dict.fromkeys(inspect.signature(services.start_raylet).parameters, None)
    given = {"session_dir": str(tmp_path), "node_id": "one", "dashboard_agent_listen_port": 52365}
    with local_ray.patience_with_nodes():
        services.start_raylet(**(needed | given))
    ports = {name: value for name, value in told.call_args.kwargs.items() if name.endswith("_port") and value}
    assert ports.keys() == {*local_ray._AGENT_PORTS} and len({*ports.values()}) == len(ports)
    assert ports["dashboard_agent_listen_port"] == 52365
    assert (tmp_path / "dashboard_agent_listen_port_one").read_text() == "52365"


def test_a_start_that_fails_leaves_nothing_behind(
    settings_read_again: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every try starts processes before it fails; what others have started meanwhile is left alone."""
    (tmp_path / "ray").mkdir()
    (program := tmp_path / "ray" / "gcs_server").symlink_to("/bin/sleep")
    started: list[psutil.Process] = []
    stranger: list[psutil.Process] = []

    def init(**given: object) -> None:
        started.append(psutil.Popen([str(program), "600"]))
        stranger.append(psutil.Popen(["sleep", "600"]))  # by another thread of the caller's
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    try:
        with pytest.raises(RunError, match="timed out during startup"):
            start_local_ray()
        assert len(started) == local_ray.START_TRIES
        assert not psutil.wait_procs(started, timeout=SOON)[1]
        assert all(process.poll() is None for process in stranger)
    finally:
        for process in stranger + started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raylet", pytest.param("gcs_server", marks=pytest.mark.full)])
def test_a_run_starts_its_ray_again_once(start: StartRender, reap: list[psutil.Process], name: str) -> None:
    render = start("--address", "local", seconds=0.4)
    render.wait_until(lambda: render.batches() >= 1)
    reap += ray_processes(render.process.pid).values()
    ray_processes(render.process.pid)[name].kill()
    render.wait_until(lambda: "started again, once" in " ".join(render.text().split()))
    check_complete(render)
    assert "Traceback" not in render.text() and f"{name} is dead" in " ".join(render.text().split())


def check_complete(render: Render) -> None:
    """All is there in the end; what was on the device when Ray ended may have been rendered twice."""
    assert render.process.wait(PATIENCE) == 0, render.text()
    assert len(pictures(render.out)) == ASSETS
    record = read_run_record(str(render.out))
    assert record is not None and (record.state, record.totals["rendered"]) == ("complete", ASSETS)


@pytest.mark.slow
def test_a_run_whose_ray_ends_twice_says_so(start: StartRender, reap: list[psutil.Process]) -> None:
    """All of its processes at once, as ``ray stop`` and the OOM killer do it."""
    render = start("--address", "local", seconds=2.0, anchor_seconds=0.0)
    for number in (1, 2):
        render.wait_until(lambda number=number: render.batches() >= number)  # type: ignore[misc]
        processes = list(psutil.Process(render.process.pid).children(recursive=True))
        reap += processes
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
    assert render.process.wait(SOON) == 3, render.text()
    text = " ".join(render.text().split())
    assert "the same command goes on" in text and "Traceback" not in text, text
    record = read_run_record(str(render.out))
    assert record is not None and record.state == "failed" and "ClusterLostError" in str(record.error)
    render = start("--address", "local")
    assert render.process.wait(PATIENCE) == 0, render.text()
    assert len(pictures(render.out)) == ASSETS


@pytest.mark.slow
def test_a_run_whose_cluster_ends_says_so(start: StartRender, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that was joined is somebody else's to start again."""
    with ray_head() as head:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
        render = start("--address", head.address, seconds=0.4)
        render.wait_until(lambda: render.batches() >= 1)
        head.kill()
        assert render.process.wait(SOON) == 3, render.text()  # Ray itself would go on for ten minutes
    text = " ".join(render.text().split())
    assert "Traceback" not in text, text
    assert "head of the Ray cluster" in text and "the same command goes on" in text, text
