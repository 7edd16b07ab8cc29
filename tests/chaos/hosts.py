"""Helper processes that outlive what is killed: each is a script that takes JSON lines and answers with one each."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
TOKEN = secrets.token_hex(32)
"""Ray listens on every address of the machine: none is started without asking for one."""


def environment() -> dict[str, str]:
    """What every process of the suite runs with; nothing of a Ray that the caller may be joined to."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return inherited | {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "0",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


class Host:
    """One of the scripts beside this file, running.

    Args:
        script: its name.
        arguments: for its command line.
        extra: environment variables.
    """

    def __init__(self, script: str, *arguments: str, extra: Mapping[str, str] | None = None) -> None:
        self.log: IO[bytes] = tempfile.NamedTemporaryFile("w+b", prefix=f"{script}-", suffix=".log")  # noqa: SIM115
        command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self._process = subprocess.Popen(command, env=environment() | dict(extra or {}), **pipes)
        try:
            self.hello = self._answer()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the script's process."""
        return self._process.pid

    def ask(self, **question: Any) -> dict[str, Any]:
        """Send a line and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write((json.dumps(question) + "\n").encode())
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a helper process ended with {self._process.wait()}:\n{self.errors()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def errors(self) -> str:
        """The end of what it wrote to its standard error."""
        return Path(self.log.name).read_text(errors="replace")[-4000:]

    def close(self) -> None:
        """End it: a script ends, and ends what it started, when nobody talks to it any more."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self.log.close()


def serve(hello: Mapping[str, Any], act: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """A script's side: say hello, then answer every line with what ``act`` makes of it, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else prints does not get between the answers

    def answer(values: Mapping[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    answer(hello)
    for line in sys.stdin:
        answer(act(json.loads(line)))
