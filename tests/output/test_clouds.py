"""Outputs on Azure and Google Cloud: what is promised of a storage, against servers that speak as theirs do.

Azurite is fetched with ``npx`` where it is not installed; ``fake-gcs-server``, a single program from
https://github.com/fsouza/fake-gcs-server/releases, has to be. Tests are skipped where a server cannot be had.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from consistory_ray.errors import OutputBusyError, StorageError
from consistory_ray.output import driver_files
from consistory_ray.output.files import StoredFile
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.storage import MissingFileError, OutputStore, open_output

pytestmark = pytest.mark.slow

PATIENCE = 300  # seconds: Azurite is 374 packages, fetched once
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # everybody's


@contextmanager
def server(command: list[str], port: int, folder: Path) -> Iterator[None]:
    """A server while it is needed; skips the test where it cannot be started."""
    environment = os.environ | {"npm_config_fetch_retries": "0", "npm_config_update_notifier": "false"}
    log = folder / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        else:
            pytest.skip(f"{command[0]} did not start: {log.read_text(errors='replace')[-300:]}")
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(300)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutputStore]:
    """A container of its own."""
    blob = pytest.importorskip("azure.storage.blob")
    pytest.importorskip("adlfs")
    command = ["azurite-blob"]
    if shutil.which(command[0]) is None:
        command = ["npx", "--yes", "--package=azurite", *command]
    if shutil.which(command[0]) is None:
        pytest.skip("neither azurite-blob nor npx is there")
    port = free_port()
    command += ["--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--blobPort", str(port)]
    with server(command, port, tmp_path_factory.mktemp("azurite")):
        words = {
            "DefaultEndpointsProtocol": "http", "AccountName": ACCOUNT, "AccountKey": KEY,
            "BlobEndpoint": f"http://127.0.0.1:{port}/{ACCOUNT}",
        }  # fmt: skip
        connection = ";".join(f"{name}={value}" for name, value in words.items())
        with blob.BlobServiceClient.from_connection_string(connection) as client:
            client.create_container("runs")
        yield open_output("az://runs/first", connection_string=connection)


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutputStore]:
    """A bucket of its own."""
    core = pytest.importorskip("gcsfs.core")
    program = shutil.which("fake-gcs-server")
    if program is None:
        pytest.skip("fake-gcs-server is not there")
    port = free_port()
    command = [program, "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    with server([*command, "-public-host", f"127.0.0.1:{port}"], port, tmp_path_factory.mktemp("gcs")):
        url = f"http://127.0.0.1:{port}"
        request = urllib.request.Request(f"{url}/storage/v1/b?project=p", json.dumps({"name": "runs"}).encode())
        request.add_header("Content-Type", "application/json")
        urllib.request.urlopen(request, timeout=10).close()
        # the class that gs:// means with GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT=false: the other one asks for the kind of a
        # bucket through gRPC, which such servers do not speak
        yield OutputStore(core.GCSFileSystem(token="anon", endpoint_url=url, use_listings_cache=False), "runs/first")


@pytest.fixture(params=["azure", "google"])
def cloud(request: pytest.FixtureRequest) -> OutputStore:
    """An empty output."""
    first: OutputStore = request.getfixturevalue(request.param)
    return OutputStore(first.fs, f"runs/{uuid.uuid4().hex}")


def test_files_come_and_go(cloud: OutputStore) -> None:
    assert cloud.list_files() == [] == list(cloud.iter_files("images"))
    for path in ("images/a/1.png", "images/b/deep/2.png", "images/here.png", "images-old/3.png"):
        cloud.write_atomic(path, path.encode())
    cloud.write_atomic("images/a/1.png", memoryview(b"another"))
    assert cloud.read("images/a/1.png") == b"another"
    assert cloud.list_files("images")[0] == StoredFile("images/a/1.png", 7)
    assert cloud.list_files()[0].path == "images-old/3.png" and len(cloud.list_files()) == 4
    assert sorted(cloud.iter_files("images"), key=lambda file: file.path) == cloud.list_files("images")
    assert cloud.sha256("images/here.png") == hashlib.sha256(b"images/here.png").hexdigest()
    cloud.copy("images/here.png", "replaced/images/here.png")
    assert cloud.read("replaced/images/here.png") == b"images/here.png"
    cloud.delete("images/a/1.png")
    cloud.delete("images/a/1.png")
    assert [cloud.exists(path) for path in ("images/a/1.png", "images/a", "images/here.png")] == [False, False, True]
    assert "images/a/1.png" not in [file.path for file in cloud.list_files("images")], "no listing is remembered"
    with pytest.raises(MissingFileError, match=r"images/a/1\.png"):
        cloud.read("images/a/1.png")
    assert cloud.sweep_temporaries(0) == 0


def test_unusual_names(cloud: OutputStore) -> None:
    names = ("images/moss-dragon/été 猫.png", "a/..b", "a/b..", "...", "a%2e/x", "a b/c#d?e")
    for path in names:
        cloud.write_atomic(path, path.encode())
        assert cloud.read(path) == path.encode()
    assert {file.path for file in cloud.list_files()} == set(names)


def test_one_of_many_writers_creates(cloud: OutputStore, at_once: Callable[[Callable[[int], object]], None]) -> None:
    assert cloud.create_exclusive("once", b"first")
    assert not cloud.create_exclusive("once", b"second")
    assert cloud.create_exclusive("once", b"first") and cloud.read("once") == b"first"
    won: list[int] = []

    def write(number: int) -> None:
        if cloud.create_exclusive("deep/down/lease", f"writer {number}".encode() * 1000):
            won.append(number)

    at_once(write)
    assert len(won) == 1
    assert cloud.read("deep/down/lease") == f"writer {won[0]}".encode() * 1000


def test_one_run_holds_it(cloud: OutputStore) -> None:
    with Lease.acquire(cloud, "first") as held:
        assert held.renew()
        with pytest.raises(OutputBusyError, match="is held by first"):
            Lease.acquire(cloud, "second")
    Lease.acquire(cloud, "third").release()


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # aiohttp's advice to the drivers
def test_a_large_object_arrives_whole(cloud: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_files, "LARGE", 1 << 20)
    data = np.random.default_rng(0).integers(0, 256, 60_000_001, np.uint8)
    cloud.write_atomic("anchors/cache.safetensors", data.data)
    assert cloud.read("anchors/cache.safetensors") == data.tobytes()


def test_a_bucket_that_is_not_there_is_told(cloud: OutputStore) -> None:
    nowhere = OutputStore(cloud.fs, "no-such-bucket/run")
    with pytest.raises(StorageError, match=r"could not write .*no-such-bucket/run/x"):
        nowhere.write_atomic("x", b"")
