"""The command that examines this machine: :func:`~consistory_ray.doctor.examination.examine` with a display."""

from __future__ import annotations

import typer

from consistory_ray.cli.common import EXIT_FAILED, err, exits, out, print_json, url_of
from consistory_ray.cli.options import (
    AsJson,
    DeviceOption,
    ExaminedDtype,
    ExaminedJob,
    ExaminedModel,
    ExaminedOutput,
    ExaminedSteps,
    ExaminingSeconds,
    Quick,
)
from consistory_ray.doctor.diagnosis import RANDOM
from consistory_ray.engine.running import load
from consistory_ray.jobs.allowlist import check_allowed, check_allowed_model


@exits
def doctor(
    model: ExaminedModel = None,
    device: DeviceOption = "auto",
    dtype: ExaminedDtype = "auto",
    job: ExaminedJob = None,
    output: ExaminedOutput = None,
    quick: Quick = False,
    steps: ExaminedSteps = None,
    seconds: ExaminingSeconds = 120.0,
    as_json: AsJson = False,
) -> None:
    """Examine this machine: devices, kernels, precision, speed of each profile, and what is wrong, with its fix.

    Takes about two minutes and downloads nothing. Exit code 1: something is wrong.
    """
    plan = load(job)[1] if job is not None else None
    url = output if plan is None else url_of(output, plan)
    if output is not None:
        check_allowed("--output", output)
    if model not in (None, RANDOM):
        check_allowed_model(model, field="--model")
    from consistory_ray.doctor.examination import Request, examine
    from consistory_ray.doctor.report import print_diagnosis

    request = Request(model, device, dtype, seconds, steps, quick, plan, url)
    with err.status("starting") as display:
        told = examine(request, lambda text: display.update(text))
    if as_json:
        print_json(told.to_dict())
    else:
        print_diagnosis(out, told)
    raise typer.Exit(0 if told.is_well else EXIT_FAILED)
