"""The commands that render: ``render`` and ``retry``."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from consistory_ray.cli.common import (
    DEFAULTS,
    EXIT_OF_STATE,
    DeviceOption,
    Job,
    KeepAnchorsOption,
    Output,
    Workers,
    build_gallery_of,
    err,
    exit_of,
    exits,
    load,
    out,
    print_json,
    url_of,
)
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.stopping import EXIT_RESUME, StopRequest, stop_on_signals
from consistory_ray.engine.workers.renderer import consistory_renderer
from consistory_ray.errors import ConsistoryError, InputError, Problem, StorageError
from consistory_ray.guards.redaction import redacted
from consistory_ray.jobs.job import RenderJob
from consistory_ray.plan.plan import Plan
from consistory_ray.watch.logs import EventLog, LogFormat, LogLevel, both, logging_renderer, logging_run
from consistory_ray.watch.observation import DEFAULT_HOST, Export, exported
from consistory_ray.watch.progress import watcher
from consistory_ray.watch.reports import line, print_summary

if TYPE_CHECKING:
    from consistory_ray.engine.rendering import RendererFactory


def _batch_size(given: str) -> int | Literal["auto"]:
    if given == "auto":
        return "auto"
    if not given.isdecimal() or len(given) > 9 or int(given) < 1:
        raise typer.BadParameter(f"{given!a}: give 1, 2, … or auto")
    return int(given)


@exits
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
        Optional[Any],  # noqa: UP045
        typer.Option(
            parser=_batch_size, metavar="N|auto", help="Scenes rendered together; without it, what the job says."
        ),
    ] = None,
    cache_budget: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1,
            help="Bytes of anchor caches in memory at a time, at most; a machine takes what its object store holds.",
        ),
    ] = DEFAULTS.cache_budget,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running batches get after Ctrl-C.")] = (
        DEFAULTS.grace_seconds
    ),
    min_workers: Annotated[int, typer.Option(min=1, help="Workers kept even if there is nothing left for them.")] = (
        DEFAULTS.min_workers
    ),
    accelerator_type: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME", help="Only on nodes with these accelerators, as Ray names them: H100, L4."),
    ] = DEFAULTS.accelerator_type,
    label: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="KEY=VALUE", help="Only on nodes with this Ray label; may be given several times."),
    ] = None,
    max_failures: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Stop once more pictures than that have failed; without it, never."),
    ] = DEFAULTS.max_failures,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure: --max-failures 0.")] = (
        False
    ),
    only_failed: Annotated[
        bool, typer.Option("--only-failed", help="Render only what failed before; what retry does.")
    ] = DEFAULTS.only_failed,
    keep_anchors: KeepAnchorsOption = DEFAULTS.keep_anchors,
    stuck_seconds: Annotated[
        float, typer.Option(min=1, help="Least silence after which a worker may be found stuck and replaced.")
    ] = DEFAULTS.stuck_seconds,
    outage_seconds: Annotated[
        float, typer.Option(min=0, help="How long a run that has begun waits for an output that is out of reach.")
    ] = DEFAULTS.outage_seconds,
    submission: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="ID",
            help="For schedulers that repeat whatever fails: a run of this id that ended with 1 or 2 is not repeated.",
        ),
    ] = DEFAULTS.submission,
    gallery: Annotated[bool, typer.Option(help="Build the gallery at the end.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show where in the code failures come from: --log-level debug.")
    ] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option(envvar="CONSISTORY_LOG_FORMAT", help="json: every line a JSON object, and no progress display."),
    ] = "text",
    log_level: Annotated[
        Optional[LogLevel],  # noqa: UP045
        typer.Option(envvar="CONSISTORY_LOG_LEVEL", help="info: a line per picture. Default: warning, with json info."),
    ] = None,
    metrics_port: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=0, max=65535, envvar="CONSISTORY_METRICS_PORT", help="Export Prometheus metrics there; 0 is off."
        ),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(envvar="CONSISTORY_METRICS_HOST", help="Address at which metrics are exported.")
    ] = DEFAULT_HOST,
    price_per_gpu_hour: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, envvar="CONSISTORY_PRICE_PER_GPU_HOUR", help="For the cost metrics, in any currency."),
    ] = None,
    renderer: Annotated[Optional[str], typer.Option(hidden=True, metavar="MODULE:NAME")] = None,  # noqa: UP045
    renderer_options: Annotated[str, typer.Option(hidden=True, metavar="JSON")] = "{}",
) -> None:
    """Render what the output lacks. Ctrl-C stops cleanly; the same command resumes."""
    level: LogLevel = "debug" if verbose else log_level or ("info" if log_format == "json" else "warning")
    export = Export(metrics_port, metrics_host, price_per_gpu_hour)
    try:
        with logging_run(err, style=log_format, level=level):
            loaded, plan = load(job)
            factory = consistory_renderer if renderer is None else _renderer(renderer, renderer_options)
            options = RunOptions(
                address=address,
                device=device,
                workers=workers,
                cpus_per_worker=cpus_per_worker,
                gpus_per_worker=gpus_per_worker,
                batch_size=batch_size,
                cache_budget=cache_budget,
                grace_seconds=grace,
                min_workers=min_workers,
                accelerator_type=accelerator_type,
                label_selector=_labels(label or []),
                max_failures=0 if fail_fast else max_failures,
                only_failed=only_failed,
                keep_anchors=keep_anchors,
                stuck_seconds=stuck_seconds,
                outage_seconds=outage_seconds,
                submission=submission,
                renderer=logging_renderer(factory, style=log_format, level=level, run=plan.name),
            )
            url = url_of(output, plan)
            _render(loaded, plan, url, options, export, gallery=gallery, as_json=as_json, log_format=log_format)
    except ConsistoryError as error:
        if log_format != "json":
            raise
        raise typer.Exit(exit_of(error)) from error  # it was logged


@functools.wraps(render)
def retry(*args: Any, **kwargs: Any) -> None:
    render(*args, **{**kwargs, "only_failed": True})


def _labels(given: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE pairs as a mapping."""
    for text in given:
        if not all(text.partition("=")):
            raise InputError("this label cannot be used", [Problem("--label", ascii(text), "give KEY=VALUE")])
    return {key: value for key, _, value in (text.partition("=") for text in given)}


