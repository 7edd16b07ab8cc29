"""The script that submits a run to a long-lived Ray cluster."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.helm.rendering import CHART

pytest.importorskip("ray.job_submission")
SCRIPT = CHART / "files" / "submit.py"


@pytest.fixture
def submit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("submit", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Cluster:
    """Stands in for the Jobs API: runs end as `outcomes` says, in order of submission."""

    def __init__(self, submit: ModuleType, outcomes: list[str], known: dict[str, str] | None = None) -> None:
        self.status = submit.JobStatus
        self.outcomes = list(outcomes)
        self.states = dict(known or {})
        self.submitted: list[str] = []

    def list_jobs(self) -> list[Any]:
        return [SimpleNamespace(submission_id=name) for name in self.states]

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, str]) -> None:
        assert runtime_env == {}
        assert entrypoint == "consistory-ray render …"
        self.submitted.append(submission_id)
        self.states[submission_id] = "RUNNING"

    def get_job_status(self, submission_id: str) -> Any:
        return self.status(self.states[submission_id])

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        yield "half of the log\n"
        if not self.outcomes:
            raise ConnectionError("the head is gone")
        self.states[submission_id] = self.outcomes.pop(0)


@pytest.fixture
def run(submit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(cluster: Cluster, attempts: int = 3) -> int:
        monkeypatch.setattr(submit, "JobSubmissionClient", lambda address: cluster)
        monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(sys, "argv", ["submit.py", "consistory-ray render …"])
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
        monkeypatch.setenv("SUBMISSION_ID", "book-1a2b")
        monkeypatch.setenv("ATTEMPTS", str(attempts))
        code: int = submit.main()
        return code

    return call


def test_a_run_that_succeeds_is_submitted_once(
    submit: ModuleType, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(submit, ["SUCCEEDED"])
    assert run(cluster) == 0
    assert cluster.submitted == ["book-1a2b-1"]
    assert "half of the log" in capsys.readouterr().out


def test_a_failed_run_is_submitted_again_under_a_new_name(submit: ModuleType, run: Any) -> None:
    cluster = Cluster(submit, ["FAILED", "SUCCEEDED"])
    assert run(cluster) == 0
    assert cluster.submitted == ["book-1a2b-1", "book-1a2b-2"]


def test_after_the_last_attempt_it_fails(submit: ModuleType, run: Any) -> None:
    cluster = Cluster(submit, ["FAILED"] * 5)
    assert run(cluster, attempts=2) == 1
    assert len(cluster.submitted) == 2


def test_an_evicted_submitter_goes_on_following_the_run_under_way(submit: ModuleType, run: Any) -> None:
    cluster = Cluster(submit, ["SUCCEEDED"], {"book-1a2b-1": "FAILED", "book-1a2b-2": "RUNNING"})
    assert run(cluster) == 0
    assert cluster.submitted == []


def test_a_run_that_was_stopped_by_hand_is_not_started_again(submit: ModuleType, run: Any) -> None:
    cluster = Cluster(submit, ["STOPPED"])
    assert run(cluster) == 130
    assert len(cluster.submitted) == 1


def test_it_waits_for_a_head_that_is_still_starting(submit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    troubles: list[Exception] = [
        ConnectionError("refused\nlong explanation"),
        RuntimeError("Request failed with status code 500: No available agent to submit job"),
    ]

    def action() -> str:
        if troubles:
            raise troubles.pop()
        return "done"

    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)
    assert submit.patiently("connect", action) == "done"
    troubles.append(ConnectionError("refused"))
    with pytest.raises(ConnectionError):
        submit.patiently("connect", action, patience=-1)


def test_a_refusal_is_not_waited_for(submit: ModuleType) -> None:
    def action() -> None:
        raise RuntimeError("Request failed with status code 403: Forbidden")

    with pytest.raises(RuntimeError, match="403"):
        submit.patiently("connect", action)


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


@pytest.mark.slow
def test_against_a_real_head_with_a_token(tmp_path: Path) -> None:
    """A real Ray head with token authentication: the script runs a command there, a stranger may not."""
    dashboard, gcs, agent, client = free_ports(4)
    # Ray puts sockets there, and the kernel limits their paths to 107 characters.
    scratch = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_raylet_start_wait_time_s": "120",
        "SUBMISSION_ID": "book",
        "ATTEMPTS": "2",
    }
    ports = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command = [
        "ray",
        "start",
        "--head",
        "--block",
        "--num-cpus=1",
        "--disable-usage-stats",
        f"--temp-dir={scratch}",
        *ports,
    ]
    command += ["--object-store-memory=80000000", f"--ray-client-server-port={client}"]
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        (tmp_path / "job.yaml").write_text("name: storybook")
        environment["JOB_FILE"] = str(tmp_path / "job.yaml")
        code = "import os; print('ran in', os.environ['RAY_AUTH_MODE'], 'with', open('job.yaml').read())"
        words = shlex.join([sys.executable, "-c", code])
        done = subprocess.run(
            [sys.executable, SCRIPT, words], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "head.log").read_text()
        assert "ran in token with name: storybook" in done.stdout and "book-1: SUCCEEDED" in done.stdout
        again = subprocess.run(
            [sys.executable, SCRIPT, words], env=environment, capture_output=True, text=True, timeout=120
        )
        assert again.returncode == 0 and "submitted" not in again.stdout
        stranger = {**environment, "RAY_AUTH_TOKEN": "f" * 64, "SUBMISSION_ID": "stranger"}
        refused = subprocess.run(
            [sys.executable, SCRIPT, "true"], env=stranger, capture_output=True, text=True, timeout=120
        )
        assert refused.returncode != 0
        assert "authenticat" in refused.stderr.lower() or "403" in refused.stderr or "401" in refused.stderr
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        deadline = time.monotonic() + 30
        while head.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        if head.poll() is None:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()
        shutil.rmtree(scratch, ignore_errors=True)
