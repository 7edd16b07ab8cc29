"""A ``consistory-ray render`` that is a process of its own, to be disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from consistory_ray.output.index.parts import read_parts
from consistory_ray.output.run_record import read_run_record
from consistory_ray.output.storage import open_output
from consistory_ray.testing import read_trace
from tests.patience import PATIENCE, SOON

FAKE = "tests.chaos.witness:Witness"
ASSETS, SCENES = 24, 20


class Render:
    """A running ``consistory-ray render``.

    Args:
        job: the job file.
        out: the output.
        folder: scratch, with the renderer's trace.
        arguments: further ones.
        fake: options of the fake renderer.
    """

    def __init__(self, job: Path, out: Path, folder: Path, *arguments: str, **fake: Any) -> None:
        (folder / "trace").mkdir(parents=True, exist_ok=True)
        self.out, self.trace, self._log = out, folder / "trace", folder / "render.log"
        options = json.dumps({"trace": str(self.trace)} | fake)
        command = [sys.executable, "-m", "consistory_ray.cli", "render", str(job), "-o", str(out), "--no-gallery"]
        command += ["--workers", "1", "--cpus-per-worker", "1", "--batch-size", "2"]
        command += ["--renderer", FAKE, "--renderer-options", options, *arguments]
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment = inherited | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def text(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    def wait_until(self, there: Callable[[], bool]) -> None:
        """Wait for something that it does."""
        deadline = time.monotonic() + PATIENCE
        while not there():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.text()}"
            assert time.monotonic() < deadline, f"it took too long:\n{self.text()}"
            time.sleep(0.05)

    def batches(self) -> int:
        """How many batches of scenes are finished."""
        return sum(span.kind == "scenes" for span in read_trace(self.trace))

    def is_at(self, word: str) -> bool:
        """Whether some worker is at this, see :class:`~tests.chaos.witness.Witness`."""
        return any(path.read_text().strip() == word for path in self.trace.glob("*.word"))

    def made(self) -> dict[str, int]:
        """How many pictures of each kind were rendered, by whichever process."""
        spans = [span for span in read_trace(self.trace) if span.kind != "load"]
        return {kind: sum(span.assets for span in spans if span.kind == kind) for kind in ("anchors", "scenes")}

    def terminate(self) -> int:
        """Send SIGTERM to the process, as ``kill`` and Kubernetes do; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SOON)

    def end(self) -> None:
        """Whatever is left of it and of a Ray that it has started."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if os.getsid(process.pid) == self.process.pid:
                    process.kill()
        self.process.kill()
        self.process.wait()


StartRender = Callable[..., Render]


def pictures(out: Path) -> set[str]:
    """Paths of all picture files, relative to the output."""
    return {str(path.relative_to(out)) for folder in ("anchors", "images") for path in (out / folder).rglob("*.png")}


def check_resumed(render: Render) -> None:
    """All is there, and no picture was rendered twice."""
    assert render.process.wait(PATIENCE) == 0, render.text()
    rows = read_parts(open_output(str(render.out)))[0].to_pylist()
    assert len(rows) == ASSETS and {row["path"] for row in rows} == pictures(render.out)
    assert render.made() == {"anchors": ASSETS - SCENES, "scenes": SCENES}
    record = read_run_record(str(render.out))
    assert record is not None and record.state == "complete"
