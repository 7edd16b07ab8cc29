"""A head that is stopped lets its coordinator finish: the preStop hook, tried with real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helm.rendering import CHART, VALUE_SETS, Manifest, merged, render, value_set
from tests.patience import SOON

SCRIPT = CHART / "files" / "stop-run.sh"
HOUR = 3600
"""Seconds that nobody here waits: what ends before has not waited for them."""

# Counts the signals it gets in a file, and ends a while after the first.
COORDINATOR = """\
import os, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(time.monotonic()))
print({words!r}, file=sys.stderr, flush=True)
print("up", flush=True)
while not asked or time.monotonic() < asked[0] + {seconds}:
    time.sleep(0.02)
    with open({count!r} + ".new", "w") as file:
        file.write(str(len(asked)))
    os.replace({count!r} + ".new", {count!r})  # whoever reads it finds a number
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a stand-in for a coordinator, visible in a /proc of its own: no other process is looked at."""
    (tmp_path / "proc").mkdir()
    started: list[subprocess.Popen[str]] = []

    def call(command: str = "render", seconds: float = 1.0, words: str = "") -> subprocess.Popen[str]:
        program = tmp_path / "bin" / "consistory-ray"
        program.parent.mkdir(exist_ok=True)
        count = tmp_path / f"signals-{len(started)}"
        count.write_text("0")
        program.write_text(f"#!{sys.executable}\n" + COORDINATOR.format(words=words, seconds=seconds, count=str(count)))
        program.chmod(0o755)
        with (tmp_path / f"log-{len(started)}").open("w") as log:
            process = subprocess.Popen(
                [program, command, "job.yaml"], stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        started.append(process)
        assert process.stdout and process.stdout.readline() == "up\n"
        (tmp_path / "proc" / str(process.pid)).symlink_to(f"/proc/{process.pid}")
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def hook(tmp_path: Path, seconds: int) -> float:
    """Runs the script as the hook does; the seconds it took."""
    began = time.monotonic()
    subprocess.run(
        ["/bin/bash", "-c", SCRIPT.read_text(), "stop-run", str(seconds)],
        env={"PATH": "/usr/bin:/bin", "PROC": str(tmp_path / "proc"), "SETTLE": "0.1"},
        check=True,
        timeout=2 * SOON,
    )
    return time.monotonic() - began


def test_it_asks_the_coordinator_once_and_waits_until_it_is_gone(tmp_path: Path, start: Start) -> None:
    process = start(seconds=2.5)
    took: list[float] = []
    waiting = threading.Thread(target=lambda: took.append(hook(tmp_path, HOUR)))
    waiting.start()
    assert process.wait(SOON) == 0  # as Ray does, whose child it is
    waiting.join(SOON)
    assert took and took[0] > 2.5
    assert (tmp_path / "signals-0").read_text() == "1"


def test_a_coordinator_that_ray_has_asked_is_waited_for_and_not_asked_again(tmp_path: Path, start: Start) -> None:
    """Twice would mean: leave at once, without what is in hand."""
    progress = pytest.importorskip("consistory_ray.watch.progress")
    events = pytest.importorskip("consistory_ray.engine.events")
    words = progress.describe(events.Stopping("SIGTERM", 3))
    process = start(seconds=0.5, words=words)
    assert hook(tmp_path, 2) >= 1
    assert process.poll() is None and (tmp_path / "signals-0").read_text() == "0"


def test_it_waits_no_longer_than_it_may(tmp_path: Path, start: Start) -> None:
    process = start(command="retry", seconds=HOUR)
    assert 1 <= hook(tmp_path, 2) < SOON  # the shell counts whole seconds
    assert process.poll() is None
    assert (tmp_path / "signals-0").read_text() == "1"


def test_without_a_coordinator_there_is_nothing_to_wait_for(tmp_path: Path, start: Start) -> None:
    other = start(command="status")
    (tmp_path / "proc" / "99999999").mkdir()  # gone while it was looked at
    assert hook(tmp_path, HOUR) < SOON
    assert other.poll() is None and (tmp_path / "signals-0").read_text() == "0"


def head(manifest: Manifest) -> tuple[Manifest, Manifest]:
    pod = manifest["headGroupSpec"]["template"]["spec"]
    return pod, pod["containers"][0]


@pytest.mark.parametrize("grace", [0, 120, 600])
@pytest.mark.parametrize("name", VALUE_SETS)
def test_everybody_who_stops_a_run_waits_for_its_grace(name: str, grace: int) -> None:
    rendered = render(merged(value_set(name), {"run": {"graceSeconds": grace}}))
    words = rendered.command
    assert words[words.index("--grace") + 1] == str(grace)
    pod, container = head(rendered.cluster_spec)
    shell, _, script, _, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert shell == "/bin/bash" and script.strip() == SCRIPT.read_text().strip()
    patience = int(seconds)
    assert patience >= grace + 40, "the last scrape of a run's metrics may take 35 s"
    assert pod["terminationGracePeriodSeconds"] >= patience + 30
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) == patience
    assert variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "0"
    for job in rendered.of_kind("Job"):
        pod = job["spec"]["template"]["spec"]
        variables = {variable["name"]: variable.get("value") for variable in pod["containers"][0]["env"]}
        assert patience < int(variables["STOP_SECONDS"]) < pod["terminationGracePeriodSeconds"]


def test_ray_reads_the_variable_that_is_set() -> None:
    ray = pytest.importorskip("ray")
    supervisor = Path(ray.__file__).parent / "dashboard" / "modules" / "job" / "job_supervisor.py"
    assert '"RAY_JOB_STOP_WAIT_TIME_S"' in supervisor.read_text()


def test_a_worker_gets_its_time_however_ray_answers(tmp_path: Path) -> None:
    """The worker's hook with a stand-in for `ray` that takes too long, or fails."""
    for body in (f"sleep {HOUR}", "exit 1"):
        program = tmp_path / "ray"
        program.write_text(f"#!/bin/bash\n{body}\n")
        program.chmod(0o755)
        values = merged(value_set("minimal"), {"worker": {"drainSeconds": 1}})
        container = render(values).cluster_spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
        began = time.monotonic()
        process = subprocess.Popen(
            container["lifecycle"]["preStop"]["exec"]["command"],
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            start_new_session=True,
        )
        try:
            assert process.wait(SOON) == 0
            assert time.monotonic() - began >= 1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
