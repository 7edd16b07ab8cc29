"""A casting: candidates of every subject are rendered into an output, scored there, and the best of each is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import pyarrow.compute as pc

from consistory_ray.engine.events import Event, RunSummary
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.running import run_loaded
from consistory_ray.engine.scoring.evaluate import EvaluationOptions, check_metrics, evaluate_output
from consistory_ray.errors import InputError, Problem
from consistory_ray.output.scores import read_scores
from consistory_ray.output.storage import open_output
from consistory_ray.plan.casting import Candidate, candidates_job, candidates_of, why_not
from consistory_ray.plan.plan import make_plan
from consistory_ray.quality.casting import agreement, best
from consistory_ray.settings import BUNDLED_MODEL

if TYPE_CHECKING:
    from consistory_ray.engine.stopping import StopRequest
    from consistory_ray.jobs.job import RenderJob
    from consistory_ray.plan.plan import Plan

BUNDLED_METRIC = "judge-2"
"""What casts subjects of the bundled model."""


@dataclass(frozen=True)
class CastingOptions:
    """How to cast.

    Attributes:
        candidates: for each subject, 2 or more, its own seeds among them.
        metric: what scores the anchors; None is ``judge-2``, for the bundled model.
        weights: its weights, where it needs some: its name -> a folder or a Hugging Face id.
        run: where workers run.
    """

    candidates: int = 4
    metric: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    run: RunOptions = field(default_factory=RunOptions)


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate.

    Attributes:
        candidate: who.
        agreement: how much its anchors agree, 1 at most, see :func:`~consistory_ray.quality.casting.agreement`; None
            where an anchor is not there or could not be scored.
    """

    candidate: Candidate
    agreement: float | None


@dataclass(frozen=True)
class Casting:
    """How a casting ended.

    Attributes:
        url: where its pictures are.
        state: ``complete``; ``failed``: of some subject no candidate could be scored, or single pictures failed;
            ``interrupted``: the same call goes on.
        metric: what scored, with its version.
        tried: all candidates, subject by subject.
        chosen: of each subject that was cast the best one; nobody where it was interrupted.
        left: subjects that are as they were, with the reason.
        run: how the rendering ended.
    """

    url: str
    state: Literal["complete", "failed", "interrupted"]
    metric: str
    tried: tuple[Tried, ...]
    chosen: tuple[Tried, ...]
    left: Mapping[str, str]
    run: RunSummary


def cast_job(
    job: RenderJob,
    plan: Plan,
    url: str,
    options: CastingOptions | None = None,
    *,
    on_event: Callable[[Event], None] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: StopRequest | None = None,
) -> Casting:
    """Render and score candidates for the subjects of a job, and choose.

    Args:
        job, plan: as :func:`~consistory_ray.engine.running.load` returns them.
        url: an output for the candidates, a folder or any fsspec URL.
        options: how, and where.
        on_event: is told what happens while candidates are rendered.
        on_progress: is told how many pictures of how many are scored.
        stop: asks for a stop from another thread.

    Raises:
        InputError: nobody can be cast, or the metric cannot be used; before a model is loaded.
        ConsistoryError: as of :func:`~consistory_ray.engine.running.run_job` and
            :func:`~consistory_ray.engine.scoring.evaluate.evaluate_output`.
    """
    options = options or CastingOptions()
    metric = _metric(options, job.model)
    candidates = candidates_of(job, plan, options.candidates)
    casting = candidates_job(job, plan, candidates)
    to_render = make_plan(casting)
    run = replace(options.run, keep_anchors="previews")  # the pictures are scored, and nothing else is taken up
    summary = run_loaded(casting, to_render, url, run, on_event=on_event, stop=stop)
    reasons = {one.subject_id: why_not(job, of_job) for one, of_job in zip(plan.subjects, job.subjects, strict=True)}
    left = {name: reason for name, reason in reasons.items() if reason}
    if summary.state == "interrupted":
        return Casting(summary.url, "interrupted", metric, (), (), left, summary)
    scored = evaluate_output(
        url, EvaluationOptions((metric,), options.weights, options.run), on_progress=on_progress, stop=stop
    )
    if scored.state == "interrupted":
        return Casting(summary.url, "interrupted", metric, (), (), left, summary)
    seen_by, tried = _tried(url, to_render, candidates, scored.metrics)
    chosen, missing = _chosen(tried)
    left |= dict.fromkeys(missing, "none of its candidates could be scored")
    state: Literal["complete", "failed"] = "failed" if missing or summary.state == "failed" else "complete"
    return Casting(summary.url, state, seen_by, tuple(tried), tuple(chosen), left, summary)


def _metric(options: CastingOptions, model: str) -> str:
    """The metric's name, once it is clear that it can be used.

    Raises:
        InputError: it is not known, or needs what was not given.
    """
    name = options.metric
    if name is None:
        if model != BUNDLED_MODEL:
            fix = "name one, such as --metric dinov2 --weights dinov2=FOLDER, or --metric colours, which needs none"
            raise InputError("this model's pictures need a metric", [Problem("--metric", "", fix)])
        name = BUNDLED_METRIC
    check_metrics((name,), options.weights, "--metric")
    return name


def _tried(
    url: str, plan: Plan, candidates: Sequence[Candidate], metrics: Mapping[str, str]
) -> tuple[str, list[Tried]]:
    """The metric that sees identity, with its version, and what it says of the candidates.

    Raises:
        InputError: none of the metrics sees it.
    """
    table, _ = read_scores(open_output(url))
    names = set(pc.unique(table["metric"]).to_pylist())
    metric = next((name for name in metrics if f"{name}_identity" in names), None)
    if metric is None:
        fix = "name one that sees individuals, such as dinov2, and not only words"
        raise InputError("this metric cannot cast", [Problem("--metric", ", ".join(metrics), fix)])
    table = table.filter(pc.equal(table["metric"], f"{metric}_identity"))
    values = dict(zip(table["asset_id"].to_pylist(), table["value"].to_pylist(), strict=True))
    found = []
    for candidate, planned in zip(candidates, plan.subjects, strict=True):
        likenesses = [values.get(anchor.asset_id) for anchor in planned.anchors]
        known = [one for one in likenesses if one is not None]
        found.append(Tried(candidate, agreement(known) if len(known) == len(likenesses) else None))
    return f"{metric} {metrics[metric]}", found


def _chosen(tried: Sequence[Tried]) -> tuple[list[Tried], list[str]]:
    """The best candidate of each subject, and the subjects that have none."""
    chosen, missing = [], []
    for name, group in groupby(tried, key=lambda one: one.candidate.subject_id):
        known = [(one, one.agreement) for one in group if one.agreement is not None]
        if known:
            chosen.append(known[best([agreed for _, agreed in known])][0])
        else:
            missing.append(name)
    return chosen, missing
