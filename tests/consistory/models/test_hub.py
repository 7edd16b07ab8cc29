"""Which files of a hub model are fetched, from a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline

LOAD = """
import sys, torch
from consistory_ray import ConsiStoryPipeline
options = dict(pair.split("=") for pair in sys.argv[2:])
dtype = getattr(torch, sys.argv[1])
print(ConsiStoryPipeline.from_pretrained("acme/tiny", dtype=dtype, device="cpu", **options).fingerprint)
"""


@contextmanager
def hub(files: dict[str, bytes], revisions: set[str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serves a model as the hub does; gives the address, and the names of the files that were fetched."""
    fetched: list[str] = []
    about = {"_id": "1", "id": "acme/tiny", "sha": "a" * 40, "siblings": [{"rfilename": name} for name in files]}
    tree = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]

    class Hub(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            revision, _, name = path.partition("/resolve/")[2].partition("/")
            if revisions is not None and name:
                revisions.add(revision)
            headers = {"X-Repo-Commit": "a" * 40}
            if path.startswith("/api/models/acme/tiny"):
                body = json.dumps(tree if "/tree/" in path else about).encode()
            elif name in files:
                body, headers["ETag"] = files[name], f'"{hashlib.sha1(files[name]).hexdigest()}"'
                fetched.extend([name] if self.command == "GET" else [])
            else:
                body, headers["X-Error-Code"] = b"{}", "EntryNotFound"
            self.send_response(404 if "X-Error-Code" in headers else 200)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", fetched
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "there", "wanted"),
    [
        ("float16", "both", "fp16"),
        ("float32", "both", "plain"),
        ("float16", "plain", "plain"),
        ("float32", "fp16", "fp16"),
    ],
)
def test_one_kind_of_weights_is_fetched(
    diffusers_pipe: StableDiffusionXLPipeline, tmp_path: Path, dtype: str, there: str, wanted: str
) -> None:
    for variant in {"both": (None, "fp16"), "plain": (None,), "fp16": ("fp16",)}[there]:
        diffusers_pipe.save_pretrained(tmp_path / "model", variant=variant)
    files = {path.relative_to(tmp_path / "model").as_posix(): path for path in (tmp_path / "model").rglob("*.*")}
    with hub({name: path.read_bytes() for name, path in files.items() if path.is_file()}) as (address, fetched):
        given = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", LOAD, dtype]
        subprocess.run(command, env={**os.environ, **given}, check=True, capture_output=True, timeout=300)
    weights = {name for name in fetched if name.endswith(".safetensors")}
    assert len(weights) == 4 and {".fp16." in name for name in weights} == {wanted == "fp16"}


@pytest.mark.slow
def test_a_variant_of_a_revision(diffusers_pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    for variant in (None, "fp16"):
        diffusers_pipe.save_pretrained(tmp_path / "model", variant=variant)
    files = {path.relative_to(tmp_path / "model").as_posix(): path for path in (tmp_path / "model").rglob("*.*")}
    revisions: set[str] = set()
    with hub({name: path.read_bytes() for name, path in files.items()}, revisions) as (address, fetched):
        given = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", LOAD, "float32", "variant=fp16", "revision=v2"]
        subprocess.run(command, env={**os.environ, **given}, check=True, capture_output=True, timeout=300)
        missing = [*command[:-2], "variant=int8", "revision=v2"]
        failed = subprocess.run(missing, env={**os.environ, **given}, check=False, capture_output=True, timeout=300)
    weights = {name for name in fetched if name.endswith(".safetensors")}
    assert len(weights) == 4 and all(".fp16." in name for name in weights)
    assert revisions <= {"v2", "a" * 40} and "v2" in revisions
    assert failed.returncode and b"int8" in failed.stderr
