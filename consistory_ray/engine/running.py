"""Running a job from Python: read, checked, planned, rendered, its gallery built.

It is what ``consistory-ray render`` does, which adds a display, logs, metrics and exit codes. Nothing is printed here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from consistory_ray.engine.events import Event, Notice, RunSummary
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.outages import with_backoff
from consistory_ray.errors import StorageError
from consistory_ray.guards.named_code import check_allowed_code, is_named_code
from consistory_ray.guards.redaction import redacted
from consistory_ray.jobs.allowlist import check_allowed, check_allowed_model
from consistory_ray.jobs.job import RenderJob, load_job, parse_job
from consistory_ray.jobs.model_names import check_model_is_there
from consistory_ray.jobs.readers import STANDARD_INPUT
from consistory_ray.plan.adapter_checks import check_adapters
from consistory_ray.plan.controlnet_checks import check_controlnets
from consistory_ray.plan.plan import Plan, make_plan

if TYPE_CHECKING:
    from consistory_ray.engine.stopping import StopRequest
    from consistory_ray.guards.choices import Profile

JobSource: TypeAlias = RenderJob | Mapping[str, Any] | str | os.PathLike[str]


def run_job(
    job: JobSource,
    output: str | os.PathLike[str],
    options: RunOptions | None = None,
    *,
    profile: Profile | None = None,
    takes: int | None = None,
    on_event: Callable[[Event], None] | None = None,
    gallery: bool = True,
    stop: StopRequest | None = None,
) -> RunSummary:
    """Render what an output lacks of a job, on this machine or on a Ray cluster; what ``consistory-ray render`` does.

    ::

        from consistory_ray import AssetDone, RunOptions, run_job

        summary = run_job(
            "job.yaml",
            "out/quickstart",
            RunOptions(workers=2),
            on_event=lambda event: print(event.asset.path) if isinstance(event, AssetDone) else None,
        )
        summary.raise_for_state()

    The output is the only state: the same call goes on where an earlier one, or the command line, has stopped. A
    process that has called ``ray.init`` renders on that cluster and stays joined; else ``options.address`` says where,
    and a Ray that is started for the run ends with it.

    The first SIGINT or SIGTERM stops the run once running batches are in, the second at once; outside of the main
    thread signals are not heard, and ``stop.ask("why")``, from any thread, does the same.

    Args:
        job: a job; the path or URL of a job file; or a mapping, as a YAML or JSON file would hold it.
        output: a folder or any fsspec URL that all workers can reach.
        options: where and how to run.
        profile: in the place of the job's own; single settings of the job stay.
        takes: of each scene, in the place of the job's own number.
        on_event: is told what happens, in the thread that called this, while the run waits: it must be quick. What it
            raises ends the run, with everything that was finished indexed. In order: a :class:`Notice` for each thing
            about the job that looks unintended; :class:`RunStarted`; then workers, anchors and pictures as they come
            (and, after a :class:`Paused`, another RunStarted); :class:`RunFinished`, with the summary. After that only
            a Notice can come, about a gallery that could not be built.
        gallery: build ``gallery/index.html`` at the end of a run that was not interrupted.
        stop: asks for a stop from another thread.

    Returns:
        How it ended. Failed pictures raise nothing: see ``state`` and ``failures``, or call
        :meth:`RunSummary.raise_for_state`.

    Raises:
        JobError: the job cannot be read, used or planned; with every problem in it.
        InputError: the model, the output, an option or the cluster cannot be used, or a place is not allowed.
        OutputBusyError: another run is writing to the output.
        StorageError, OutageError: the output was out of reach, at the beginning or for ``options.outage_seconds``.
        RunInterrupted: stopped while the output was out of reach, or held by another run.
        ClusterLostError: Ray ended during the run.
        RunError: the run cannot go on, for example because every worker dies.
    """
    loaded, plan = load(job, profile, takes)
    url = os.fspath(output)
    check_allowed("output", url)
    return run_loaded(loaded, plan, url, options, on_event=on_event, gallery=gallery, stop=stop)


def load(source: JobSource, profile: Profile | None = None, takes: int | None = None) -> tuple[RenderJob, Plan]:
    """A job and its plan, if the job, its model and the stored subjects it refers to are in places that are allowed.

    Args:
        source: of the job.
        profile: in the place of the job's own, if it is not None.
        takes: the same of their number.

    Raises:
        JobError, InputError: as of :func:`run_job`.
    """
    if isinstance(source, Mapping):
        job = parse_job(source)
    elif isinstance(source, RenderJob):
        job = source
    else:
        if (name := os.fspath(source)) != STANDARD_INPUT:
            check_allowed("job", name)
        job = load_job(name)
    if profile is not None:
        job = job.with_profile(profile)
    if takes is not None:
        job = job.with_takes(takes)
    check_allowed_model(job.model)
    check_model_is_there(job.model)
    if job.config is not None:
        check_allowed_model(job.config, field="config")
    for index, net in enumerate(job.controlnets):
        check_allowed_model(net.model, field=f"controlnets[{index}]")
    check_controlnets(job)
    check_adapters(job)
    for index, name in enumerate(job.checks):
        check_allowed_code(f"checks[{index}]", name)
    if job.quality is not None and is_named_code(job.quality.metric):
        check_allowed_code("quality.metric", job.quality.metric)
    plan = make_plan(job)
    for subject in plan.subjects:
        for stored in subject.sources:
            check_allowed(f"the source of {subject.subject_id}", stored.url)
        for file in (file for picture in subject.pictures for file in picture.files):
            check_allowed(f"a picture of {subject.subject_id}", file.url)
    return job, plan


def run_loaded(
    job: RenderJob,
    plan: Plan,
    url: str,
    options: RunOptions | None = None,
    *,
    on_event: Callable[[Event], None] | None = None,
    gallery: bool = True,
    stop: StopRequest | None = None,
) -> RunSummary:
    """:func:`run_job` with what :func:`load` has returned, for whoever needs the plan before."""
    from consistory_ray.engine.coordinator import run_plan  # imports pyarrow
    from consistory_ray.plan.advice import job_notes

    options = options if options is not None else RunOptions()
    if on_event is not None:
        for text in job_notes(job, plan, options.device).lines():
            on_event(Notice(text))
    as_given = job.model_dump(mode="json", exclude_unset=True)
    summary = run_plan(plan, url, options, on_event, job=as_given, stop=stop)
    if not gallery or summary.state == "interrupted":
        return summary
    try:  # a run is not worse for a gallery that cannot be built
        return replace(summary, gallery=with_backoff(lambda: build_gallery_of(summary.url, plan)))
    except StorageError as error:
        if on_event is not None:
            again = f"consistory-ray gallery {summary.url}"
            on_event(Notice(f"the gallery was not built, `{again}` does it: {redacted(str(error))}"))
        return summary


def build_gallery_of(url: str, plan: Plan, *, all_thumbnails: bool = False) -> str:
    """Build the gallery of an output anew; returns its page's path below the output.

    Args:
        url: the output.
        plan: what it was made from.
        all_thumbnails: of a large run, too.

    Raises:
        StorageError: it cannot be read or written.
    """
    from consistory_ray.output.asked import plan_as_asked
    from consistory_ray.output.gallery.pages import MAX_THUMBNAILS, build_gallery
    from consistory_ray.output.storage import open_output

    assets = plan_as_asked(plan, open_output(url))[0].assets()
    return build_gallery(url, assets, max_thumbnails=None if all_thumbnails else MAX_THUMBNAILS)
