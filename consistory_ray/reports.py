"""What the command line prints about jobs, plans and outputs: tables for people, the same numbers as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from consistory_ray.errors import InputError
from consistory_ray.progress import duration, plural, size

if TYPE_CHECKING:
    from consistory_ray.engine.events import RunSummary
    from consistory_ray.forecast import Forecast
    from consistory_ray.output.storage import OutputStore
    from consistory_ray.plan import Asset, Plan

ROWS_SHOWN = 60
FAILURES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class SubjectStatus:
    """How far one subject is."""

    subject_id: str
    planned: int
    done: int
    failed: int


@dataclass(frozen=True, slots=True)
class Status:
    """How far an output is.

    Attributes:
        state: of the last run as its record says, ``"new"`` if there was none; ``running`` is also what a run leaves
            that was killed.
        updated_at: when the record was written.
        planned, done, failed, todo: pictures, anchors included; those that failed are also still to do.
        subjects: subject by subject.
        failures: path, attempt and error of each failed picture.
    """

    name: str
    output: str
    state: str
    updated_at: str | None
    planned: int
    done: int
    failed: int
    todo: int
    subjects: tuple[SubjectStatus, ...]
    failures: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def read_status(plan: Plan, store: OutputStore) -> Status:
    """Compare a plan with an output's index and run record.

    Raises:
        StorageError: the output cannot be read.
    """
    from consistory_ray.output.index import read_index
    from consistory_ray.output.run_record import read_run_record

    record = read_run_record(store)
    assets: dict[str, Asset] = {asset.asset_id: asset for asset in plan.assets()}
    done: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    failures = []
    table = read_index(store).select(["asset_id", "path", "status", "attempt", "error"])
    for row in table.to_pylist():
        asset = assets.get(row["asset_id"])
        if asset is None:
            continue
        if row["status"] == "ok" and row["path"] == asset.path:
            done[asset.subject_id] += 1
        elif row["status"] == "failed":
            failed[asset.subject_id] += 1
            failures.append({"path": asset.path, "attempt": row["attempt"], "error": row["error"]})
    subjects = tuple(
        SubjectStatus(
            subject.subject_id,
            len(subject.anchors) + len(subject.scenes),
            done[subject.subject_id],
            failed[subject.subject_id],
        )
        for subject in plan.subjects
    )
    return Status(
        name=plan.name,
        output=store.url,
        state=record.state if record else "new",
        updated_at=record.updated_at if record else None,
        planned=len(assets),
        done=done.total(),
        failed=failed.total(),
        todo=len(assets) - done.total(),
        subjects=subjects,
        failures=tuple(failures),
    )


def line(console: Console, text: str | Text, style: str = "") -> None:
    """A line that is wrapped by the terminal alone, so that a pipe gets it whole."""
    console.print(text if isinstance(text, Text) else Text(text, style=style), soft_wrap=True)


def print_problems(console: Console, error: InputError) -> None:
    """An input error: what is wrong where, and how to put it right."""
    line(console, error.message, "bold red")
    for problem in error.problems:
        got = f"  (got {problem.value})" if problem.value else ""
        line(console, Text.assemble("  ", (problem.path, "bold"), ": ", problem.fix, (got, "dim")))


def print_forecast(console: Console, plan: Forecast) -> None:
    """A plan as a table of subjects."""
    table = _table("subject", ">anchors", ">scenes", ">done", ">to do", ">cache")
    for item in plan.by_subject[:ROWS_SHOWN]:
        counts = (item.anchors, item.scenes, item.done, item.todo)
        table.add_row(Text(item.subject_id), *map(str, counts), size(item.cache_bytes))
    _print_table(console, table, len(plan.by_subject))
    counted = [plural(plan.subjects, "subject"), plural(plan.anchors, "anchor"), plural(plan.scenes, "scene")]
    line(console, f"{plan.name} with {plan.model}: {', '.join(counted)}; {plan.done} done, {plan.todo} to do")
    if plan.todo:
        basis = "as long as the pictures there took" if plan.measured else "a rough figure"
        workers = plural(plan.workers, "worker")
        caches = f"{size(plan.cache_bytes)} of anchor caches"
        line(console, f"about {duration(plan.seconds)} on {workers} ({basis}), {caches}")
    line(console, f"output: {plan.output}")


def print_status(console: Console, status: Status) -> None:
    """An output as a table of subjects, and what failed."""
    table = _table("subject", ">done", ">failed", ">planned")
    for item in status.subjects[:ROWS_SHOWN]:
        failed = Text(str(item.failed), style="red" if item.failed else "")
        table.add_row(Text(item.subject_id), str(item.done), failed, str(item.planned))
    _print_table(console, table, len(status.subjects))
    when = f", {status.updated_at}" if status.updated_at else ""
    counts = f"{status.done} of {plural(status.planned, 'picture')} done, {status.failed} failed"
    line(console, f"{status.name}: {status.state}{when}; {counts}")
    failures = [f"{item['path']} (attempt {item['attempt']}): {item['error']}" for item in status.failures]
    _print_failures(console, failures, status.failed)
    line(console, f"output: {status.output}")


def print_summary(console: Console, summary: RunSummary, gallery: str | None) -> None:
    """How a run ended and where things are."""
    style = {"complete": "bold green", "failed": "bold red", "interrupted": "bold yellow"}[summary.state]
    rate = f", {summary.rendered / summary.seconds:.2f} pictures/s" if summary.rendered and summary.seconds else ""
    made = f"{plural(summary.rendered, 'picture')} made in {duration(summary.seconds)}{rate}"
    rest = f", {summary.found} were there, {summary.failed} failed"
    line(console, Text.assemble((summary.state, style), f": {made}{rest}"))
    _print_failures(console, [f"{failure.path}: {failure.error}" for failure in summary.failures], summary.failed)
    for name, place in (("pictures", "images"), ("index", "index/*.parquet"), ("gallery", gallery)):
        if place:
            line(console, f"{name + ':':10}{summary.url}/{place}")


def _print_failures(console: Console, failures: Sequence[str], count: int) -> None:
    for failure in failures[:FAILURES_SHOWN]:
        line(console, f"  {failure}", "red")
    if count > FAILURES_SHOWN:
        line(console, f"  and {count - FAILURES_SHOWN} more, all in the index")


def _print_table(console: Console, table: Table, count: int) -> None:
    if count > ROWS_SHOWN:
        table.add_row(Text(f"and {count - ROWS_SHOWN} more", style="dim"))
    console.print(table)


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header.lstrip(">"), justify="right" if header.startswith(">") else "left", overflow="fold")
    return table
