"""Submits a run to a long-lived Ray cluster, follows its log, and ends with its result.

Usage: submit.py COMMAND. The environment says where and how often: RAY_API_SERVER_ADDRESS (the head's dashboard),
SUBMISSION_ID (the run's name), ATTEMPTS, and JOB_FILE (brought into the folder in which the command runs; unset if the
command names a URL). A pod that was evicted and started again goes on following the run that is under way; only a run
that failed is submitted again, and it then renders what is missing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ray.job_submission import JobStatus, JobSubmissionClient

T = TypeVar("T")


def patiently(what: str, action: Callable[[], T], patience: float = 600.0) -> T:
    """The action's result, once the head is ready for it; the Ray cluster may just have been created."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return action()
        except (OSError, RuntimeError) as error:
            # A refusal, such as a wrong token, will not pass; a head that is still starting says 5xx or nothing.
            passing = isinstance(error, OSError) or "status code 5" in str(error)
            if not passing or time.monotonic() > deadline:
                raise
            print(f"waiting to {what}: {str(error).splitlines()[0]}", flush=True)
            time.sleep(5)


async def follow(client: JobSubmissionClient, submission_id: str) -> None:
    """Prints the run's log until the run ends or the connection does."""
    async for lines in client.tail_job_logs(submission_id):
        print(lines, end="", flush=True)


def wait(client: JobSubmissionClient, submission_id: str) -> JobStatus:
    """Follows the run to its end, through broken connections."""
    while not (status := patiently("ask", partial(client.get_job_status, submission_id))).is_terminal():
        try:
            asyncio.run(follow(client, submission_id))
        except (OSError, RuntimeError) as error:
            print(f"log lost, going on: {error}", flush=True)
        time.sleep(2)
    return status


def folder() -> dict[str, str]:
    """The runtime environment that brings the job file along, as a folder of its own: Ray takes it as a whole."""
    if "JOB_FILE" not in os.environ:
        return {}
    copy = tempfile.mkdtemp(prefix="job-")
    shutil.copy(os.environ["JOB_FILE"], copy)
    return {"working_dir": copy}


def main() -> int:
    (command,) = sys.argv[1:]
    name = os.environ["SUBMISSION_ID"]
    address = os.environ["RAY_API_SERVER_ADDRESS"]
    client = patiently(f"connect to {address}", lambda: JobSubmissionClient(address))
    for attempt in range(1, int(os.environ["ATTEMPTS"]) + 1):
        submission_id = f"{name}-{attempt}"
        known = {job.submission_id for job in patiently("ask", client.list_jobs)}
        if submission_id not in known:
            submit = partial(client.submit_job, entrypoint=command, submission_id=submission_id, runtime_env=folder())
            patiently("submit", submit)
            print(f"{submission_id}: submitted", flush=True)
        status = wait(client, submission_id)
        print(f"{submission_id}: {status.value}", flush=True)
        if status == JobStatus.SUCCEEDED:
            return 0
        if status == JobStatus.STOPPED:
            return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
