"""The command that casts: :func:`~consistory_ray.engine.casting.cast_job` with a display, and the file it writes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from consistory_ray.cli.common import EXIT_OF_STATE, counting, err, exit_of_end, exits, out, print_json, url_of
from consistory_ray.cli.evaluate import weights_of
from consistory_ray.cli.options import (
    DEFAULTS,
    Address,
    AsJson,
    Candidates,
    CastFile,
    CastingMetric,
    CastingOutput,
    CpusPerWorker,
    DeviceOption,
    GpusPerWorker,
    Job,
    Weights,
    Workers,
)
from consistory_ray.engine.running import load
from consistory_ray.engine.stopping import EXIT_RESUME, StopRequest, stop_on_signals
from consistory_ray.errors import InputError, Problem
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.jobs.readers import STANDARD_INPUT, read_document
from consistory_ray.plan.casting import HEADER, with_seeds, written
from consistory_ray.watch.progress import watcher
from consistory_ray.watch.reports import line, print_summary

if TYPE_CHECKING:
    from consistory_ray.engine.casting import Casting

ENDING = ".cast.yaml"


@exits
def cast(
    job: Job,
    output: CastingOutput = None,
    to: CastFile = None,
    candidates: Candidates = 4,
    metric: CastingMetric = None,
    weights: Weights = None,
    address: Address = DEFAULTS.address,
    device: DeviceOption = DEFAULTS.device,
    workers: Workers = DEFAULTS.workers,
    cpus_per_worker: CpusPerWorker = DEFAULTS.cpus_per_worker,
    gpus_per_worker: GpusPerWorker = DEFAULTS.gpus_per_worker,
    as_json: AsJson = False,
) -> None:
    """Try several seeds for every subject's anchors, and write the job with those whose anchors agree best.

    Scenes take a subject from all of its anchors: where these differ from each other, scenes will, too. Of each
    candidate the anchors are rendered, and the subject's first scene to see it in. The gallery shows all of them;
    whoever prefers another one puts its seeds into the file that is written. The same command goes on after a kill.
    """
    from consistory_ray.engine.casting import CastingOptions, cast_job

    target = _target(job, to)
    loaded, plan = load(job)
    url = url_of(output, replace(plan, name=f"{plan.name}-casting"))
    run = replace(
        DEFAULTS,
        address=address,
        device=device,
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
    )
    options, stop = CastingOptions(candidates, metric, weights_of(weights or []), run), StopRequest()
    try:
        with (
            stop_on_signals(stop),
            watcher(err) as watch,
            counting("scoring") as on_progress,
            contextlib.redirect_stdout(sys.stderr),  # Ray prints there when a worker dies
        ):
            casting = cast_job(loaded, plan, url, options, on_event=watch, on_progress=on_progress, stop=stop)
    except KeyboardInterrupt:  # asked again while it was already ending
        raise typer.Exit(EXIT_RESUME) from None
    if casting.chosen:
        words = f"of {candidates} candidates for each subject those whose anchors agree best by {casting.metric}"
        data = with_seeds(read_document(job).data, [one.candidate for one in casting.chosen])
        target.write_text(written(data, words), encoding="utf-8")
    if as_json:
        print_json(_told(casting, target))
    else:
        _print(casting, target)
    raise typer.Exit(exit_of_end(casting.run) if casting.state == "interrupted" else EXIT_OF_STATE[casting.state])


def _target(job: str, to: str | None) -> Path:
    """The file that is written: beside the job, since what a job refers to is found from where it lies.

    Raises:
        InputError: there is no such place, or another file is there.
    """
    if job == STANDARD_INPUT:
        raise InputError("this job cannot be cast", [Problem("JOB", "-", "give a file: it is read twice")])
    if to is None:
        if "://" in job:
            fix = "name a file of this machine, such as --to cast.yaml"
            raise InputError("the cast job cannot be written beside a URL", [Problem("--to", "", fix)])
        stem = os.path.basename(job).removesuffix(".gz")
        to = os.path.join(os.path.dirname(job), os.path.splitext(stem)[0] + ENDING)
    check_allowed("--to", to)
    target = Path(to)
    wrong = ""
    if "://" in to or target.suffix not in (".yaml", ".yml"):
        wrong = "name a .yaml file of this machine"
    elif not target.parent.is_dir():
        wrong = "make its folder first"
    elif "://" not in job and target.parent.resolve() != Path(job).parent.resolve():
        wrong = "name a file in the job's folder, from where files that it names are found"
    elif target.exists() and not target.read_text(encoding="utf-8", errors="replace").startswith(HEADER):
        wrong = "name another file: this one is not of a casting, and would be lost"
    if wrong:
        raise InputError("the cast job cannot be written", [Problem("--to", to, wrong)])
    return target


def _told(casting: Casting, target: Path) -> dict[str, Any]:
    """What came of it, for programs."""
    chosen = {one.candidate.name for one in casting.chosen}
    return {
        "state": casting.state,
        "url": casting.url,
        "file": str(target) if casting.chosen else None,
        "metric": casting.metric,
        "candidates": [
            {**asdict(one.candidate), "agreement": one.agreement, "chosen": one.candidate.name in chosen}
            for one in casting.tried
        ],
        "left": dict(casting.left),
    }


def _print(casting: Casting, target: Path) -> None:
    """The same for people."""
    chosen: Mapping[str, str] = {one.candidate.subject_id: one.candidate.name for one in casting.chosen}
    table = Table("subject", "candidate", "anchors agree", "", box=None)
    for one in casting.tried:
        is_chosen = chosen.get(one.candidate.subject_id) == one.candidate.name
        first = one.candidate.subject_id if one.candidate.number == 1 else ""
        agreed = "not known" if one.agreement is None else f"{one.agreement:.3f}"
        style = "bold green" if is_chosen else None
        table.add_row(first, one.candidate.name, agreed, "chosen" if is_chosen else "", style=style)
    if casting.tried:
        out.print(table)
    for name, reason in casting.left.items():
        line(out, f"{name} stays as it is: {reason}", "yellow")
    if casting.state == "interrupted":
        line(err, "the same command goes on", "yellow")
        return
    if casting.run.state == "failed":
        print_summary(err, casting.run)
    if casting.run.gallery:
        line(out, f"look at them: {casting.url}/{casting.run.gallery}")
    if casting.chosen:
        line(out, f"consistory-ray render {target}", "bold green")
