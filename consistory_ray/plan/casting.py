"""Casting: a job of candidates for each subject of another job, and that job with the seeds of those who were chosen.

A candidate is the subject with other seeds of its anchors, and one of its scenes to see it in. Candidate 1 has the
seeds that the job gives it anyhow; those of the others follow from them, as further takes' seeds do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import yaml

from consistory_ray.errors import InputError, Problem
from consistory_ray.jobs.dynamic_checks import is_dynamic
from consistory_ray.jobs.job import RenderJob
from consistory_ray.jobs.subject import Scene, Subject
from consistory_ray.jobs.yaml_events import read_yaml
from consistory_ray.plan.takes import take_seed

if TYPE_CHECKING:
    from consistory_ray.plan.plan import Plan, SubjectPlan

MAX_CANDIDATES = 64
MAX_ID = 80
HEADER = "# Cast by consistory-ray: "
"""How the file begins that a casting writes."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate for a subject.

    Attributes:
        place: of the subject in the job, from 0.
        subject_id: the subject's id in its job.
        number: which candidate, from 1.
        name: its id in the job of candidates.
        seeds: of its anchors.
    """

    place: int
    subject_id: str
    number: int
    name: str
    seeds: tuple[int, ...]


def candidates_of(job: RenderJob, plan: Plan, count: int) -> list[Candidate]:
    """The candidates for those subjects that can be cast: whose anchors are made, two or more of them.

    Args:
        job: the job.
        plan: of the job.
        count: how many for each subject, its own seeds among them.

    Raises:
        InputError: no subject can be cast, or a candidate's id would be too long or that of another subject.
    """
    found = [
        Candidate(place, planned.subject_id, number, f"{planned.subject_id}.{number}", seeds)
        for place, planned in enumerate(plan.subjects)
        if not why_not(job, job.subjects[place])
        for number, seeds in _tries(planned, count)
    ]
    if not found:
        reasons = (
            Problem(f"subjects[{place}]", plan.subjects[place].subject_id, why_not(job, subject))
            for place, subject in enumerate(job.subjects)
        )
        raise InputError("there is nobody to cast", list(reasons))
    names = {planned.subject_id.lower() for planned in plan.subjects}
    wrong = [one for one in found if len(one.name) > MAX_ID or one.name.lower() in names]
    if wrong:
        fix = f"give the subject another id: its candidates are called like {wrong[0].name!r}, {MAX_ID} letters at most"
        raise InputError(
            "the candidates cannot be told apart",
            [Problem(f"subjects[{wrong[0].place}].id", wrong[0].subject_id, fix)],
        )
    return found


def why_not(job: RenderJob, subject: Subject) -> str:
    """Why a subject cannot be cast, as a fix; empty if it can."""
    if subject.sources:
        return "cast the job that stored it: this subject's anchors are made already"
    if subject.pictures:
        return "leave it out of the casting: its pictures are given, not made"
    if len(subject.anchors) < 2:
        return "give it a second anchor: one alone agrees with itself"
    if is_dynamic(job, subject):
        return "write its words without dynamic prompts: with other seeds other words are drawn"
    return ""


def _tries(planned: SubjectPlan, count: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    for number in range(1, count + 1):
        yield number, tuple(take_seed(anchor.seed, number) for anchor in planned.anchors)


def candidates_job(job: RenderJob, plan: Plan, candidates: Sequence[Candidate]) -> RenderJob:
    """The job that renders the candidates, each with the first scene of its subject, with that scene's own seed.

    Args:
        job, plan: as of :func:`candidates_of`.
        candidates: what that has returned.
    """
    subjects = tuple(_subject_of(one, job.subjects[one.place], plan.subjects[one.place]) for one in candidates)
    changes = {"name": f"{job.name} casting", "subjects": subjects, "quality": None}
    return job.model_copy(update=changes)


def _subject_of(candidate: Candidate, subject: Subject, planned: SubjectPlan) -> Subject:
    first: Scene = replace(subject.scenes[0], id="scene", seed=planned.scenes[0].seed, count=1)
    anchors = tuple(replace(one, seed=seed) for one, seed in zip(subject.anchors, candidate.seeds, strict=True))
    return subject.model_copy(update={"id": candidate.name, "anchors": anchors, "scenes": (first,), "poses": ()})


def with_seeds(data: Mapping[str, Any], chosen: Sequence[Candidate]) -> dict[str, Any]:
    """The plain data of a job with the seeds of the chosen candidates; all else is as it was.

    Args:
        data: of the job, as :func:`~consistory_ray.jobs.readers.read_document` gives it.
        chosen: one candidate of each subject that was cast.
    """
    subjects = list(data["subjects"])
    for one in chosen:
        subject = subjects[one.place]
        anchors = [
            {**(anchor if isinstance(anchor, Mapping) else {"prompt": anchor}), "seed": seed}
            for anchor, seed in zip(subject["anchors"], one.seeds, strict=True)
        ]
        subjects[one.place] = {**subject, "anchors": anchors}
    return {**data, "subjects": subjects}


def written(data: Mapping[str, Any], words: str) -> str:
    """A job file: YAML that is read as the same data.

    Args:
        data: of the job.
        words: what the first line says after :data:`HEADER`.
    """
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    if read_yaml(text) != (data, []):  # a text that only YAML 1.2 takes for a number, say
        text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    return f"{HEADER}{' '.join(words.split())}\n{text}"


class _Dumper(yaml.SafeDumper):
    """Writes what stands in two places twice, rather than as an alias, which job files do not have."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