def _render(
    job: RenderJob,
    plan: Plan,
    url: str,
    options: RunOptions,
    export: Export,
    *,
    gallery: bool,
    as_json: bool,
    log_format: LogFormat,
) -> None:
    from dataclasses import asdict

    from consistory_ray.engine.coordinator import run_plan
    from consistory_ray.engine.events import Notice
    from consistory_ray.plan.advice import job_notes

    notes = job_notes(job, plan, options.device).lines()
    stop = StopRequest()
    log = EventLog(plan.name, assets_only=log_format == "text")
    try:
        with stop_on_signals(stop):
            with (
                exported(export, plan, url, options.gpus_per_worker, lambda: stop.at_once) as observe,
                log if log_format == "json" else watcher(err) as watch,
            ):
                as_given = job.model_dump(mode="json", exclude_unset=True)
                listen = both(observe, log) if watch is log else both(observe, watch, log)
                for text in notes:
                    listen(Notice(text))
                with contextlib.redirect_stdout(sys.stderr):  # Ray prints there when a worker dies
                    summary = run_plan(plan, url, options, listen, job=as_given, stop=stop)
            page = _gallery(summary.url, plan) if gallery and summary.state != "interrupted" else None
            if as_json:
                print_json(asdict(summary))
            else:
                print_summary(out, summary, page)
            if summary.state == "interrupted" and log_format == "text":
                line(err, "the same command resumes the run", "yellow")
    except KeyboardInterrupt:  # asked again while the run was already ending
        raise typer.Exit(EXIT_RESUME) from None
    raise typer.Exit(EXIT_OF_STATE[summary.state])


def _gallery(url: str, plan: Plan) -> str | None:
    """Build it; a run is not worse for a gallery that cannot be built."""
    from consistory_ray.engine.outages import with_backoff

    try:
        return with_backoff(lambda: build_gallery_of(url, plan))
    except StorageError as error:
        again = f"consistory-ray gallery {url}"
        line(err, f"the gallery was not built, `{again}` does it: {redacted(str(error))}", "bold red")
        return None


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
