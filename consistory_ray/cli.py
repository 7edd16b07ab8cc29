"""The command line: ``consistory-ray validate | plan | render | status | gallery | schema``.

Exit codes: 0 all is well; 1 the run is over and some pictures failed, or it cannot go on; 2 the input has to be
changed; 75 the run was interrupted and the same command resumes it.

Defaults are those of the job's models and of RunOptions. Whatever is slow to import is imported by the command that
needs it, so that ``validate``, ``plan`` and ``status`` start without torch and Ray.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Optional, ParamSpec

import typer
from rich.console import Console
from rich.text import Text

from consistory_ray.engine.options import Device, RunOptions
from consistory_ray.engine.stopping import EXIT_RESUME, StopRequest, stop_on_signals
from consistory_ray.errors import ConsistoryError, InputError, Problem
from consistory_ray.job import RenderJob, load_job
from consistory_ray.job_readers import MAX_BYTES
from consistory_ray.plan import Plan, make_plan
from consistory_ray.progress import watcher
from consistory_ray.reports import line, print_forecast, print_problems, print_status, print_summary, read_status

if TYPE_CHECKING:
    from consistory_ray.engine.renderer import RendererFactory
    from consistory_ray.output.storage import OutputStore

EXIT_FAILED = 1
EXIT_INPUT = 2
DEFAULTS = RunOptions()
JOB_SUFFIXES = tuple(MAX_BYTES)

P = ParamSpec("P")

app = typer.Typer(
    help="Consistent subjects with SDXL models, from one machine to a Ray cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Job = Annotated[str, typer.Argument(metavar="JOB", help="Job file or URL: .yaml, .json, .csv or .parquet.")]
Output = Annotated[
    Optional[str],  # noqa: UP045, older typers do not read the other spelling
    typer.Option("--output", "-o", metavar="URL", help="Folder or fsspec URL; without it, out/NAME-OF-THE-JOB."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="Number of workers; without it, one per GPU, on CPU one per machine."),
]
DeviceOption = Annotated[Device, typer.Option(help="What workers render on.")]


def main() -> None:
    """The ``consistory-ray`` command."""
    try:
        app()
    except SystemExit as ending:
        if ending.code == EXIT_RESUME:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient Ctrl-C no longer changes how this ends
        raise


def _exits(command: Callable[P, None]) -> Callable[P, None]:
    """Print the errors that are meant for people, and turn them into exit codes."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except InputError as error:
            print_problems(err, error)
            raise typer.Exit(EXIT_INPUT) from error
        except ConsistoryError as error:
            line(err, str(error), "bold red")
            raise typer.Exit(EXIT_FAILED) from error

    return run


@app.command()
@_exits
def validate(job: Job, as_json: AsJson = False) -> None:
    """Check a job file and say everything that is wrong with it."""
    try:
        plan = make_plan(load_job(job))
    except InputError as error:
        if not as_json:
            raise
        problems = [{"path": item.path, "value": item.value, "fix": item.fix} for item in error.problems]
        _print_json({"valid": False, "message": error.message, "problems": problems})
        raise typer.Exit(EXIT_INPUT) from error
    counts = {"subjects": len(plan.subjects), "anchors": plan.anchor_count, "scenes": plan.scene_count}
    if as_json:
        _print_json({"valid": True, "name": plan.name, **counts})
    else:
        numbers = ", ".join(f"{count} {name}" for name, count in counts.items())
        line(out, Text.assemble((f"{job} is valid", "bold green"), f": {numbers}"))


@app.command("plan")
@_exits
def plan_command(
    job: Job,
    output: Output = None,
    workers: Workers = DEFAULTS.workers,
    device: DeviceOption = DEFAULTS.device,
    as_json: AsJson = False,
) -> None:
    """Show what a render would do: subjects, scenes, what is there already, time and space. Renders nothing."""
    from consistory_ray.forecast import forecast

    plan = make_plan(load_job(job))
    result = forecast(plan, _open(output, plan), workers=workers or 1, device="cuda" if device == "cuda" else "cpu")
    if as_json:
        _print_json(result.to_dict())
    else:
        print_forecast(out, result)


