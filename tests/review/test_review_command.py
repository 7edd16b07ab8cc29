"""The command: its link works until Ctrl-C, and what it cannot do is one clear error."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from typing import Any

import pytest
from typer.testing import CliRunner

from consistory_ray.cli.app import app
from consistory_ray.output.decisions import read_decisions
from consistory_ray.output.storage import OutputStore
from consistory_ray.review import server

from .conftest import asset_id


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["review", *words, "--no-browser"])


def test_a_review_until_it_is_interrupted(output: OutputStore) -> None:
    command = [sys.executable, "-m", "consistory_ray.cli", "review", output.url, "--who", "grace", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            told = process.stdout.readline()
            link = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", told)
            assert link and "as grace" in told and len(link.group(2)) >= 32
            wish = {"action": "pick", "picture_id": asset_id(0, 1), "asset_id": asset_id(0, 1), "key": "1"}
            request = urllib.request.Request(
                f"http://127.0.0.1:{link.group(1)}/api/decisions",
                json.dumps({"decisions": [wish]}).encode(),
                {"x-review-token": link.group(2)},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert process.stderr is not None and process.stderr.read() == ""
        finally:
            process.kill()
    assert [(one.action, one.who) for one in read_decisions(output)[0]] == [("pick", "grace")]


def test_without_the_extra_it_says_what_to_install(output: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(server, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    result = run(output.url)
    assert result.exit_code == 2 and "uvicorn is not installed" in result.output
    assert "pip install 'consistory-ray[review]'" in result.output


def test_what_it_refuses(output: OutputStore, tmp_path: Any) -> None:
    nothing = run(str(tmp_path / "nowhere"))
    assert nothing.exit_code == 2 and "nothing was rendered there" in nothing.output
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = run(output.url, "--port", str(taken.getsockname()[1]))
        assert port.exit_code == 2 and "--port" in port.output and "Traceback" not in port.output
    host = run(output.url, "--host", "no.such.host.invalid")
    assert host.exit_code == 2 and "--host" in host.output
    name = run(output.url, "--who", "a\nb")
    assert name.exit_code == 2 and "--who" in name.output
