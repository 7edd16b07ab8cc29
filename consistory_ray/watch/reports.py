"""What the command line prints about jobs, plans and outputs: tables for people, the same numbers as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from consistory_ray.engine.events import duration, plural, size
from consistory_ray.errors import InputError
from consistory_ray.guards.redaction import redacted, visible
from consistory_ray.jobs.template_draws import UNCOUNTED
from consistory_ray.plan.pricing import compared, figure, worded
from consistory_ray.watch.progress import pace
from consistory_ray.watch.status_display import silence
from consistory_ray.watch.tally import FailureGroup, grouped

if TYPE_CHECKING:
    from consistory_ray.engine.events import RunSummary
    from consistory_ray.plan.advice import Notes
    from consistory_ray.plan.drawing import DrawnPrompt
    from consistory_ray.plan.forecast import Forecast
    from consistory_ray.plan.prices import PriceFile, Spread
    from consistory_ray.plan.pricing import Bill, Shelf
    from consistory_ray.watch.status import Status

ROWS_SHOWN = 60
FAILURES_SHOWN = 20
DRAWN_SHOWN = 20
PROBLEMS_SHOWN = 20
_MAX_COST = "stopped by its --max-cost; the same command goes on, and may cost as much again"


def line(console: Console, text: str | Text, style: str = "") -> None:
    """A line that is wrapped by the terminal alone, so that a pipe gets it whole."""
    console.print(text if isinstance(text, Text) else Text(visible(text), style=style), soft_wrap=True)


def print_problems(console: Console, error: InputError) -> None:
    """An input error: what is wrong where, and how to put it right."""
    line(console, redacted(error.message), "bold red")
    for problem in error.problems[:PROBLEMS_SHOWN]:
        path, value, fix = (visible(redacted(text)) for text in (problem.path, problem.value, problem.fix))
        got = f"  (got {value})" if value else ""
        line(console, Text.assemble("  ", (path, "bold"), ": ", fix, (got, "dim")))
    if len(error.problems) > PROBLEMS_SHOWN:
        line(console, f"  and {len(error.problems) - PROBLEMS_SHOWN} more, all with validate --json")


def print_notes(console: Console, notes: Notes) -> None:
    """What is allowed in a job and probably not meant, and what was matched otherwise than it is written."""
    for text in notes.warning_lines():
        line(console, redacted(text), "yellow")
    for text in notes.concept_lines():
        line(console, redacted(text))


def print_drawn(console: Console, drawn: Sequence[DrawnPrompt]) -> None:
    """What becomes of dynamic prompts, the first of them."""
    for one in drawn[:DRAWN_SHOWN]:
        ways = f"{one.variants} variants" if one.variants < UNCOUNTED else f"more than {UNCOUNTED} variants"
        line(console, redacted(f"{one.subject}: {one.written} ({ways}, {plural(one.pictures, 'picture')})"))
        for text in one.examples:
            line(console, redacted(f"    {text}"))
    if len(drawn) > DRAWN_SHOWN:
        line(console, f"and {len(drawn) - DRAWN_SHOWN} more dynamic prompts, all with --json")


def print_forecast(console: Console, plan: Forecast) -> None:
    """A plan as a table of subjects."""
    further = [">takes"] if plan.takes else []
    table = _table("subject", ">anchors", ">scenes", *further, ">done", ">to do", ">cache")
    for item in plan.by_subject[:ROWS_SHOWN]:
        counts = (item.anchors, item.scenes, *([item.takes] if further else []), item.done, item.todo)
        table.add_row(Text(item.subject_id), *map(str, counts), size(item.cache_bytes))
    _print_table(console, table, len(plan.by_subject))
    counted = [plural(plan.subjects, "subject"), plural(plan.anchors, "anchor"), plural(plan.scenes, "scene")]
    counted += [plural(plan.takes, "further take")] if plan.takes else []
    line(console, f"{plan.name} with {plan.model}: {', '.join(counted)}; {plan.done} done, {plan.todo} to do")
    if plan.loading:
        line(console, redacted(f"loaded with the model: {plan.loading}"))
    line(console, f"sampled with {' or '.join(plan.sampling)}")
    if plan.most_takes > 1:
        pictures = plan.anchors + plan.scenes + plan.takes
        most = max(pictures, plan.anchors + plan.scenes * plan.most_takes)
        line(console, f"gate: {pictures} to {most} pictures, up to {plan.most_takes} takes of each scene")
    if plan.rerolls:
        line(console, f"asked for in a review: {plural(plan.rerolls, 're-roll')}, {plan.rerolls_todo} to do")
    if plan.todo:
        basis = "as long as the pictures there took" if plan.measured else "a rough figure"
        workers = plural(plan.workers, "worker")
        line(console, f"about {duration(plan.seconds)} on {workers} ({basis})")
    line(console, _space(plan))
    if plan.profiles:
        console.print(_profiles(plan))
        line(console, "a scene: times a picture without the method; in bold what this job asks for", "dim")
    line(console, f"output: {plan.output}")


def print_price(console: Console, bills: Sequence[Bill], shelf: Shelf, prices: PriceFile, deadline: str) -> None:
    """What a plan costs on each kind of device: likely, and of the cost from where to where."""
    timely = [">in " + deadline] if deadline else []
    table = _table("devices", ">hours", ">cost", ">spot", ">kWh", ">done in", *timely, "seconds")
    for bill in bills:
        cost, hours = bill.cost, bill.device_hours
        cells = [
            f"{bill.workers} {bill.kind}".strip(),
            figure(hours.likely) if cost is not None else _narrow(hours),
            "" if cost is None else _narrow(cost),
            "" if bill.spot_cost is None else figure(bill.spot_cost.likely),
            "" if bill.kwh is None else figure(bill.kwh.likely),
            duration(bill.hours.likely * 3600),
        ]
        if bill.devices_for_deadline is not None:
            low, likely, high = ("-" if number is None else str(number) for number in bill.devices_for_deadline)
            cells.append(f"{likely} ({low}-{high})")
        table.add_row(*map(Text, [*cells, bill.basis]))
    console.print(table)
    currency = prices.currency
    kept = f"{worded(shelf.gigabytes, 'GB')} kept: {worded(shelf.per_month, currency)} a month"
    requests = f"{worded(shelf.puts)} PUT and {worded(shelf.gets)} GET: {worded(shelf.requests_cost, currency)}"
    line(console, f"storage: {kept}; requests: {requests}")
    dated = f" of {prices.dated}" if prices.dated else ""
    line(console, f"in {currency}, likely (from-to), at prices{dated}; give your own with --prices FILE", "dim")


def _narrow(value: Spread) -> str:
    return f"{figure(value.likely)} ({figure(value.low)}-{figure(value.high)})"


def _profiles(plan: Forecast) -> Table:
    """What each profile would take."""
    table = _table("profile", ">a scene", ">caches", ">all pictures")
    for item in plan.profiles:
        own = item.profile == plan.profile
        cells = (item.profile or "this job's own", f"{item.scene_cost:.2f}x", size(item.cache_bytes))
        row = [Text(cell, style="bold" if own else "dim") for cell in (*cells, duration(item.seconds))]
        table.add_row(*row)
    return table


def print_status(console: Console, status: Status) -> None:
    """An output as a table of subjects, and what failed."""
    table = _table("subject", ">done", ">failed", ">planned")
    for item in status.subjects[:ROWS_SHOWN]:
        failed = Text(str(item.failed), style="red" if item.failed else "")
        table.add_row(Text(item.subject_id), str(item.done), failed, str(item.planned))
    _print_table(console, table, len(status.subjects))
    when = f", {status.updated_at}" if status.updated_at else ""
    counts = f"{status.done} of {plural(status.planned, 'picture')} done, {status.failed} failed"
    speed = "".join(f", {part}" for part in pace(status.rate, status.seconds_left))
    line(console, f"{status.name}: {status.state}{when}; {counts}{speed}")
    if status.silent:
        line(console, f"  {silence(status)}", "yellow")
    if status.error:
        what = "it waits for its output" if status.state == "running" else "it could not go on"
        line(console, f"  {what}: {redacted(status.error)}", "red")
    if len(status.failure_kinds) > 1:
        line(console, f"  failed: {_kinds(status)}", "red")
    for text in compared(status.forecast, status.outcome, status.currency, over=status.state in ("complete", "failed")):
        line(console, f"  {'took' if status.outcome else 'forecast:'} {text}")
    if status.max_cost_reached:
        line(console, f"  {_MAX_COST}", "yellow")
    if status.gated and (status.takes or status.short):
        line(console, f"  {_gate(status.takes, len(status.short))}", "yellow" if status.short else "")
    elif status.takes:
        line(console, f"  {plural(status.takes, 'further take')} of scenes")
    if status.decisions:
        counts = ", ".join(f"{count} {kind}" for kind, count in status.decisions.items())
        left = f"; {plural(status.rerolls_todo, 're-roll')} to do: render makes them" if status.rerolls_todo else ""
        line(console, f"  decided: {counts}{left}")
    for text in status.decisions_unread:
        line(console, f"  decisions that cannot be used: {text}", "yellow")
    told = ((item["path"], f"{item['path']} (attempt {item['attempt']})", item["error"]) for item in status.failures)
    _print_failures(console, grouped((path, error, f"{what}: {error}") for path, what, error in told), status.failed)
    line(console, f"output: {status.output}")


def print_summary(console: Console, summary: RunSummary) -> None:
    """How a run ended and where things are."""
    style = {"complete": "bold green", "failed": "bold red", "interrupted": "bold yellow"}[summary.state]
    rate = f", {summary.rendered / summary.seconds:.2f} pictures/s" if summary.rendered and summary.seconds else ""
    made = f"{plural(summary.rendered, 'picture')} made in {duration(summary.seconds)}{rate}"
    rest = f", {summary.found} were there, {summary.failed} failed"
    saved = f", profile {summary.profile}" if summary.profile not in (None, "exact") else ""
    line(console, Text.assemble((summary.state, style), f": {made}{rest}{saved}"))
    if summary.rendered and summary.spent:
        line(console, _spent(summary))
    if summary.rendered:
        for text in compared(summary.forecast, summary.outcome, summary.currency, over=summary.state != "interrupted"):
            line(console, f"took {text}")
    if summary.max_cost_reached:
        line(console, _MAX_COST, "bold yellow")
    if summary.stopped:
        line(console, f"stopped: {summary.stopped}", "bold red")
    if summary.failures_by_kind:
        table = _table("failure", ">pictures")
        for kind, count in sorted(summary.failures_by_kind.items(), key=lambda item: -item[1]):
            table.add_row(kind, str(count))
        console.print(table)
    failures = ((failure.path, failure.error, f"{failure.path}: {failure.error}") for failure in summary.failures)
    _print_failures(console, grouped(failures), summary.failed)
    if summary.gated and (summary.takes or summary.short or summary.scored):
        looked = f"; {plural(summary.scored, 'picture')} that were there were looked at" if summary.scored else ""
        line(console, _gate(summary.takes, summary.short) + looked)
    elif summary.takes > summary.rerolls:
        line(console, f"{plural(summary.takes, 'further take')} of scenes, to choose from")
    if summary.rerolls:
        line(console, f"{plural(summary.rerolls, 're-roll')} made, as a review asked for")
    for one in summary.shortfalls[:FAILURES_SHOWN]:
        line(console, f"  {one}", "yellow")
    if (rest_short := summary.short - FAILURES_SHOWN) > 0:
        line(console, f"  and {rest_short} more")
    if summary.caches:
        line(console, summary.caches)
    for name, place in (("pictures", "images"), ("index", "index/*.parquet"), ("gallery", summary.gallery)):
        if place:
            line(console, f"{name + ':':10}{summary.url}/{place}")


def _gate(further: int, short: int) -> str:
    """What the job's gate did."""
    lack = f"{plural(short, 'scene')} {'has' if short == 1 else 'have'} no take that passes"
    return f"gate: {plural(further, 'further take')}, {lack if short else 'every scene has a take that passes'}"


