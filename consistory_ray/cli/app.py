"""The command line: ``consistory-ray COMMAND``, from ``validate`` and ``plan`` to ``verify`` and ``dataset``.

Exit codes are in ``common.EXIT_CODES``, options in ``options.py``; docs/cli.md is written from both. Whatever is slow
to import is imported by the command that needs it, so that ``validate``, ``plan`` and ``status`` start without torch
and Ray.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.text import Text

from consistory_ray.cli.cast import cast
from consistory_ray.cli.common import (
    EXIT_CODES,
    EXIT_FAILED,
    EXIT_INPUT,
    EXIT_STOPPED,
    EXIT_STOPPED_WATCHING,
    counting,
    err,
    exit_of_end,
    exits,
    open_of,
    out,
    output_of,
    plan_of_output,
    print_json,
)
from consistory_ray.cli.doctor import doctor
from consistory_ray.cli.evaluate import evaluate
from consistory_ray.cli.export import export
from consistory_ray.cli.options import (
    DEFAULTS,
    AcceleratorType,
    AllThumbnails,
    AsJson,
    Deadline,
    DeviceOption,
    Interval,
    Job,
    KeepAnchorsOption,
    Measured,
    Output,
    OutputOfJob,
    PricePerGpuHour,
    Prices,
    ProfileOption,
    RenderCommand,
    Repair,
    Split,
    Spot,
    TakesOption,
    Threads,
    Url,
    UrlOrJob,
    Watch,
    Workers,
)
from consistory_ray.cli.pack import pack
from consistory_ray.cli.render import render, retry
from consistory_ray.cli.review import review
from consistory_ray.cli.study import preferences, study
from consistory_ray.engine.running import build_gallery_of, load
from consistory_ray.engine.stopping import EXIT_RESUME, StopRequest, stop_on_signals
from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.terminal import printable_streams
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.jobs.job import RenderJob
from consistory_ray.plan.advice import job_notes
from consistory_ray.plan.drawing import Drawer, DrawnPrompt
from consistory_ray.watch.reports import line, print_drawn, print_forecast, print_notes, print_price, print_status
from consistory_ray.watch.status_display import watch_status

if TYPE_CHECKING:
    from consistory_ray.watch.status import Status

BEFORE, RUN, AFTER = "Before a run", "Rendering", "During and after a run"

app = typer.Typer(
    help="Consistent subjects with SDXL models, from one machine to a Ray cluster.",
    epilog="Exit codes: " + " ".join(f"{code}: {text}" for code, text in EXIT_CODES.items()),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The ``consistory-ray`` command."""
    printable_streams()
    try:
        app()
    except SystemExit as ending:
        if ending.code == EXIT_RESUME:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient Ctrl-C no longer changes how this ends
        raise


@app.command(rich_help_panel=BEFORE)
@exits
def validate(job: Job, as_json: AsJson = False) -> None:
    """Check a job file and say everything that is wrong with it."""
    try:
        loaded, plan = load(job)
    except InputError as error:
        if not as_json:
            raise
        problems = [{"path": item.path, "value": item.value, "fix": item.fix} for item in error.problems]
        print_json({"valid": False, "message": error.message, "problems": problems})
        raise typer.Exit(EXIT_INPUT) from error
    notes = job_notes(loaded, plan)
    drawn = list(Drawer(loaded).drawn(plan.subjects))
    counts = {"subjects": len(plan.subjects), "anchors": plan.anchor_count, "scenes": plan.scene_count}
    counts |= {"further takes": plan.take_count} if plan.take_count else {}
    if as_json:
        print_json({"valid": True, "name": plan.name, **counts, **notes.to_dict(), **_drawn(drawn)})
    else:
        numbers = ", ".join(f"{count} {name}" for name, count in counts.items())
        if crossed := sum(
            len(planned.scenes) for planned, one in zip(plan.subjects, loaded.subjects, strict=True) if one.poses
        ):
            numbers += f" ({crossed} of them are scenes crossed with poses)"
        line(out, Text.assemble((f"{job} is valid", "bold green"), f": {numbers}"))
        print_drawn(out, drawn)
        print_notes(out, notes)


@app.command("plan", rich_help_panel=BEFORE)
@exits
def plan_command(
    job: Job,
    output: Output = None,
    profile: ProfileOption = None,
    takes: TakesOption = None,
    keep_anchors: KeepAnchorsOption = DEFAULTS.keep_anchors,
    device: DeviceOption = DEFAULTS.device,
    workers: Workers = DEFAULTS.workers,
    accelerator_type: AcceleratorType = DEFAULTS.accelerator_type,
    prices: Prices = None,
    price_per_gpu_hour: PricePerGpuHour = None,
    spot: Spot = False,
    measured: Measured = None,
    deadline: Deadline = "",
    as_json: AsJson = False,
) -> None:
    """Show what a render would do: what is there already, time, space and money. Renders nothing."""
    from consistory_ray.cli.price import Asked, told_as_json
    from consistory_ray.engine.machine import read_gpus
    from consistory_ray.output.asked import plan_as_asked
    from consistory_ray.output.comparison import pictures_made
    from consistory_ray.plan.forecast import forecast, usual_device
    from consistory_ray.plan.takes import without

    asked = Asked(prices, accelerator_type, price_per_gpu_hour, measured, spot=spot)
    loaded, plan = load(job, profile, takes)
    store = open_of(output, plan)
    plan, unread = plan_as_asked(plan, store)
    for text in unread:
        line(err, text, "yellow")
    notes = job_notes(loaded, plan, device)
    drawn = list(Drawer(loaded).drawn(plan.subjects))
    on = device if device != "auto" else usual_device(plan)
    count = workers or (max(1, len(read_gpus())) if on == "cuda" else 1)
    done, seconds = pictures_made(plan, store)
    plan = without(plan, plan.decided.rejected - done)
    result = forecast(plan, store.url, done, seconds, workers=count, device=on, keep_anchors=keep_anchors)
    bills, shelf = asked.bills(plan, done, seconds, result, on, deadline)
    if as_json:
        print_json({**result.to_dict(), **told_as_json(bills, shelf, asked.prices), **notes.to_dict(), **_drawn(drawn)})
    else:
        print_forecast(out, result)
        print_price(out, bills, shelf, asked.prices, deadline)
        print_drawn(out, drawn)
        print_notes(out, notes)


