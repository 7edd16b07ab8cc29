"""Outputs to look at, with takes, failures and scores, and the server as it runs for people."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from PIL import Image
from starlette.testclient import TestClient

from consistory_ray.output.assets import encode_png, write_asset
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.review.app import make_app

TOKEN = "the-token-of-these-tests"
HOSTS = frozenset({"localhost"})


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """A running S3 server with a bucket named ``reviews``, as options for the file system."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "test", "secret": "test", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    open_output("s3://reviews", **options).fs.mkdir("reviews")  # buckets are those of the whole process
    yield options
    server.stop()


def asset_id(subject: int, scene: int, take: int = 1) -> str:
    """The id of a take of a scene."""
    return f"{subject:04x}{scene + 1:04x}{take:04x}".ljust(32, "a")


@pytest.fixture(scope="session")
def row() -> Callable[..., IndexRow]:
    """``row(store, subject, scene, take)``: write a take's picture and return its row, not yet in the index."""

    def make(store: OutputStore, subject: int, scene: int, take: int = 1, side: int = 48, **changes: Any) -> IndexRow:
        name = f"scene-{scene}" if scene >= 0 else "anchor-0"
        values: dict[str, Any] = {
            **{"asset_id": asset_id(subject, scene, take), "kind": "scene" if scene >= 0 else "anchor"},
            **{"subject": f"cat-{subject}", "scene": name, "prompt": f"a cat number {subject} at place {scene}"},
            **{"negative_prompt": None, "seed": 7 + take, "anchor_seeds": [1], "settings": {}},
            **{"settings_hash": "5" * 64, "model": "miniature", "model_fingerprint": "f" * 64, "take": take},
            **{"take_of": asset_id(subject, scene) if take > 1 else None},
        } | changes
        if "error" in changes:
            return IndexRow.failed(values, changes["error"], fault=changes["fault"])
        colour = (40 * subject % 256, 60 * (scene + 1) % 256, 80 * take % 256)
        path = f"images/cat-{subject}/{name}.{take}.png"
        written = write_asset(store, path, encode_png(Image.new("RGB", (side, side), colour), values))
        score = changes.get("score")
        made = IndexRow.rendered(values, written, (side, side))
        return replace(made, score=score, scored_by="colours identity 1" if score is not None else None)

    return make


@pytest.fixture
def fill(row: Callable[..., IndexRow]) -> Callable[[OutputStore], OutputStore]:
    """``fill(store)``: three subjects of four scenes; scene 0 has three takes, the last one of cat-2 has failed."""

    def make(store: OutputStore) -> OutputStore:
        with IndexWriter(store) as writer:
            for subject in range(3):
                writer.add(row(store, subject, -1))
                for take in (1, 2, 3):
                    writer.add(row(store, subject, 0, take, score=(0.5, 0.9, 0.7)[take - 1] - subject / 10))
                for scene in (1, 2, 3):
                    failing = (subject, scene) == (2, 3)
                    told = {"error": "out of luck", "fault": "asset"} if failing else {"score": 0.1 * scene}
                    writer.add(row(store, subject, scene, **told))
        return store

    return make


@pytest.fixture
def output(tmp_path: Path, fill: Callable[[OutputStore], OutputStore]) -> OutputStore:
    """A small output on the disk."""
    return fill(open_output(tmp_path / "out"))


@pytest.fixture
def review() -> Callable[..., Any]:
    """``with review(store) as client``: somebody who has the link; ``review(store, token="")`` one who has none."""

    @contextmanager
    def enter(store: OutputStore, token: str = TOKEN, **more: Any) -> Iterator[TestClient]:
        app = make_app(store, TOKEN, HOSTS, who="ada", **more)
        headers = {"x-review-token": token} if token else {}
        with TestClient(app, base_url="http://localhost", headers=headers, raise_server_exceptions=True) as client:
            yield client

    return enter


@pytest.fixture
def served() -> Iterator[Callable[..., str]]:
    """``served(store)``: the link to a review that really runs, on a port of its own."""
    import uvicorn

    running: list[tuple[Any, threading.Thread]] = []

    def start(store: OutputStore, **more: Any) -> str:
        sock = socket.create_server(("127.0.0.1", 0))
        app = make_app(store, TOKEN, HOSTS, who="ada", title="the cats", **more)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        return f"http://127.0.0.1:{sock.getsockname()[1]}/?token={TOKEN}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(30)
