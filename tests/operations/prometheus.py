"""A real Prometheus for tests: started on a free port, asked over HTTP."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.patience import SOON


def free_port() -> int:
    """A port that nobody listens at right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self.port = port

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result of an instant query."""
        asked = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/query?{asked}", timeout=SOON) as answer:
            content = json.load(answer)
        assert content["status"] == "success", content
        return list(content["data"]["result"])

    def total(self, metric: str) -> float:
        """The sum over a metric's series of the last value that each had: the target may be gone by now."""
        result = self.query(f"sum(last_over_time({metric}[15m]))")
        assert result, f"nothing of {metric} was scraped"
        return float(result[0]["value"][1])

    def by(self, label: str, metric: str) -> dict[str, float]:
        """:meth:`total` for each value of a label."""
        result = self.query(f"sum by ({label}) (last_over_time({metric}[15m]))")
        return {item["metric"].get(label, ""): float(item["value"][1]) for item in result}

    def is_ready(self) -> bool:
        """Whether it answers and has begun to look for its target, which takes it some seconds."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/targets", timeout=5) as answer:
                return bool(json.load(answer)["data"]["activeTargets"])
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def running_prometheus(folder: Path, target: int, rules: Path | None = None) -> Iterator[Prometheus]:
    """A Prometheus that scrapes a port of this machine twice a second."""
    binary = shutil.which("prometheus")
    assert binary
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(rules)] if rules else [],
        "scrape_configs": [{"job_name": "run", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [binary, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            server = Prometheus(port)
            deadline = time.monotonic() + SOON
            while not server.is_ready():
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=SOON)