def _spent(summary: RunSummary) -> str:
    """What one picture took, of whose time."""
    device, encoding, writing = (
        f"{summary.spent.get(name, 0.0) / summary.rendered:.3g} s" for name in ("device", "encode", "write")
    )
    return f"a picture took {device} of a device; beside it {encoding} of a thread to encode and {writing} to write"


def _space(plan: Forecast) -> str:
    """What will lie at the output."""
    pictures = f"{size(plan.picture_bytes)} of pictures"
    everything = plan.kept_cache_bytes or sum(item.cache_bytes for item in plan.by_subject)
    share = f"{100 * everything / max(1, everything + plan.picture_bytes):.0f} % of its bytes"
    caches = f"{size(everything)} of anchor caches"
    if plan.kept_cache_bytes:
        return f"{pictures}, {caches} will be kept at the output ({share}); --keep-anchors previews keeps none"
    if plan.keep_anchors == "none":
        return f"{pictures}, {caches} are never written to the output; a resume makes those that it needs again"
    how = "--keep-anchors all keeps them at the output"
    return f"{pictures}, {caches} only while the run needs them; {how} ({share}) for later jobs"


def _kinds(status: Status) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in status.failure_kinds.items())


def _print_failures(console: Console, failures: Sequence[FailureGroup], count: int) -> None:
    told = failures[:FAILURES_SHOWN]
    for failure in told:
        line(console, f"  {failure}", "red")
    if (rest := count - sum(failure.count for failure in told)) > 0:
        line(console, f"  and {rest} more, all in the index")


def _print_table(console: Console, table: Table, count: int) -> None:
    if count > ROWS_SHOWN:
        table.add_row(Text(f"and {count - ROWS_SHOWN} more", style="dim"))
    console.print(table)


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header.lstrip(">"), justify="right" if header.startswith(">") else "left", overflow="fold")
    return table
