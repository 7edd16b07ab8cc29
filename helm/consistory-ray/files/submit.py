"""Submits a run to a long-lived Ray cluster, follows its log, and ends with its result.

Usage: submit.py COMMAND. The environment says where and how often: RAY_API_SERVER_ADDRESS (the head's dashboard),
RELEASE and SUBMISSION_ID (whose run it is, and its name), ATTEMPTS, STOP_SECONDS (how long a run may take to stop), and
JOB_FILE (brought into the folder in which the command runs; unset if the command names a URL).

Other runs of the release, which it replaces, are stopped first. Asked to stop by SIGTERM, it stops its run. A pod that
starts again, wherever the one before it ended, follows the run that is under way, or submits it again if it was stopped
or failed; the run then renders what is missing.

Exit codes: those of the run, as its driver gave them; 130 it was stopped by somebody else; 69 the head did not answer
or refused; 143 SIGTERM. Only the last two are worth starting again for.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from types import FrameType
from typing import TypeVar

from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

T = TypeVar("T")

EXIT_FAILED = 1
EXIT_UNAVAILABLE = 69
EXIT_STOPPED = 130
EXIT_TERMINATED = 143
SAME_AGAIN = (1, 2, 76)
"""Exit codes of a run that is not to be repeated: pictures that fail, a job that cannot be used, its money is spent."""

RELEASE_KEY = "consistory-ray/release"
PAUSE_SECONDS = 30
"""Between attempts, so that what was in the way can pass: a head that is going, a lease that runs out."""


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


def look(client: JobSubmissionClient, submission_id: str) -> JobDetails | None:
    """What Ray knows of a run; None if nothing, because its head was replaced."""
    try:
        return patiently("ask", partial(client.get_job_info, submission_id))
    except RuntimeError as error:
        if "status code 404" in str(error):
            return None
        raise


async def follow(client: JobSubmissionClient, submission_id: str) -> None:
    """Prints the run's log until the run ends or the connection does."""
    async for lines in client.tail_job_logs(submission_id):
        print(lines, end="", flush=True)


def wait(client: JobSubmissionClient, submission_id: str) -> JobDetails | None:
    """Follows the run to its end, through broken connections; None if it was lost with its head."""
    while (job := look(client, submission_id)) is not None and not job.status.is_terminal():
        try:
            asyncio.run(follow(client, submission_id))
        except Exception as error:  # aiohttp has kinds of its own; how the run is, is asked for anyway
            print(f"log lost, going on: {error}", flush=True)
        time.sleep(2)
    return job


def stop(client: JobSubmissionClient, submission_ids: Iterable[str], patience: float) -> None:
    """Asks runs to stop and waits, for so many seconds at most, until they have: one at a time may use an output."""
    going = set(submission_ids)
    for name in sorted(going):
        print(f"{name}: asked to stop", flush=True)
        patiently("stop", partial(client.stop_job, name), patience)
    deadline = time.monotonic() + patience
    while going and time.monotonic() < deadline:
        going = {name for name in going if (job := look(client, name)) is not None and not job.status.is_terminal()}
        time.sleep(2)
    for name in sorted(going):
        print(f"{name}: did not stop within {patience:g} s", flush=True)


def running(jobs: Iterable[JobDetails], release: str) -> set[str]:
    """Names of the release's runs that are not over."""
    return {
        job.submission_id
        for job in jobs
        if job.submission_id and not job.status.is_terminal() and (job.metadata or {}).get(RELEASE_KEY) == release
    }


def folder() -> dict[str, str]:
    """The runtime environment that brings the job file along, as a folder of its own: Ray takes it as a whole."""
    if "JOB_FILE" not in os.environ:
        return {}
    copy = tempfile.mkdtemp(prefix="job-")
    shutil.copy(os.environ["JOB_FILE"], copy)
    return {"working_dir": copy}


def exit_code(job: JobDetails | None) -> int:
    """The driver's, in the form a process can end with; 1 if it has none."""
    if job is not None and job.status == JobStatus.SUCCEEDED:
        return 0
    if job is not None and job.status == JobStatus.STOPPED:
        return EXIT_STOPPED
    code = (job and job.driver_exit_code) or EXIT_FAILED
    return code if code > 0 else 128 - code


def run(client: JobSubmissionClient, command: str, name: str, release: str) -> int:
    """Brings the run to its end, in as many attempts as there may be; its exit code."""
    known = {job.submission_id: job for job in patiently("ask", client.list_jobs) if job.submission_id}
    mine = {submission_id for submission_id in known if submission_id.startswith(f"{name}-")}
    stop(client, running(known.values(), release) - mine, float(os.environ["STOP_SECONDS"]))
    number = failures = 0
    while True:
        number += 1
        submission_id = f"{name}-{number}"
        if submission_id in known and known[submission_id].status == JobStatus.STOPPED:
            continue  # with a pod before this one, or by a run that this one replaces again
        if submission_id not in known:
            submit = partial(client.submit_job, entrypoint=command, submission_id=submission_id, runtime_env=folder())
            patiently("submit", partial(submit, metadata={RELEASE_KEY: release}))
            print(f"{submission_id}: submitted", flush=True)
        job = wait(client, submission_id)
        code = exit_code(job)
        print(f"{submission_id}: {'lost' if job is None else job.status.value}, exit code {code}", flush=True)
        if code in (0, EXIT_STOPPED):
            return code
        failures += 1
        if job is not None and job.driver_exit_code in SAME_AGAIN:
            print("the same command would end in the same way; it is not repeated", flush=True)
            return code
        if failures >= int(os.environ["ATTEMPTS"]):
            return code
        if submission_id not in known:
            time.sleep(PAUSE_SECONDS)


def on_sigterm(number: int, frame: FrameType | None) -> None:
    """Leaves whatever is going on; SystemExit is what asyncio lets through."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(EXIT_TERMINATED)


def main() -> int:
    (command,) = sys.argv[1:]
    name, release = os.environ["SUBMISSION_ID"], os.environ["RELEASE"]
    address = os.environ["RAY_API_SERVER_ADDRESS"]
    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        client = patiently(f"connect to {address}", lambda: JobSubmissionClient(address))
        try:
            return run(client, command, name, release)
        except SystemExit:
            mine = {job for job in running(client.list_jobs(), release) if job.startswith(f"{name}-")}
            stop(client, mine, float(os.environ["STOP_SECONDS"]))
            raise
    except (OSError, RuntimeError, RayError) as error:  # a RayError says that the token is wrong
        print(error, file=sys.stderr, flush=True)
        return EXIT_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
