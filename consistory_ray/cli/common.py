"""What all commands share: consoles, exit codes, how jobs and outputs are opened."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ParamSpec

import typer

from consistory_ray.engine.running import load
from consistory_ray.engine.stopping import EXIT_MAX_COST, EXIT_RESUME
from consistory_ray.errors import AssetError, ConsistoryError, InputError, MaxCostReached, RunFailed, RunInterrupted
from consistory_ray.guards.redaction import redacted, visible_json
from consistory_ray.guards.terminal import SafeConsole, speaks_unicode
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.jobs.readers import MAX_BYTES, STANDARD_INPUT
from consistory_ray.plan.plan import Plan
from consistory_ray.watch.reports import line, print_problems

if TYPE_CHECKING:
    from consistory_ray.engine.events import RunSummary
    from consistory_ray.output.storage import OutputStore
    from consistory_ray.watch.status import Status

EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_STOPPED = 3
EXIT_STOPPED_WATCHING = 130
EXIT_CODES = {
    0: "All is well.",
    EXIT_FAILED: "It is over, and what failed is listed (or damage is left): the same command would probably end the "
    "same way.",
    EXIT_INPUT: "Something that was given has to be changed; nothing was rendered.",
    EXIT_STOPPED: "It could not go on: storage, workers, or another run that holds the output. Worth trying again.",
    EXIT_RESUME: "It was interrupted, by Ctrl-C or SIGTERM: the same command goes on.",
    EXIT_MAX_COST: "It was stopped by its `--max-cost`: the same command goes on, and may cost as much again.",
    EXIT_STOPPED_WATCHING: "`status --watch` was stopped, and the run goes on.",
}
EXIT_OF_STATE = {"complete": 0, "failed": EXIT_FAILED, "interrupted": EXIT_RESUME}
JOB_SUFFIXES = (*MAX_BYTES, *(f"{suffix}.gz" for suffix in MAX_BYTES))

P = ParamSpec("P")

out = SafeConsole(highlight=False)
err = SafeConsole(stderr=True, highlight=False)


def exits(command: Callable[P, None]) -> Callable[P, None]:
    """Print the errors that are meant for people, and turn them into exit codes."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except InputError as error:
            print_problems(err, error)
            raise typer.Exit(exit_of(error)) from error
        except ConsistoryError as error:
            line(err, redacted(str(error)), "bold red")
            raise typer.Exit(exit_of(error)) from error

    return run


def exit_of(error: ConsistoryError) -> int:
    """The exit code of a command that ends with an error; the classes are those of ``errors.py``."""
    if isinstance(error, InputError):
        return EXIT_INPUT
    if isinstance(error, RunInterrupted):
        return EXIT_MAX_COST if isinstance(error, MaxCostReached) else EXIT_RESUME
    return EXIT_FAILED if isinstance(error, (AssetError, RunFailed)) else EXIT_STOPPED


def exit_of_end(end: RunSummary | Status) -> int:
    """The exit code of a run that is over."""
    return EXIT_MAX_COST if end.max_cost_reached else EXIT_OF_STATE[end.state]


def output_of(target: str, output: str | None) -> tuple[OutputStore, Plan | None]:
    """The output that a command is about; and the plan, if it was given as a job."""
    from consistory_ray.output.comparison import plan_as_begun
    from consistory_ray.output.storage import open_output

    if target == STANDARD_INPUT or target.lower().split("?")[0].rstrip("/").endswith(JOB_SUFFIXES):
        _, plan = load(target)
        store = open_of(output, plan)
        return store, plan_as_begun(plan, store)
    check_allowed("URL-OR-JOB", target)
    return open_output(target), None


def plan_of_output(url: str) -> tuple[Plan, OutputStore]:
    """The plan that an output was made from, by its run record."""
    from consistory_ray.output.run_record import read_run_record
    from consistory_ray.watch.status import plan_of_record

    store, _ = output_of(url, None)
    return plan_of_record(read_run_record(store), store), store


def url_of(output: str | None, plan: Plan) -> str:
    from consistory_ray.jobs.ids import slug

    url = output if output is not None else os.path.join("out", slug(plan.name, "job"))
    check_allowed("--output", url)
    return url


def open_of(output: str | None, plan: Plan) -> OutputStore:
    from consistory_ray.output.storage import open_output

    return open_output(url_of(output, plan))


@contextlib.contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error, for something that is told how many of how many are done."""
    from rich.progress import MofNCompleteColumn, Progress

    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=err, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(value: Any) -> None:
    """JSON on standard output, in ASCII where the output is of another encoding than Unicode's."""
    typer.echo(visible_json(json.dumps(value, indent=2, ensure_ascii=not speaks_unicode(sys.stdout))))
