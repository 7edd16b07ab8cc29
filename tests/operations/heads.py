"""A real ``ray start --head`` with token authentication, in processes of its own."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from tests.operations.prometheus import free_port
from tests.patience import PATIENCE, SOON

START_TRIES = 3
ROOT = str(Path(__file__).parents[2])
RAY = (sys.executable, "-m", "tests.operations.ray_command")
"""With ``ROOT`` for a PYTHONPATH."""


@dataclass(frozen=True)
class Head:
    """A head that runs.

    Attributes:
        address: where it can be joined.
        token: what it asks for.
        process: ``ray start --block``.
    """

    address: str
    token: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """SIGKILL for all of its processes."""
        end(self.process)


@contextmanager
def ray_head(*arguments: str) -> Iterator[Head]:
    """A Ray head with one CPU, started with further arguments."""
    token = secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as home:
        for _ in range(START_TRIES):
            port = free_port()
            environment = {
                **without_ray(),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": token,
                "HOME": home,
                "PYTHONPATH": ROOT,
            }
            command = [*RAY, "start", "--head", f"--port={port}", "--num-cpus=1"]
            command += ["--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={home}/r", "--block"]
            command += ["--object-store-memory=80000000", *arguments]
            log = Path(home, "log")
            with log.open("w") as output:
                process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            try:
                if _has_started(process, log):
                    yield Head(f"127.0.0.1:{port}", token, process)
                    return
            finally:
                end(process)
        raise AssertionError(f"Ray did not start: {log.read_text()[-2000:]}")


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process and all below it."""
    below: list[psutil.Process] = []
    with suppress(psutil.Error):
        below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in below:
        with suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(below, SOON)
    process.wait(timeout=SOON)


def _has_started(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait for the head; False if it gave up, as it does on a busy machine."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if "Ray runtime started" in log.read_text():
            return True
        time.sleep(0.5)
    return False


def without_ray() -> dict[str, str]:
    """The environment without what Ray reads there."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
