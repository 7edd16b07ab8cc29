"""Whether the text encoders can read what is planned for them, told before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

from consistory_ray.concepts.compel_syntax import INSTALL, SyntaxFault, compel_is_here, read_prompt
from consistory_ray.errors import JobError, Problem
from consistory_ray.guards.problems import MAX_PROBLEMS, shown
from consistory_ray.plan.model_files import model_config
from consistory_ray.plan.words import Words
from consistory_ray.settings import MethodSettings


class Picture(Protocol):
    """A picture to make; :class:`~consistory_ray.plan.plan.Asset` is one."""

    @property
    def subject_id(self) -> str: ...
    @property
    def scene_id(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def words(self) -> Words: ...


class Planned(Protocol):
    """A subject with its pictures; :class:`~consistory_ray.plan.plan.SubjectPlan` is one."""

    @property
    def settings(self) -> MethodSettings: ...
    def assets(self) -> Iterator[Picture]: ...


def refuse_unreadable(model: str, subjects: Iterable[Planned]) -> None:
    """Refuses prompts that compel cannot read where it is to read them, and layers that the text encoders do not have.

    Args:
        model: as the job names it; its layers are counted where it lies on this machine.
        subjects: as they were planned.

    Raises:
        JobError: naming every such picture.
    """
    subjects = list(subjects)
    problems = list(islice((*_layers(model, subjects), *_unreadable(subjects)), MAX_PROBLEMS))
    if problems:
        raise JobError("the job cannot be planned: the text encoders cannot read it", problems)


def _layers(model: str, subjects: Iterable[Planned]) -> Iterator[Problem]:
    skipped = max((subject.settings.clip_skip or 0 for subject in subjects), default=0)
    if not skipped:
        return
    found = [model_config(model, part) or {} for part in ("text_encoder", "text_encoder_2")]
    counts = [layers for config in found if isinstance(layers := config.get("num_hidden_layers"), int)]
    if counts and skipped >= min(counts):
        fix = f"write a number from 1 to {min(counts) - 1}: the smaller text encoder has {min(counts)} layers"
        if min(counts) < 2:
            fix = "leave it out: the smaller text encoder has a single layer"
        yield Problem("settings.clip_skip", str(skipped), fix)


def _unreadable(subjects: Iterable[Planned]) -> Iterator[Problem]:
    weighted = [subject for subject in subjects if subject.settings.prompt_syntax == "compel"]
    if weighted and not compel_is_here():
        yield Problem("settings.prompt_syntax", "compel", INSTALL)
        return
    told: set[tuple[str, str]] = set()
    for where, name, text in _texts(weighted):
        if (name, text) in told:
            continue
        told.add((name, text))
        try:
            read_prompt(text)
        except SyntaxFault as fault:
            yield Problem(f"{where} {name}".strip(), shown(text), str(fault))


def _texts(subjects: Iterable[Planned]) -> Iterator[tuple[str, str, str]]:
    """Where a text stands, what it is, and the text."""
    for subject in subjects:
        for name in ("negative_prompt", "negative_prompt_2"):
            if (text := getattr(subject.settings, name)) is not None:
                yield "", f"settings.{name}", text
        for asset in subject.assets():
            where = f"{asset.subject_id}/{asset.scene_id}"
            yield where, "prompt", asset.prompt
            for name, text in asset.words.to_dict().items():
                yield where, name, text
