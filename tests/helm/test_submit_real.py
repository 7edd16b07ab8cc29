"""The script that submits a run, against a real Ray head."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.helm.rendering import CHART

pytest.importorskip("ray.job_submission")
SCRIPT = CHART / "files" / "submit.py"


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


def _stop_and_take_up_again(environment: dict[str, str], folder: Path) -> None:
    """A submitter that gets SIGTERM stops its run, which has its time; another run replaces one that is under way."""
    words = [sys.executable, "-c", SLOW_TO_STOP]
    submitters = []
    for name in ("slow", "next"):
        up, over = folder / f"{name}-up", folder / f"{name}-over"
        submitters.append(
            subprocess.Popen(
                [sys.executable, SCRIPT, shlex.join([*words, str(up), str(over)])],
                env={**environment, "SUBMISSION_ID": name},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        deadline = time.monotonic() + 120
        while not up.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert up.exists(), submitters[-1].communicate()[0] if submitters[-1].poll() is not None else "it did not start"
    slow, following = submitters
    assert (folder / "slow-over").read_text() == "1", "the run before was killed, or asked twice"
    output, _ = slow.communicate(timeout=60)
    assert slow.returncode == 130 and "slow-1: STOPPED" in output
    following.send_signal(signal.SIGTERM)
    output, _ = following.communicate(timeout=90)
    assert following.returncode == 143, output
    assert (folder / "next-over").read_text() == "1", output


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
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
        "RELEASE": "book",
        "SUBMISSION_ID": "book",
        "ATTEMPTS": "2",
        "STOP_SECONDS": "90",
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
        failing = shlex.join([sys.executable, "-c", "raise SystemExit(2)"])
        failed = subprocess.run(
            [sys.executable, SCRIPT, failing],
            env={**environment, "SUBMISSION_ID": "bad"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert failed.returncode == 2, failed.stdout + failed.stderr
        again = subprocess.run(
            [sys.executable, SCRIPT, words], env=environment, capture_output=True, text=True, timeout=120
        )
        assert again.returncode == 0 and "submitted" not in again.stdout
        _stop_and_take_up_again(environment, tmp_path)
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
