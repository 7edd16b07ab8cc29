"""The script that submits a run to a long-lived Ray cluster."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import pytest

from tests.helm.rendering import CHART, render, value_set

pytest.importorskip("ray.job_submission")
SCRIPT = CHART / "files" / "submit.py"


@pytest.fixture
def submit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("submit", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class State:
    """A run as the Jobs API shows it."""

    submission_id: str
    status: Any
    driver_exit_code: int | None = None
    metadata: dict[str, str] | None = None


class Cluster:
    """Stands in for the Jobs API: runs end as `outcomes` says, in order of submission; numbers are exit codes."""

    def __init__(
        self, submit: ModuleType, outcomes: list[str | int], known: dict[str, str | int] | None = None
    ) -> None:
        self.status = submit.JobStatus
        self.outcomes = list(outcomes)
        self.jobs: dict[str, State] = {}
        self.submitted: list[str] = []
        self.stopped: list[str] = []
        self.looks_until_stopped = 1
        for name, outcome in (known or {}).items():
            self.jobs[name] = State(name, self.status("RUNNING"), metadata={submit.RELEASE_KEY: "book"})
            self.end(name, outcome)

    def end(self, name: str, outcome: str | int) -> None:
        job = self.jobs[name]
        if outcome == "LOST":  # with the head
            self.jobs.clear()
        elif isinstance(outcome, int):
            job.status, job.driver_exit_code = self.status("FAILED"), outcome
        else:
            job.status = self.status(outcome)

    def list_jobs(self) -> list[State]:
        return [replace(job) for job in self.jobs.values()]

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, str], metadata: Any) -> None:
        assert runtime_env == {}
        assert entrypoint == "consistory-ray render …"
        assert submission_id not in self.jobs
        assert all(job.status.is_terminal() for job in self.jobs.values()), "two runs at the same time"
        self.submitted.append(submission_id)
        self.jobs[submission_id] = State(submission_id, self.status("RUNNING"), metadata=metadata)

    def get_job_info(self, submission_id: str) -> State:
        if submission_id not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {submission_id} does not exist.")
        if submission_id in self.stopped:
            self.looks_until_stopped -= 1
            if self.looks_until_stopped < 0:
                self.end(submission_id, "STOPPED")
        return replace(self.jobs[submission_id])

    def stop_job(self, submission_id: str) -> bool:
        self.stopped.append(submission_id)
        return True

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        yield "half of the log\n"
        if not self.outcomes:
            raise ConnectionError("the head is gone")
        outcome = self.outcomes.pop(0)
        if outcome == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(10)
        self.end(submission_id, outcome)


@pytest.fixture
def run(submit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def call(cluster: Cluster, attempts: int = 3) -> int:
        monkeypatch.setattr(submit, "JobSubmissionClient", lambda address: cluster)
        monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)
        monkeypatch.setattr(sys, "argv", ["submit.py", "consistory-ray render …"])
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
        monkeypatch.setenv("RELEASE", "book")
        monkeypatch.setenv("SUBMISSION_ID", "book-1a2b")
        monkeypatch.setenv("ATTEMPTS", str(attempts))
        monkeypatch.setenv("STOP_SECONDS", "60")
        monkeypatch.delenv("JOB_FILE", raising=False)
        code: int = submit.main()
        return code

    before = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, before)


def test_a_run_that_succeeds_is_submitted_once(
    submit: ModuleType, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(submit, ["SUCCEEDED"])
    assert run(cluster) == 0
    assert cluster.submitted == ["book-1a2b-1"]
    assert "half of the log" in capsys.readouterr().out


@pytest.mark.parametrize("outcome", [3, 75, -9, 137, "FAILED", "LOST"])
def test_a_run_that_could_not_go_on_is_submitted_again_under_a_new_name(
    submit: ModuleType, run: Any, outcome: str | int
) -> None:
    cluster = Cluster(submit, [outcome, "SUCCEEDED"])
    assert run(cluster) == 0
    assert cluster.submitted == ["book-1a2b-1", "book-1a2b-2"]


@pytest.mark.parametrize("code", [1, 2])
def test_a_run_that_would_end_the_same_way_is_not_repeated(
    submit: ModuleType, run: Any, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(submit, [code, "SUCCEEDED"])
    assert run(cluster) == code
    assert cluster.submitted == ["book-1a2b-1"]
    assert f"book-1a2b-1: FAILED, exit code {code}" in capsys.readouterr().out
    assert run(Cluster(submit, [], {"book-1a2b-1": code})) == code


@pytest.mark.parametrize(("outcome", "code"), [("FAILED", 1), (3, 3), (75, 75), (-9, 137)])
def test_after_the_last_attempt_it_ends_with_the_runs_exit_code(
    submit: ModuleType, run: Any, outcome: str | int, code: int
) -> None:
    cluster = Cluster(submit, [outcome] * 5)
    assert run(cluster, attempts=2) == code
    assert len(cluster.submitted) == 2


def test_a_submitter_that_starts_again_goes_on_following_the_run_under_way(submit: ModuleType, run: Any) -> None:
    cluster = Cluster(submit, ["SUCCEEDED"], {"book-1a2b-1": 3, "book-1a2b-2": "RUNNING"})
    assert run(cluster) == 0
    assert cluster.submitted == [] and cluster.stopped == []


def test_attempts_of_pods_before_count(submit: ModuleType, run: Any) -> None:
    cluster = Cluster(submit, [], {"book-1a2b-1": 3, "book-1a2b-2": "STOPPED", "book-1a2b-3": 75})
    assert run(cluster, attempts=2) == 75
    assert cluster.submitted == []


def test_a_run_that_was_stopped_by_hand_is_not_started_again(submit: ModuleType, run: Any) -> None:
    cluster = Cluster(submit, ["STOPPED"])
    assert run(cluster) == 130
    assert len(cluster.submitted) == 1


def test_sigterm_stops_the_run_and_the_next_pod_takes_it_up_again(submit: ModuleType, run: Any) -> None:
    cluster = Cluster(submit, ["SIGTERM"])
    with pytest.raises(SystemExit) as ending:
        run(cluster)
    assert ending.value.code == 143
    assert cluster.stopped == ["book-1a2b-1"]
    assert cluster.jobs["book-1a2b-1"].status == cluster.status("STOPPED"), "it did not wait"
    cluster.outcomes = ["SUCCEEDED"]
    assert run(cluster, attempts=1) == 0
    assert cluster.submitted == ["book-1a2b-1", "book-1a2b-2"]


def test_other_runs_of_the_release_end_before_this_one_starts(submit: ModuleType, run: Any) -> None:
    cluster = Cluster(submit, ["SUCCEEDED"], {"book-0000-1": 3, "book-0000-2": "RUNNING", "by-hand": "SUCCEEDED"})
    cluster.looks_until_stopped = 5
    assert run(cluster) == 0
    assert cluster.stopped == ["book-0000-2"]
    assert cluster.submitted == ["book-1a2b-1"]


def test_what_is_not_the_releases_is_left_alone(submit: ModuleType) -> None:
    running = submit.JobStatus("RUNNING")
    jobs = [
        State("a", running, metadata={submit.RELEASE_KEY: "book"}),
        State("b", running, metadata={submit.RELEASE_KEY: "other"}),
        State("c", running),
        State("d", submit.JobStatus("STOPPED"), metadata={submit.RELEASE_KEY: "book"}),
    ]
    assert submit.running(jobs, "book") == {"a"}


def test_a_run_that_does_not_stop_is_waited_for_no_longer_than_it_may(
    submit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)
    cluster = Cluster(submit, [], {"book-0000-1": "RUNNING"})
    cluster.looks_until_stopped = 10**9
    submit.stop(cluster, ["book-0000-1"], 0.2)
    assert "book-0000-1: did not stop within 0.2 s" in capsys.readouterr().out


def test_a_broken_log_is_not_a_broken_run(
    submit: ModuleType, run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    cluster = Cluster(submit, [])

    async def broken(submission_id: str) -> AsyncIterator[str]:
        cluster.end(submission_id, "SUCCEEDED")
        raise aiohttp.ServerDisconnectedError
        yield ""

    monkeypatch.setattr(cluster, "tail_job_logs", broken)
    assert run(cluster) == 0
    assert "log lost, going on" in capsys.readouterr().out


def test_a_head_that_refuses_is_told_from_a_run_that_failed(
    submit: ModuleType, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(submit, [])

    def refuse() -> list[State]:
        raise RuntimeError("Request failed with status code 403: Forbidden")

    cluster.list_jobs = refuse  # type: ignore[method-assign]
    assert run(cluster) == submit.EXIT_UNAVAILABLE
    assert "403" in capsys.readouterr().err


def test_the_job_is_not_repeated_for_what_another_pod_would_report_again(submit: ModuleType) -> None:
    job = render(value_set("s3")).one("Job")["spec"]
    fail, ignore = job["podFailurePolicy"]["rules"]
    assert fail["action"] == "FailJob" and fail["onExitCodes"]["operator"] == "In"
    assert fail["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    final = set(fail["onExitCodes"]["values"])
    assert final >= {*submit.SAME_AGAIN, submit.EXIT_STOPPED}
    assert not final & {0, submit.EXIT_UNAVAILABLE, submit.EXIT_TERMINATED, 137}
    assert ignore["action"] == "Ignore" and job["template"]["spec"]["restartPolicy"] == "Never"


def test_it_waits_for_a_head_that_is_still_starting(submit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    troubles: list[Exception] = [
        ConnectionError("refused\nlong explanation"),
        RuntimeError("Request failed with status code 500: No available agent to submit job"),
    ]

    def action() -> str:
        if troubles:
            raise troubles.pop()
        return "done"

    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)
    assert submit.patiently("connect", action) == "done"
    troubles.append(ConnectionError("refused"))
    with pytest.raises(ConnectionError):
        submit.patiently("connect", action, patience=-1)


def test_a_refusal_is_not_waited_for(submit: ModuleType) -> None:
    def action() -> None:
        raise RuntimeError("Request failed with status code 403: Forbidden")

    with pytest.raises(RuntimeError, match="403"):
        submit.patiently("connect", action)
