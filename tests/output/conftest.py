"""Stores of three kinds, an S3 server among them, and sample pictures and rows."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from PIL import Image

from consistory_ray.output.assets import encode_png, write_asset
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.storage import OutputStore, open_output


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """A running S3 server with a bucket named ``runs``, as options for the file system."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    open_output("s3://runs", **options).fs.makedirs("runs", exist_ok=True)  # buckets are the process's
    yield options
    server.stop()


@pytest.fixture(params=["local", "s3", "memory"])
def store(request: pytest.FixtureRequest) -> OutputStore:
    """An empty store of each kind."""
    if request.param == "local":
        return open_output(request.getfixturevalue("tmp_path") / "out")
    if request.param == "s3":
        return open_output(f"s3://runs/{uuid.uuid4().hex}", **request.getfixturevalue("s3_options"))
    return open_output(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def local(tmp_path: Path) -> OutputStore:
    """An empty store on the disk."""
    return open_output(tmp_path / "out")


@pytest.fixture(scope="session")
def at_once() -> Callable[[Callable[[int], object]], None]:
    """``at_once(action)``: call ``action(number)`` in eight threads that begin together."""

    def run(action: Callable[[int], object]) -> None:
        barrier = threading.Barrier(8)

        def begin(number: int) -> None:
            barrier.wait()
            action(number)

        threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return run


@pytest.fixture(scope="session")
def parameters() -> Callable[..., dict[str, Any]]:
    """``parameters(3, subject="cat", prompt=...)``: what identifies an asset, its id derived from the number."""

    def make(number: int, **changes: Any) -> dict[str, Any]:
        return {
            "asset_id": hashlib.sha256(str(number).encode()).hexdigest()[:32],
            "kind": "scene",
            "subject": "cat",
            "scene": f"scene-{number}",
            "prompt": f"a cat, number {number}",
            "negative_prompt": None,
            "seed": number,
            "anchor_seeds": [1, 2**40],
            "settings": {"num_inference_steps": 50, "guidance_scale": 5.0},
            "settings_hash": "5" * 64,
            "model": "miniature",
            "model_fingerprint": "f" * 64,
        } | changes

    return make


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """``picture(3, size=(32, 24))``: a picture of one colour derived from the number."""

    def make(number: int, size: tuple[int, int] = (32, 24)) -> Image.Image:
        return Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, number * 13 % 256))

    return make


@pytest.fixture(scope="session")
def render(parameters: Any, picture: Any) -> Callable[..., IndexRow]:
    """``render(store, 3)``: write the picture of an asset and return its row, not yet in the index."""

    def make(store: OutputStore, number: int, size: tuple[int, int] = (32, 24), **changes: Any) -> IndexRow:
        values: Mapping[str, Any] = parameters(number, **changes)
        path = f"images/{values['subject']}/{values['scene']}.png"
        written = write_asset(store, path, encode_png(picture(number, size), values))
        return IndexRow.rendered(values, written, size, seconds=1.5, worker="worker-0")

    return make


@pytest.fixture(scope="session")
def scenario() -> ModuleType:
    """The module of what can be killed at every step."""
    path = Path(__file__).with_name("crash_scenario.py")
    spec = importlib.util.spec_from_file_location("crash_scenario", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kill_at_every_step(tmp_path: Path) -> Callable[[str], list[str]]:
    """``kill_at_every_step("run")``: the folders that a scenario leaves, one for each step at which it was killed."""

    def kill(name: str) -> list[str]:
        command = [sys.executable, str(Path(__file__).with_name("crash_scenario.py")), str(tmp_path / "killed"), name]
        output = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240).stdout
        *crashes, summary = map(json.loads, output.splitlines())
        assert summary["steps"] == len(crashes)
        print(f"{len(crashes)} kills")
        return [crash["folder"] for crash in crashes]

    return kill
