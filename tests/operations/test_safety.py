"""What docs/security.md promises: the token, the allow-list, the ports, and what the log and the display show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from consistory_ray.cli.app import app
from consistory_ray.jobs.allowlist import VARIABLE
from consistory_ray.jobs.job import RenderJob
from tests.operations.heads import ray_head, without_ray

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "cluster" / "compose.yaml").read_text())
SECURITY = (ROOT / "docs" / "security.md").read_text()


def call(*words: object, **environment: str) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env=environment)


@pytest.fixture
def job(make_job: Callable[..., RenderJob], tmp_path: Path) -> Path:
    path = tmp_path / "jobs" / "job.json"
    path.parent.mkdir()
    path.write_text(make_job(subjects=1, scenes=1).model_dump_json(exclude_unset=True))
    return path


# The allow-list


@pytest.mark.parametrize("command", ["validate", "plan", "render", "status", "gallery"])
def test_a_job_from_elsewhere_is_not_even_read(tmp_path: Path, command: str) -> None:
    result = call(command, "/etc/nothing/job.yaml", **{VARIABLE: str(tmp_path)})
    assert result.exit_code == 2
    assert "this place is not allowed here" in result.stderr and str(tmp_path) in result.stderr
    assert "no such file" not in result.stderr


def test_models_and_outputs_from_elsewhere_are_refused(job: Path, tmp_path: Path) -> None:
    allowed = {VARIABLE: f"{job.parent},hf://fake,{tmp_path / 'out'}"}
    assert call("plan", job, "-o", tmp_path / "out" / "run", **allowed).exit_code == 0
    refused = call("plan", job, "-o", tmp_path / "elsewhere", **allowed)
    assert refused.exit_code == 2 and "--output: use a place under" in refused.stderr
    refused = call("validate", job, **{VARIABLE: str(job.parent)})
    assert refused.exit_code == 2 and "model: use a place under" in refused.stderr
    refused = call("status", tmp_path / "elsewhere", **allowed)
    assert refused.exit_code == 2 and "URL-OR-JOB" in refused.stderr


def test_the_chart_and_compose_pass_the_allow_list_on() -> None:
    rendering = pytest.importorskip("tests.helm.rendering")
    values = rendering.merged(
        rendering.value_set("minimal"),
        {
            "run": {"allowedUrls": ["s3://bucket/team", "hf://stabilityai"], "logFormat": "json", "logLevel": "debug"},
            "monitoring": {"pricePerGpuHour": 2.5},
        },
    )
    head = rendering.render(values).cluster_spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    environment = {item["name"]: item.get("value") for item in head["env"]}
    assert environment[VARIABLE] == "s3://bucket/team,hf://stabilityai"
    assert environment["CONSISTORY_PRICE_PER_GPU_HOUR"] == "2.5"
    assert (environment["CONSISTORY_LOG_FORMAT"], environment["CONSISTORY_LOG_LEVEL"]) == ("json", "debug")
    assert {VARIABLE, "CONSISTORY_PRICE_PER_GPU_HOUR"} <= COMPOSE["services"]["head"]["environment"].keys()
    known = {item.envvar for command in _commands() for item in command.params if getattr(item, "envvar", None)}
    passed = {name for name in environment if name.startswith("CONSISTORY_")} - {VARIABLE}
    assert passed <= known, "the command line reads what the chart sets"


def _commands() -> list[object]:
    import typer

    return list(typer.main.get_command(app).commands.values())  # type: ignore[attr-defined]


# Logs


@pytest.mark.usefixtures("ray_cluster")
def test_json_logs_are_json_and_nothing_else(job: Path, tmp_path: Path) -> None:
    words = ["render", job, "-o", tmp_path / "out", "--workers", 1, "--cpus-per-worker", 1, "--log-format", "json"]
    result = call(*words, "--no-gallery", "--renderer", "consistory_ray.testing:FakeRenderer")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    done = [line for line in lines if line["message"].endswith("is done")]
    assert len(done) == 3
    assert all({"run", "subject", "asset", "worker", "attempt"} <= line.keys() for line in done)
    assert lines[-1]["message"] == "the run is complete"

    result = call("render", tmp_path / "nothing.yaml", "--log-format", "json")
    (line,) = [json.loads(line) for line in result.stderr.splitlines()]
    assert result.exit_code == 2 and line["level"] == "error" and "no such file" in str(line["problems"])


@pytest.mark.usefixtures("ray_cluster")
def test_watching_a_finished_run_ends_with_its_exit_code(job: Path, tmp_path: Path) -> None:
    words = ["render", job, "-o", tmp_path / "out", "--workers", 1, "--cpus-per-worker", 1, "--no-gallery"]
    fake = ["--renderer", "consistory_ray.testing:FakeRenderer", "--renderer-options", '{"faults": {"scene-0": "bad"}}']
    assert call(*words, *fake).exit_code == 1
    result = call("status", tmp_path / "out", "--watch")
    assert result.exit_code == 1
    assert "test: failed, 2/3 pictures (66 %), 1 failed (1 bad-asset)" in result.stdout


# Ports and tokens


def test_chart_and_compose_ask_for_a_token_and_the_page_says_so() -> None:
    assert COMPOSE["services"]["head"]["environment"]["RAY_AUTH_MODE"] == "token"
    values = yaml.safe_load((ROOT / "helm" / "consistory-ray" / "values.yaml").read_text())
    assert values["ray"]["auth"]["mode"] == "token"
    assert "RAY_AUTH_MODE" in SECURITY


def test_every_published_port_is_on_the_page() -> None:
    published = {
        port.split(":")[1] for service in COMPOSE["services"].values() for port in service.get("ports", [])
    } | {"9464", "6379", "10001"}
    listed = set(re.findall(r"^\| (\d+)", SECURITY, flags=re.M))
    assert published <= listed


def test_metrics_are_for_this_machine_unless_said_otherwise() -> None:
    (render,) = [command for command in _commands() if command.name == "render"]  # type: ignore[attr-defined]
    defaults = {item.name: item.default for item in render.params}  # type: ignore[attr-defined]
    assert (defaults["metrics_host"], defaults["metrics_port"]) == ("127.0.0.1", None)


@pytest.fixture(scope="module")
def guarded_head() -> Iterator[tuple[str, str]]:
    """A real Ray head with token authentication; its address and its token."""
    with ray_head() as head:
        yield head.address, head.token


def _join(address: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A client in a process of its own."""
    code = f"""
import ray
ray.init(address={address!r}, log_to_driver=False)
print("joined", ray.cluster_resources()["CPU"])
"""
    command = [sys.executable, "-c", code]
    environment = {**without_ray(), "HOME": str(home), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.slow
def test_a_client_without_the_token_is_refused(guarded_head: tuple[str, str], tmp_path: Path) -> None:
    address, token = guarded_head
    strangers = ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64})
    with ThreadPoolExecutor(2) as pool:  # they wait rather than work
        refused = list(pool.map(lambda environment: _join(address, tmp_path, **environment), strangers))
    for environment, stranger in zip(strangers, refused, strict=True):
        assert stranger.returncode != 0 and "joined" not in stranger.stdout, environment
        assert "Failed to connect to Ray cluster" in stranger.stderr, stranger.stderr
    welcome = _join(address, tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    assert "joined 1.0" in welcome.stdout, welcome.stdout + welcome.stderr  # so the head was there all the time


# A Ray that we start

STRANGER = """
import json, sys, urllib.error, urllib.request
from concurrent.futures import ThreadPoolExecutor
import grpc
from ray._raylet import GcsClient

host, gcs, ports, methods = json.loads(sys.stdin.read())
found = {"gcs": "", "http": {}, "grpc": {}}
try:
    client = GcsClient(address=f"{host}:{gcs}")
    client.internal_kv_put(b"stranger", b"1", True, b"fun")
    found["gcs"] = f"{len(client.internal_kv_keys(b'', b'fun'))} keys"
except Exception as error:
    found["gcs"] = type(error).__name__
def ask(port):
    channel = grpc.insecure_channel(f"{host}:{port}")
    try:
        grpc.channel_ready_future(channel).result(timeout=3)
    except grpc.FutureTimeoutError:
        for path in ("api/job_agent/jobs/", "api/jobs/", "get_or_create_runtime_env"):
            request = urllib.request.Request(f"http://{host}:{port}/{path}", data=b'{"entrypoint": "id"}')
            request.add_header("Content-Type", "application/json")
            try:
                status = urllib.request.urlopen(request, timeout=5).status
            except urllib.error.HTTPError as error:
                status = error.code
            except OSError as error:
                status = type(error).__name__
            found["http"].setdefault(port, []).append(status)
        return
    for method in methods:
        try:
            channel.unary_unary(f"/ray.rpc.{method}")(b"", timeout=5)
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
        found["grpc"].setdefault(port, []).append(code)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(ask, ports))
print(json.dumps(found))
"""
METHODS = [
    "NodeManagerService/RequestWorkerLease",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/Push",
    "CoreWorkerService/PushTask",
    "CoreWorkerService/GetCoreWorkerStats",
    "InternalKVGcsService/InternalKVKeys",
    "InternalKVGcsService/InternalKVPut",
    "JobInfoGcsService/GetAllJobInfo",
    "ReporterService/GetTraceback",
]


def _listening() -> dict[int, str]:
    """Ports on which this process's Ray is open to other machines, and whose they are."""
    import psutil  # type: ignore[import-untyped]

    found = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        for connection in process.net_connections("tcp"):
            if connection.status == "LISTEN" and not connection.laddr.ip.startswith("127."):
                found[connection.laddr.port] = f"{process.name()} {' '.join(process.cmdline())}"
    return found


def _ask(host: str, gcs: int, ports: list[int], **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", STRANGER],
        input=json.dumps([host, gcs, ports, METHODS]),
        env=without_ray() | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.usefixtures("ray_cluster")
def test_a_ray_that_we_start_refuses_strangers_on_every_port() -> None:
    """Over the machine's outer address: its key store, its nodes, its workers, its job interface; metrics are open."""
    import ray

    host, _, port = str(ray.get_runtime_context().gcs_address).rpartition(":")
    listening = _listening()
    assert int(port) in listening
    token = os.environ["RAY_AUTH_TOKEN"]  # for what the tests start, see the fixture
    disabled, wrong = {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    for environment in ({}, disabled, wrong):
        found = _ask(host, int(port), list(listening) if not environment else [], **environment)
        assert found["gcs"] == "AuthenticationError", environment
        for number, codes in found["grpc"].items():
            assert "UNAUTHENTICATED" in codes, (listening[int(number)], codes)
            assert set(codes) <= {"UNAUTHENTICATED", "UNIMPLEMENTED"}, (listening[int(number)], codes)
        for number, statuses in found["http"].items():
            assert set(statuses) <= {401, 405}, (listening[int(number)], statuses)  # 405: metrics, which are read only
        if not environment:
            assert len(found["grpc"]) >= 4 and found["http"], found
    assert _ask(host, int(port), [], RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)["gcs"].endswith(" keys")
    assert not any(token in words for words in listening.values())