def _drawn(drawn: list[DrawnPrompt]) -> dict[str, Any]:
    """What becomes of dynamic prompts, where a job has any."""
    return {"drawn": [asdict(one) for one in drawn]} if drawn else {}


app.command(rich_help_panel=BEFORE)(doctor)
app.command(rich_help_panel=BEFORE)(cast)
app.command(cls=RenderCommand, rich_help_panel=RUN)(render)
app.command(
    "retry",
    cls=RenderCommand,
    help="Render again what failed before, and nothing else; takes the options of render.",
    rich_help_panel=RUN,
)(retry)


@app.command(rich_help_panel=AFTER)
@exits
def status(
    target: UrlOrJob,
    output: OutputOfJob = None,
    as_json: AsJson = False,
    watch: Watch = False,
    interval: Interval = 5.0,
) -> None:
    """Show how far an output is and what failed."""
    from consistory_ray.watch.status import StatusFollower

    follower = StatusFollower(*output_of(target, output))
    if watch:
        raise typer.Exit(_watch(follower.read, interval))
    result = follower.read()
    if as_json:
        print_json(result.to_dict())
    else:
        print_status(out, result)


def _watch(read: Callable[[], Status], interval: float) -> int:
    """Follow a run; the exit code is that of the render."""
    try:
        last = watch_status(read, out, interval)
    except KeyboardInterrupt:
        return EXIT_STOPPED_WATCHING
    return EXIT_STOPPED if last.error else exit_of_end(last)


@app.command(rich_help_panel=AFTER)
@exits
def gallery(
    target: UrlOrJob,
    output: OutputOfJob = None,
    all_thumbnails: AllThumbnails = False,
) -> None:
    """Build the gallery of an output anew."""
    store, given = output_of(target, output)
    plan = given or plan_of_output(target)[0]
    line(out, f"{store.url}/{build_gallery_of(store.url, plan, all_thumbnails=all_thumbnails)}")


@app.command(rich_help_panel=AFTER)
@exits
def verify(
    url: Url,
    repair: Repair = False,
    threads: Threads = 16,
    as_json: AsJson = False,
) -> None:
    """Read every picture and anchor cache of an output and compare them with the index.

    Exit code 0: all is sound, or everything found was repaired (render again for what was dropped). 1: damage is left.
    """
    from consistory_ray.output.verify import verify as check

    check_allowed("URL", url)
    with counting("verifying") as on_progress:
        result = check(url, repair=repair, threads=threads, on_progress=on_progress)
    if as_json:
        print_json(result.to_dict())
    else:
        for text in result.lines():
            line(out, text)
        verdict = "repaired" if result.repaired else "damaged" if result.damage else "sound"
        line(out, f"{result.url} is {verdict}", "bold green" if result.is_sound else "bold red")
    raise typer.Exit(0 if result.is_sound else EXIT_FAILED)


@app.command(rich_help_panel=AFTER)
@exits
def dataset(
    url: Url,
    split: Split = "train",
    as_json: AsJson = False,
) -> None:
    """Write an output's pictures as Parquet shards that load as a Hugging Face dataset."""
    from consistory_ray.output.lease.lease import Lease
    from consistory_ray.output.shards import DATASET_FOLDER, write_dataset
    from consistory_ray.output.storage import open_output

    check_allowed("URL", url)
    store = open_output(url)
    if not store.list_files("index"):
        raise InputError("nothing was rendered there", [Problem("URL", url, "give the folder that a render wrote to")])
    stop = StopRequest()
    with (
        stop_on_signals(stop),
        Lease.acquire(store, "dataset") as lease,
        counting("writing shards") as on_progress,
    ):
        result = write_dataset(
            store, split=split, on_progress=on_progress, should_stop=lambda: bool(stop), lost=lambda: lease.lost
        )
    if as_json:
        print_json(asdict(result))
    else:
        files = f"{store.url}/{DATASET_FOLDER}/{split}-*.parquet"
        line(out, f"{result.rows} pictures in {len(result.paths)} shards: {files}")


app.command(rich_help_panel=AFTER)(evaluate)
app.command(rich_help_panel=AFTER)(export)
app.command(rich_help_panel=AFTER)(pack)
app.command(rich_help_panel=AFTER)(review)
app.command(rich_help_panel=AFTER)(study)
app.command(rich_help_panel=AFTER)(preferences)


@app.command(rich_help_panel=BEFORE)
@exits
def schema() -> None:
    """Print the JSON schema of a job file, for editors."""
    print_json(RenderJob.model_json_schema())
