"""Addresses at which there is no Ray: told within seconds, before the output is touched."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from consistory_ray.engine.cluster import address
from consistory_ray.engine.cluster.address import check_address
from consistory_ray.engine.coordinator import run_plan
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.outages import with_backoff
from consistory_ray.errors import InputError, StorageError
from consistory_ray.jobs.job import RenderJob
from consistory_ray.plan.plan import make_plan

CLOSED = "127.0.0.1:1"
REFUSED_WITHIN = 50.0
"""Seconds, on a crowded machine; Ray itself would go on trying."""


@pytest.fixture(autouse=True)
def not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process were in no cluster."""
    monkeypatch.setattr(address, "_has_joined", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    "given", [CLOSED, f"ray://{CLOSED}", "no-such-host.invalid:6379", "nonsense", "127.0.0.1", "a:b"]
)
@pytest.mark.parametrize("variable", [False, True])
def test_nobody_there(
    monkeypatch: pytest.MonkeyPatch, make_job: Callable[..., RenderJob], tmp_path: Path, given: str, variable: bool
) -> None:
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", given)
    began = time.monotonic()
    options = RunOptions(address=None if variable else given)
    with pytest.raises(InputError, match="cannot join Ray") as caught:
        run_plan(make_plan(make_job()), str(tmp_path / "out"), options)
    assert time.monotonic() - began < REFUSED_WITHIN
    (problem,) = caught.value.problems
    assert problem.path == ("RAY_ADDRESS" if variable else "address") and problem.value.startswith(f"{given}: ")
    assert not list(tmp_path.rglob("*.json")), "neither lease nor record"


def test_something_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that is open and does not speak as Ray does."""
    monkeypatch.setattr(address, "ANSWER_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        with pytest.raises(InputError, match="it is not Ray"):
            check_address(f"127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - began < REFUSED_WITHIN


def test_retries_do_not_come_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("consistory_ray.engine.outages.time.sleep", slept.append)

    def fail() -> None:
        raise StorageError("503 Slow Down")

    for _ in range(2):
        with pytest.raises(StorageError):
            with_backoff(fail, tries=4, first_delay=1.0)
    first, second = slept[:3], slept[3:]
    assert first != second
    for delays in (first, second):
        assert all(2**n / 2 <= delay <= 2**n * 1.5 for n, delay in enumerate(delays))
