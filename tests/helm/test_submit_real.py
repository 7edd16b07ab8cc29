"""Submitting and stopping runs on a real Ray head, with token authentication."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from consistory_ray.jobs.job import RenderJob
from tests.helm.rendering import CHART
from tests.operations.heads import RAY, ROOT
from tests.patience import PATIENCE

pytest.importorskip("ray.job_submission")
pytestmark = pytest.mark.slow

SUBMIT = CHART / "files" / "submit.py"
HOOK = CHART / "files" / "stop-run.sh"


def free_ports(count: int) -> list[int]:
    """Free ports, below those the kernel hands out and above those of Ray's workers."""
    found: list[int] = []
    start = 20000 + os.getpid() % 10000
    for port in range(start, start + 1000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == count:
            break
    return found


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A head as in the chart; the environment of a submitter."""
    dashboard, gcs, agent, client = free_ports(4)
    # Ray puts sockets there, and the kernel limits their paths to 107 characters.
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "PYTHONPATH": ROOT,
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RELEASE": "book",
        "ATTEMPTS": "1",
        "STOP_SECONDS": "90",
    }
    options = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    options += [f"--ray-client-server-port={client}", f"--temp-dir={scratch}", "--object-store-memory=80000000"]
    with Path(scratch, "head.log").open("w") as log:
        process = subprocess.Popen(
            [*RAY, "start", "--head", "--block", "--num-cpus=1", "--disable-usage-stats", *options],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    yield environment
    os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    shutil.rmtree(scratch, ignore_errors=True)


Submitter = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def submit(head: dict[str, str]) -> Iterator[Submitter]:
    """``submit("name", *words, VARIABLE=…)``: the script, under way."""
    started: list[subprocess.Popen[str]] = []

    def call(name: str, *words: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, SUBMIT, shlex.join(words)],
            env={**head, "SUBMISSION_ID": name, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output, once it has ended."""
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def wait_until(process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert process.poll() is None, ended(process)
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.1)


def test_a_command_is_run_once_with_the_job_file_and_the_token(submit: Submitter, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: storybook")
    code = "import os; print('ran in', os.environ['RAY_AUTH_MODE'], 'with', open('job.yaml').read())"
    words = [sys.executable, "-c", code]
    status, output = ended(submit("book", *words, JOB_FILE=str(tmp_path / "job.yaml")))
    assert status == 0, output
    assert "ran in token with name: storybook" in output and "book-1: SUCCEEDED" in output
    status, output = ended(submit("book", *words))
    assert status == 0 and "submitted" not in output


def test_the_exit_code_is_the_runs(submit: Submitter) -> None:
    status, output = ended(submit("bad", sys.executable, "-c", "raise SystemExit(2)", ATTEMPTS="3"))
    assert status == 2, output
    assert output.count("submitted") == 1


def test_a_stranger_is_refused(submit: Submitter) -> None:
    status, output = ended(submit("stranger", "true", RAY_AUTH_TOKEN="f" * 64))
    assert status == 69
    assert "authenticat" in output.lower() or "403" in output or "401" in output


SLOW_TO_STOP = """\
import pathlib, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(time.monotonic()))
pathlib.Path(sys.argv[1]).touch()
while not asked or time.monotonic() < asked[0] + 8:
    time.sleep(0.1)
pathlib.Path(sys.argv[2]).write_text(str(len(asked)))
"""
"""Needs longer than the three seconds after which Ray kills by default."""


def test_one_run_replaces_another_and_sigterm_stops_it(submit: Submitter, tmp_path: Path) -> None:
    """Both have their time, and are asked once."""
    submitters = []
    for name in ("slow", "next"):
        up = tmp_path / f"{name}-up"
        words = [sys.executable, "-c", SLOW_TO_STOP, str(up), str(tmp_path / f"{name}-over")]
        submitters.append(submit(name, *words))
        wait_until(submitters[-1], up.exists)
    slow, following = submitters
    assert (tmp_path / "slow-over").read_text() == "1", "the run before was killed, or asked twice"
    status, output = ended(slow)
    assert status == 130 and "slow-1: STOPPED" in output
    following.send_signal(signal.SIGTERM)
    status, output = ended(following)
    assert status == 143, output
    assert (tmp_path / "next-over").read_text() == "1", output


class Run:
    """A run of the fake renderer: two anchors, and scenes in batches of two that take some seconds each."""

    def __init__(self, submit: Submitter, job: RenderJob, folder: Path, seconds: float) -> None:
        (folder / "job.json").write_text(job.model_dump_json(exclude_unset=True))
        self.out, self.proc = folder / "out", folder / "proc"
        options = json.dumps({"seconds": seconds, "anchor_seconds": 0.0})
        words = ["consistory-ray", "render", str(folder / "job.json"), "-o", str(self.out), "--address", "auto"]
        words += ["--workers", "1", "--cpus-per-worker", "1", "--batch-size", "2", "--no-gallery"]
        words += ["--renderer", "consistory_ray.testing:FakeRenderer", "--renderer-options", options]
        self.submitter = submit(folder.name, *words)
        wait_until(self.submitter, lambda: self.pictures("anchors") >= 2)
        time.sleep(1)  # a batch of scenes is in hand
        (coordinator,) = [process for process in psutil.process_iter(["cmdline"]) if self._is_coordinator(process)]
        self.proc.mkdir()
        (self.proc / str(coordinator.pid)).symlink_to(f"/proc/{coordinator.pid}")

    def _is_coordinator(self, process: psutil.Process) -> bool:
        words = process.info["cmdline"] or []
        return str(self.out) in words and "consistory-ray" in (Path(word).name for word in words[:2])

    def pictures(self, kind: str = "images") -> int:
        return sum(1 for _ in (self.out / kind).rglob("*.png"))

    def hook(self) -> None:
        """What the head's pod does before it stops; of all processes it sees only this run's."""
        command = ["/bin/bash", "-c", HOOK.read_text(), "stop-run", "60"]
        subprocess.run(command, env={"PATH": "/usr/bin:/bin", "PROC": str(self.proc)}, check=True, timeout=PATIENCE)
        for path in self.proc.glob("*/cmdline"):
            with suppress(OSError):  # gone between two looks
                assert not path.read_text(), "the coordinator is still there"  # unless Ray has yet to reap it

    def state(self) -> str:
        from consistory_ray.output.run_record import read_run_record

        record = read_run_record(str(self.out))
        assert record is not None
        return record.state


def test_a_head_that_stops_lets_the_run_finish_its_batch(
    submit: Submitter, make_job: Callable[..., RenderJob], tmp_path: Path
) -> None:
    """It is for KubeRay to see as a run that failed, and for a new head to resume."""
    run = Run(submit, make_job(subjects=1, scenes=20), tmp_path, seconds=3.0)
    run.hook()
    assert run.state() == "interrupted"
    assert 2 <= run.pictures() < 20
    status, output = ended(run.submitter)
    assert status == 75 and "FAILED, exit code 75" in output


def test_a_run_that_ray_stops_and_whose_head_stops_too_finishes_its_batch(
    submit: Submitter, make_job: Callable[..., RenderJob], tmp_path: Path
) -> None:
    """As when a RayJob is deleted: the coordinator gets one SIGTERM, not two, and no SIGKILL after three seconds."""
    run = Run(submit, make_job(subjects=1, scenes=20), tmp_path, seconds=6.0)
    run.submitter.send_signal(signal.SIGTERM)
    time.sleep(1)
    run.hook()
    assert run.state() == "interrupted"
    assert run.pictures() >= 2, "the batch in hand was given up"
    assert ended(run.submitter)[0] == 143
