"""What a job demands of its pictures: which metric looks at them, what passes, how often a picture may be tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from consistory_ray.guards.choices import Keep, Measure, NamedMetric, WhenNonePasses
from consistory_ray.guards.named_code import is_named_code
from consistory_ray.guards.problems import FIXES, fault
from consistory_ray.guards.setting_ranges import Number, Whole
from consistory_ray.jobs.checks import Finding
from consistory_ray.jobs.fields import entries, field
from consistory_ray.jobs.render_settings import STRICT
from consistory_ray.jobs.validation import Text

MAX_TAKES = 64
DEFAULT_MAX_TAKES = 3


def _metric(value: str) -> str:
    if value not in get_args(NamedMetric) and not is_named_code(value):
        raise fault(FIXES["metric"])
    return value


@dataclass(frozen=True, slots=True, config=STRICT)
class Quality:
    """What is demanded of scenes. One that falls short is rendered again, with its next seed, up to so many takes; the
    best take is the scene's picture. Anchors are not looked at."""

    metric: Annotated[Text, Field(max_length=200), AfterValidator(_metric)]
    """What looks at the pictures: "judge-2" or "judge" (the bundled model's pictures), "colours" (needs no weights),
    "clip", "dinov2", "dreamsim", or package.module:Class, which whoever runs the service must have allowed."""
    measure: Measure = "identity"
    """What counts as the score: "identity" is the mean cosine with the subject's anchors, without the background,
    "alignment" how well the picture shows its prompt."""
    weights: Annotated[Text, Field(max_length=1000)] | None = None
    """Folder or Hugging Face id of the metric's weights, where it needs some."""
    threshold: Annotated[Number, Field(ge=-1e6, le=1e6)] | None = None
    """A picture with at least this score passes. Either this or within."""
    within: Annotated[Number, Field(ge=0, le=1e6)] | None = None
    """A picture passes whose score is at least the median of its subject's first takes, less this."""
    max_takes: Annotated[Whole, Field(ge=1, le=MAX_TAKES)] = DEFAULT_MAX_TAKES
    """How many pictures a scene may take, the first one included, and those that the job's takes asks for."""
    keep: Keep = "best"
    """Which take is the scene's picture: the one with the best score, the earlier one of equals."""
    when_none_passes: WhenNonePasses = "fail"
    """How a run ends in which scenes have no take that passes: their best take is kept in any case, and with "fail" the
    exit code is 1."""


Takes = Annotated[Whole, Field(ge=1, le=MAX_TAKES)]
"""How many takes there are of each scene in any case."""


def takes_findings(job: Any) -> Iterator[Finding]:
    """More takes of each scene than its gate allows for, or than a job may have pictures."""
    takes, quality = field(job, "takes"), field(job, "quality")
    if not isinstance(takes, int) or takes < 2:
        return
    most = field(quality, "max_takes") if quality is not None else None
    if quality is not None and most is None:
        most = DEFAULT_MAX_TAKES
    if isinstance(most, int) and most < takes <= MAX_TAKES:
        fix = f"write {takes} to {MAX_TAKES}: {takes} takes of each scene are made in any case, as takes says"
        yield Finding(("quality", "max_takes"), most, fix)


def quality_findings(job: Any) -> Iterator[Finding]:
    """A gate that names no bar or two, and subjects that it has no anchors to compare with."""
    quality = job.get("quality") if isinstance(job, Mapping) else getattr(job, "quality", None)
    if quality is None:
        return

    def said(name: str) -> Any:
        return quality.get(name) if isinstance(quality, Mapping) else getattr(quality, name, None)

    bars = [name for name in ("threshold", "within") if said(name) is not None]
    if len(bars) != 1:
        fix = "write threshold (a score), or within (how far below the subject's median), and not both"
        yield Finding(("quality", bars[-1]) if bars else ("quality",), said("within") if bars else "neither", fix)
    if said("measure") == "alignment":
        return
    for index, subject in entries(job, "subjects"):
        sources = subject.get("from") if isinstance(subject, Mapping) else subject.sources
        if sources:
            fix = "write measure: alignment under quality: a stored subject brings no pictures of its anchors"
            yield Finding(("subjects", index, "from"), "a stored subject", fix)