@app.command()
@_exits
def render(
    job: Job,
    output: Output = None,
    address: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Ray cluster: local, auto, HOST:PORT or ray://HOST:PORT; without it, $RAY_ADDRESS or local."),
    ] = DEFAULTS.address,
    workers: Workers = DEFAULTS.workers,
    device: DeviceOption = DEFAULTS.device,
    cpus_per_worker: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="CPUs that Ray reserves for a worker; without it, an even share."),
    ] = DEFAULTS.cpus_per_worker,
    gpus_per_worker: Annotated[float, typer.Option(help="GPUs that Ray reserves for a worker.")] = (
        DEFAULTS.gpus_per_worker
    ),
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Scenes rendered together; without it, what the job says."),
    ] = None,
    cache_budget: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Bytes of anchor caches kept in memory; without it, half of Ray's object store."),
    ] = DEFAULTS.cache_budget,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running batches get after Ctrl-C.")] = (
        DEFAULTS.grace_seconds
    ),
    gallery: Annotated[bool, typer.Option(help="Build the gallery at the end.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show where in the code failures come from.")
    ] = False,
    renderer: Annotated[Optional[str], typer.Option(hidden=True, metavar="MODULE:NAME")] = None,  # noqa: UP045
    renderer_options: Annotated[str, typer.Option(hidden=True, metavar="JSON")] = "{}",
) -> None:
    """Render what the output lacks. Ctrl-C stops cleanly; the same command resumes."""
    _log_to(err, logging.DEBUG if verbose else logging.WARNING)
    loaded = load_job(job)
    plan = make_plan(loaded)
    options = RunOptions(
        address=address,
        device=device,
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        batch_size=batch_size,
        cache_budget=cache_budget,
        grace_seconds=grace,
        renderer=DEFAULTS.renderer if renderer is None else _renderer(renderer, renderer_options),
    )
    _render(loaded, plan, _url(output, plan), options, gallery=gallery, as_json=as_json)


def _render(job: RenderJob, plan: Plan, url: str, options: RunOptions, *, gallery: bool, as_json: bool) -> None:
    from dataclasses import asdict

    from consistory_ray.engine.coordinator import run_plan

    stop = StopRequest()
    try:
        with stop_on_signals(stop):
            with watcher(err) as watch:
                as_given = job.model_dump(mode="json", exclude_unset=True)
                summary = run_plan(plan, url, options, watch, job=as_given, stop=stop)
            page = _build_gallery(summary.url, plan) if gallery and summary.state != "interrupted" else None
            if as_json:
                _print_json(asdict(summary))
            else:
                print_summary(out, summary, page)
            if summary.state == "interrupted":
                line(err, "the same command resumes the run", "yellow")
    except KeyboardInterrupt:  # asked again while the run was already ending
        raise typer.Exit(EXIT_RESUME) from None
    raise typer.Exit({"complete": 0, "failed": EXIT_FAILED, "interrupted": EXIT_RESUME}[summary.state])


@app.command()
@_exits
def status(
    target: Annotated[str, typer.Argument(metavar="URL-OR-JOB", help="An output, or a job file.")],
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Show how far an output is and what failed."""
    if target.lower().endswith(JOB_SUFFIXES):
        plan = make_plan(load_job(target))
        store = _open(output, plan)
    else:
        plan, store = _plan_of_output(target)
    result = read_status(plan, store)
    if as_json:
        _print_json(result.to_dict())
    else:
        print_status(out, result)


@app.command()
@_exits
def gallery(
    target: Annotated[str, typer.Argument(metavar="URL-OR-JOB", help="An output, or a job file.")],
    output: Output = None,
) -> None:
    """Build the gallery of an output anew."""
    if target.lower().endswith(JOB_SUFFIXES):
        plan = make_plan(load_job(target))
        store = _open(output, plan)
    else:
        plan, store = _plan_of_output(target)
    line(out, f"{store.url}/{_build_gallery(store.url, plan)}")


@app.command()
@_exits
def schema() -> None:
    """Print the JSON schema of a job file, for editors."""
    _print_json(RenderJob.model_json_schema())


def _plan_of_output(url: str) -> tuple[Plan, OutputStore]:
    """The plan that an output was made from, by its run record."""
    from consistory_ray.job import parse_job
    from consistory_ray.output.run_record import RUN_RECORD, read_run_record
    from consistory_ray.output.storage import open_output

    store = open_output(url)
    record = read_run_record(store)
    if record is None or not record.job:
        fix = f"give the folder that a render wrote to (there is no {RUN_RECORD} in it that names a job), or the job"
        raise InputError("nothing was rendered there", [Problem("URL-OR-JOB", url, fix)])
    return make_plan(parse_job(record.job)), store


def _build_gallery(url: str, plan: Plan) -> str:
    from consistory_ray.output.gallery import build_gallery

    return build_gallery(url, plan.assets())


def _url(output: str | None, plan: Plan) -> str:
    from consistory_ray.ids import slug

    return output if output is not None else os.path.join("out", slug(plan.name, "job"))


def _open(output: str | None, plan: Plan) -> OutputStore:
    from consistory_ray.output.storage import open_output

    return open_output(_url(output, plan))


def _renderer(name: str, options: str) -> RendererFactory:
    """Another renderer, such as ``consistory_ray.testing:FakeRenderer``, and keyword arguments for it."""
    module, _, attribute = name.partition(":")
    try:
        factory: RendererFactory = functools.partial(
            getattr(importlib.import_module(module), attribute), **json.loads(options)
        )
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        fix = "give MODULE:NAME of a renderer, and its options as a JSON object"
        raise InputError("this renderer cannot be used", [Problem("--renderer", f"{name} ({error})", fix)]) from error
    return factory


def _log_to(console: Console, level: int) -> None:
    """This package's log above the progress display, and nobody else's."""
    from rich.logging import RichHandler

    logger = logging.getLogger("consistory_ray")
    logger.handlers = [RichHandler(console=console, show_path=False, show_time=False)]
    logger.setLevel(level)
    logger.propagate = False


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
