"""The commands that render, ``render`` and ``retry``: :func:`~consistory_ray.engine.running.run_job` with a display."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from consistory_ray.cli.common import err, exit_of, exit_of_end, exits, out, print_json, url_of
from consistory_ray.cli.options import (
    DEFAULTS,
    AcceleratorType,
    AcceptBelow,
    Address,
    BatchSize,
    CacheBudget,
    Compile,
    CpusPerWorker,
    Deterministic,
    DeviceOption,
    Gallery,
    GpusPerWorker,
    Grace,
    Job,
    KeepAnchorsOption,
    Labels,
    LogFormatOption,
    LogLevelOption,
    MaxCost,
    MaxFailures,
    Measured,
    MetricsHost,
    MetricsPort,
    MinWorkers,
    OutageSeconds,
    Output,
    PricePerGpuHour,
    Prices,
    ProfileOption,
    Renderer,
    RendererOptions,
    Spot,
    StuckSeconds,
    Submission,
    SummaryAsJson,
    TakesOption,
    Workers,
)
from consistory_ray.cli.price import Asked
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.running import load, run_loaded
from consistory_ray.engine.stopping import EXIT_RESUME, StopRequest, stop_on_signals
from consistory_ray.engine.workers.renderer import consistory_renderer
from consistory_ray.errors import ConsistoryError, InputError, Problem
from consistory_ray.jobs.job import RenderJob
from consistory_ray.plan.plan import Plan
from consistory_ray.watch.logs import EventLog, LogFormat, LogLevel, both, logging_renderer, logging_run
from consistory_ray.watch.observation import DEFAULT_HOST, Export, exported
from consistory_ray.watch.progress import watcher
from consistory_ray.watch.reports import line, print_summary

if TYPE_CHECKING:
    from consistory_ray.engine.rendering import RendererFactory


def _command(*, only_failed: bool) -> Callable[..., None]:
    """``render``, or ``retry``: they take the same options."""

    @exits
    def render(
        job: Job,
        output: Output = None,
        profile: ProfileOption = None,
        takes: TakesOption = None,
        keep_anchors: KeepAnchorsOption = DEFAULTS.keep_anchors,
        gallery: Gallery = True,
        address: Address = DEFAULTS.address,
        device: DeviceOption = DEFAULTS.device,
        accelerator_type: AcceleratorType = DEFAULTS.accelerator_type,
        compile_network: Compile = DEFAULTS.compile,
        label: Labels = None,
        workers: Workers = DEFAULTS.workers,
        min_workers: MinWorkers = DEFAULTS.min_workers,
        cpus_per_worker: CpusPerWorker = DEFAULTS.cpus_per_worker,
        gpus_per_worker: GpusPerWorker = DEFAULTS.gpus_per_worker,
        batch_size: BatchSize = None,
        deterministic: Deterministic = DEFAULTS.deterministic,
        cache_budget: CacheBudget = DEFAULTS.cache_budget,
        max_failures: MaxFailures = DEFAULTS.max_failures,
        accept_below: AcceptBelow = DEFAULTS.accept_below,
        grace: Grace = DEFAULTS.grace_seconds,
        stuck_seconds: StuckSeconds = DEFAULTS.stuck_seconds,
        outage_seconds: OutageSeconds = DEFAULTS.outage_seconds,
        submission: Submission = DEFAULTS.submission,
        as_json: SummaryAsJson = False,
        log_format: LogFormatOption = "text",
        log_level: LogLevelOption = None,
        metrics_port: MetricsPort = None,
        metrics_host: MetricsHost = DEFAULT_HOST,
        price_per_gpu_hour: PricePerGpuHour = None,
        prices: Prices = None,
        spot: Spot = False,
        measured: Measured = None,
        max_cost: MaxCost = None,
        renderer: Renderer = None,
        renderer_options: RendererOptions = "{}",
    ) -> None:
        """Render what the output lacks. Ctrl-C stops cleanly; the same command resumes."""
        level: LogLevel = log_level or ("info" if log_format == "json" else "warning")
        export = Export(metrics_port, metrics_host, price_per_gpu_hour)
        try:
            with logging_run(err, style=log_format, level=level):
                asked = Asked(prices, accelerator_type, price_per_gpu_hour, measured, spot=spot)
                loaded, plan = load(job, profile, takes)
                factory = consistory_renderer if renderer is None else _renderer(renderer, renderer_options)
                options = RunOptions(
                    address=address,
                    device=device,
                    workers=workers,
                    cpus_per_worker=cpus_per_worker,
                    gpus_per_worker=gpus_per_worker,
                    batch_size=batch_size,
                    deterministic=deterministic,
                    cache_budget=cache_budget,
                    grace_seconds=grace,
                    min_workers=min_workers,
                    accelerator_type=accelerator_type,
                    compile=compile_network,
                    label_selector=_labels(label or []),
                    max_failures=max_failures,
                    rate=asked.rate(plan, device, max_cost),
                    max_cost=max_cost,
                    only_failed=only_failed,
                    accept_below=accept_below,
                    keep_anchors=keep_anchors,
                    stuck_seconds=stuck_seconds,
                    outage_seconds=outage_seconds,
                    submission=submission,
                    renderer=logging_renderer(factory, style=log_format, level=level, run=plan.name),
                )
                url = url_of(output, plan)
                _run(loaded, plan, url, options, export, gallery=gallery, as_json=as_json, log_format=log_format)
        except ConsistoryError as error:
            if log_format != "json":
                raise
            raise typer.Exit(exit_of(error)) from error  # it was logged

    return render


render = _command(only_failed=False)
retry = _command(only_failed=True)


def _labels(given: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE pairs as a mapping."""
    for text in given:
        if not all(text.partition("=")):
            raise InputError("this label cannot be used", [Problem("--label", ascii(text), "give KEY=VALUE")])
    return {key: value for key, _, value in (text.partition("=") for text in given)}


def _run(
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
    """Run it under a display, with logs and metrics, say how it ended, and leave with the exit code of that."""
    stop = StopRequest()
    log = EventLog(plan.name, assets_only=log_format == "text")
    try:
        with stop_on_signals(stop):
            with (
                exported(export, plan, url, options.gpus_per_worker, lambda: stop.at_once) as observe,
                log if log_format == "json" else watcher(err) as watch,
                contextlib.redirect_stdout(sys.stderr),  # Ray prints there when a worker dies
            ):
                listen = both(observe, log) if watch is log else both(observe, watch, log)
                summary = run_loaded(job, plan, url, options, on_event=listen, gallery=gallery, stop=stop)
            if as_json:
                print_json(asdict(summary))
            else:
                print_summary(out, summary)
            if summary.state == "interrupted" and not summary.max_cost_reached and log_format == "text":
                line(err, "the same command resumes the run", "yellow")
    except KeyboardInterrupt:  # asked again while the run was already ending
        raise typer.Exit(EXIT_RESUME) from None
    raise typer.Exit(exit_of_end(summary))


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
