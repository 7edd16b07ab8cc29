"""The command that scores an output: :func:`~consistory_ray.engine.scoring.evaluate.evaluate_output` with a display."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from consistory_ray.cli.common import EXIT_OF_STATE, counting, err, exits, out, print_json
from consistory_ray.cli.options import (
    DEFAULTS,
    Address,
    AsJson,
    CpusPerWorker,
    EvaluationDevice,
    GpusPerWorker,
    Metrics,
    Url,
    Weights,
    Workers,
)
from consistory_ray.errors import InputError, Problem
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.watch.reports import line

if TYPE_CHECKING:
    from consistory_ray.engine.scoring.work import Evaluation

_LISTED = 20


@exits
def evaluate(
    url: Url,
    metrics: Metrics = None,
    weights: Weights = None,
    address: Address = DEFAULTS.address,
    device: EvaluationDevice = DEFAULTS.device,
    workers: Workers = DEFAULTS.workers,
    cpus_per_worker: CpusPerWorker = DEFAULTS.cpus_per_worker,
    gpus_per_worker: GpusPerWorker = DEFAULTS.gpus_per_worker,
    as_json: AsJson = False,
) -> None:
    """Score every picture of an output: is it still the same individual, and does it show its prompt?

    Scores go to `evaluation/*.parquet`, a page to `evaluation/index.html`. What is scored already is left out, so the
    same command goes on after a kill. Exit code 1: pictures could not be scored, and are listed.
    """
    from dataclasses import replace

    from consistory_ray.engine.scoring.evaluate import EvaluationOptions, evaluate_output

    check_allowed("URL", url)
    run = replace(
        DEFAULTS,
        address=address,
        device=device,
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
    )
    names = tuple(name.strip() for name in metrics.split(",")) if metrics is not None else None
    options = EvaluationOptions(names, weights_of(weights or []), run)
    say: Callable[[str], None] = lambda text: line(err, text, "yellow")  # noqa: E731
    with counting("scoring") as on_progress, contextlib.redirect_stdout(sys.stderr):  # Ray prints when a worker dies
        result = evaluate_output(url, options, on_progress=on_progress, on_notice=say)
    if as_json:
        print_json(asdict(result))
    else:
        _print(result)
    raise typer.Exit(EXIT_OF_STATE[result.state])


def weights_of(given: list[str]) -> dict[str, str]:
    """Values of ``--weights``.

    Raises:
        InputError: one is not written as NAME=PLACE.
    """
    pairs = [text.partition("=") for text in given]
    bad = [Problem("--weights", text, "write NAME=FOLDER or NAME=HUB-ID, such as clip=models/clip")
           for text, (name, _, place) in zip(given, pairs, strict=True) if not name or not place]  # fmt: skip
    if bad:
        raise InputError("these weights cannot be used", bad)
    return {name: place for name, _, place in pairs}


def _print(result: Evaluation) -> None:
    """What came of it, for people."""
    for name, number in result.summary.get("run", {}).items():
        line(out, f"{name:24} {number['mean']:.3f}  (95 % {number['low']:.3f} to {number['high']:.3f})")
    if (value := result.summary.get("harmonic")) is not None:
        line(out, f"{'S_H':24} {value:.3f}")
    for one in result.summary.get("outliers", [])[:_LISTED]:
        line(out, f"outlier: {one['path']}, gap {one['gap']:.3f} is {one['ratio']:.1f} times its subject's median")
    for one in result.summary.get("copies", [])[:_LISTED]:
        line(out, f"copied scene: {one['path']} has the background of {one['other']}", "yellow")
    for path, why in list(result.failures.items())[:_LISTED]:
        line(out, f"not scored: {path}: {why}", "bold red")
    counts = f"{result.scored} pictures scored, {result.found} had been before, {result.failed} could not be"
    style = {"complete": "bold green", "failed": "bold red"}.get(result.state, "yellow")
    line(out, f"{result.state}: {counts}", style)
    if result.page:
        line(out, f"{result.url}/{result.page}")
    else:
        line(err, "the same command goes on", "yellow")
