"""What is allowed in a job and still probably not meant: a line for each kind, with a count and an example.

Nothing here keeps a job from being rendered. Without torch; of the model at most the tokenizer's files are read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consistory_ray.concepts.compel_syntax import plain_text
from consistory_ray.concepts.matching import find_concepts, mentions
from consistory_ray.guards.numerics import half_on_cpu
from consistory_ray.guards.problems import shown
from consistory_ray.plan.cut_prompts import cut_prompts
from consistory_ray.plan.drawing import Drawer
from consistory_ray.plan.model_files import native_size
from consistory_ray.plan.prompt_syntax import find_syntax
from consistory_ray.plan.said import Said
from consistory_ray.plan.sampling import is_for_few_steps, sampling_advice
from consistory_ray.settings import BUNDLED_MODEL

if TYPE_CHECKING:
    from consistory_ray.jobs.job import RenderJob
    from consistory_ray.plan.controls import PlannedControl
    from consistory_ray.plan.plan import Plan

_FEW_STEPS = re.compile(r"turbo|lightning|hyper|lcm|dmd|flash|pcm|distill", re.IGNORECASE)
_EACH_TOLD = {"cut-prompt": 10}
"""Of these kinds the first ones are told one by one."""
_LOOSE_PROMPTS = 10_000
_SHOWN_CONCEPTS = 20


@dataclass(frozen=True, slots=True)
class JobWarning:
    """One kind of thing that is probably not meant.

    Attributes:
        kind: a name for machines.
        message: what it is and what to do, without the count and the example.
        count: how many prompts, texts or settings it was found in.
        where: the first of them.
        example: what was found there.
        others: place and example of the next ones, where each is worth knowing.
    """

    kind: str
    message: str
    count: int
    where: str
    example: str
    others: tuple[tuple[str, str], ...] = ()

    def lines(self) -> list[str]:
        """The warning in words, and a line for each of the others."""
        told = [f"  {where}: {example}" for where, example in self.others]
        left = self.count - 1 - len(told)
        return [str(self), *told, *([f"  and {left} more"] if told and left else [])]

    def __str__(self) -> str:
        times = f" (and {self.count - 1} more)" if self.count > 1 else ""
        return f"{self.message}: {self.where}{times}: {self.example}"


@dataclass(frozen=True, slots=True)
class LooseConcept:
    """A concept that does not stand in all of a subject's prompts as it is written.

    Attributes:
        subject: the subject's id.
        concept: as the job has it.
        matched: what stands for it in the prompts, the most frequent first.
        lacking: its words that stand in none of these.
        pictures: anchors and scenes of that kind.
    """

    subject: str
    concept: str
    matched: tuple[str, ...]
    lacking: tuple[str, ...]
    pictures: int

    def __str__(self) -> str:
        by = " or ".join(shown(text) for text in self.matched[:3]) + (" or others" if len(self.matched) > 3 else "")
        without = f", nothing stands for {' and '.join(map(shown, self.lacking))}" if self.lacking else ""
        return f"{self.subject}: {shown(self.concept)} is matched by {by} ({self.pictures} prompts{without})"


@dataclass(frozen=True)
class Notes:
    """Everything that is worth saying about a job.

    Attributes:
        warnings: one for each kind.
        concepts: what was matched loosely.
    """

    warnings: tuple[JobWarning, ...]
    concepts: tuple[LooseConcept, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {
            "warnings": [
                {name: getattr(item, name) for name in ("kind", "count", "where", "example", "message")}
                | ({"others": [list(other) for other in item.others]} if item.others else {})
                for item in self.warnings
            ],
            "matched": [
                {name: getattr(item, name) for name in ("subject", "concept", "matched", "lacking", "pictures")}
                for item in self.concepts
            ],
        }

    def lines(self) -> list[str]:
        """All of it in words."""
        return [*self.warning_lines(), *self.concept_lines()]

    def warning_lines(self) -> list[str]:
        """The warnings in words."""
        return [text for warning in self.warnings for text in (f"warning: {warning}", *warning.lines()[1:])]

    def concept_lines(self) -> list[str]:
        """The concepts in words, a line for each; the first ones if there are very many."""
        told = [str(concept) for concept in self.concepts[:_SHOWN_CONCEPTS]]
        if len(self.concepts) > _SHOWN_CONCEPTS:
            told.append(f"and {len(self.concepts) - _SHOWN_CONCEPTS} more concepts, all with --json")
        return told


@dataclass
class _Found:
    """Warnings while they are collected: the first of each kind and how many there are."""

    first: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    others: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, kind: str, message: str, where: str, example: str) -> None:
        if kind in self.first and kind in _EACH_TOLD and self.counts[kind] < _EACH_TOLD[kind]:
            self.others.setdefault(kind, []).append((where, example))
        self.first.setdefault(kind, (message, where, example))
        self.counts[kind] += 1

    def warnings(self) -> tuple[JobWarning, ...]:
        return tuple(
            JobWarning(kind, message, self.counts[kind], where, example, tuple(self.others.get(kind, ())))
            for kind, (message, where, example) in self.first.items()
        )


def job_notes(job: RenderJob, plan: Plan, device: str = "auto") -> Notes:
    """What is worth saying about a job.

    Args:
        job, plan: the job and what was planned of it.
        device: what it will be rendered on, as far as that is known.
    """
    found = _Found()
    drawer = Drawer(job)
    job = drawer.job
    subjects = [
        Said(subject, planned, drawer.is_dynamic(subject))
        for subject, planned in zip(job.subjects, plan.subjects, strict=True)
    ]
    _impossible(plan, found)
    for said in subjects:
        _syntax_of(said, found)
    negative = job.settings.negative_prompt or ""
    syntax = subjects[0].syntax
    _look_for_syntax(negative, "settings.negative_prompt", found, syntax=syntax)
    _lengths(job, subjects, found)
    _settings(job, found)
    _controls(job, plan, found)
    _loading(job, plan, found)
    dtype = job.settings.torch_dtype
    on_cpu = device == "cpu" or (device == "auto" and _stays_on_a_cpu(job.model))
    if on_cpu and (told := half_on_cpu(dtype)):
        found.add("half-on-cpu", told, "settings.torch_dtype", dtype)
    return Notes(found.warnings(), tuple(_loose_concepts(subjects)))


def _stays_on_a_cpu(model: str) -> bool:
    """Whether a job is likely to be rendered without a GPU: the model lies here, and here is none."""
    try:
        here = model == BUNDLED_MODEL or Path(model).exists()
    except (OSError, ValueError):
        return False
    return here and not any(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists()


def _impossible(plan: Plan, found: _Found) -> None:
    message = "nothing of a concept stands in a prompt, which the job accepts; these pictures will fail"
    for subject in plan.subjects:
        for _, reason in subject.impossible:
            found.add("missing-concept", message, subject.subject_id, reason)


def _syntax_of(said: Said, found: _Found) -> None:
    subject = said.subject
    ignored = "prompt-choice" if said.is_drawn else ""
    for part, text in (("style", subject.style), ("subject", subject.subject), ("details", subject.details)):
        if text:
            _look_for_syntax(text, f"{said.name} {part}", found, ignored, said.syntax)
    for place, text, _ in said.entries():
        _look_for_syntax(text, f"{said.name} {place}", found, ignored, said.syntax)


def _look_for_syntax(text: str, where: str, found: _Found, ignored: str = "", syntax: str = "plain") -> None:
    """What a text has of other programs' syntax; of what is drawn, braces that are left were meant as text."""
    for kind, example in find_syntax(text, syntax):
        if kind.kind == ignored and not example.startswith("["):
            continue
        message = f"{kind.what} are no part of prompts here, {kind.instead}"
        found.add(kind.kind, message, where, shown(example))


def _lengths(job: RenderJob, subjects: list[Said], found: _Found) -> None:
    for cut in cut_prompts(job, subjects):
        found.add("cut-prompt", cut.message, cut.where, cut.quoted)
        if cut.has_no_concept:
            message = (
                "the concept is cut off with the end of the prompt, these pictures will fail: move it to the front"
            )
            found.add("cut-concept", message, cut.where, cut.quoted)


def _controls(job: RenderJob, plan: Plan, found: _Found) -> None:
    """Hints that do nothing, and networks that have none."""
    used: set[int] = set()
    told: set[PlannedControl] = set()
    for subject in plan.subjects:
        steps = subject.settings.num_inference_steps
        for asset in subject.assets():
            for control in asset.control:
                used.add(control.net)
                if control in told:
                    continue
                told.add(control)
                first, last = math.ceil(control.start * steps - 1e-9), math.floor(control.end * steps + 1e-9)
                where = f"{subject.subject_id} {asset.scene_id}"
                if control.scale == 0:
                    found.add("useless-control", "a hint with a scale of 0 leads nothing", where, "scale 0")
                elif last <= first:
                    message = f"no whole one of {steps} steps lies between a hint's start and end, it leads nothing"
                    found.add("useless-control", message, where, f"start {control.start:g}, end {control.end:g}")
    for place, net in enumerate(job.controlnets):
        if place not in used:
            message = "a ControlNet is loaded by every worker and no hint is for it: leave it out"
            found.add("unused-controlnet", message, f"controlnets[{place}]", shown(net.called))


def _loading(job: RenderJob, plan: Plan, found: _Found) -> None:
    """LoRAs that do nothing, and embeddings that no prompt names."""
    for index, lora in enumerate(job.loras):
        if lora.weight == 0:
            message = "a LoRA with a weight of 0 changes nothing: leave it out"
            found.add("useless-lora", message, f"loras[{index}]", shown(lora.called))
    waiting = {one.called.lower(): f"embeddings[{index}]" for index, one in enumerate(job.embeddings)}
    texts = chain([job.settings.negative_prompt or ""], (asset.prompt for asset in plan.assets()))
    for text in texts if waiting else ():
        lower = text.lower()
        for token in [token for token in waiting if token in lower]:
            del waiting[token]
        if not waiting:
            break
    for token, where in waiting.items():
        found.add("unused-embedding", "no prompt names an embedding by its token", where, shown(token))


def _settings(job: RenderJob, found: _Found) -> None:
    for name, value, why in _unusual(job):
        told = str(list(value)) if isinstance(value, tuple) else shown(value)
        found.add(f"unusual-{name.replace('_', '-')}", why, f"settings.{name}", told)


def _unusual(job: RenderJob) -> Iterator[tuple[str, Any, str]]:
    """Settings that were written down, are allowed, and seldom make good pictures: name, value, why."""
    settings, given = job.settings, job.settings.model_fields_set
    names = (job.model, *(name for lora in job.loras for name in (lora.path, lora.called)))
    few = is_for_few_steps(settings.for_model(job.model)) or any(_FEW_STEPS.search(name) for name in names)
    steps, guidance = settings.num_inference_steps, settings.guidance_scale
    if steps is not None and steps < 10 and not few:
        yield "num_inference_steps", steps, "fewer than ten steps make rough pictures, 30 to 50 are usual"
    if steps is not None and steps > 100:
        yield "num_inference_steps", steps, "more than a hundred steps cost time and change little, 30 to 50 are usual"
    if guidance is not None and guidance <= 1 and not few:
        yield "guidance_scale", guidance, "1 or less switches guidance off, 5 to 8 are usual"
    if guidance is not None and guidance > 15:
        yield "guidance_scale", guidance, "above 15 colours burn out, 5 to 8 are usual"
    if guidance is not None and guidance <= 1 and settings.negative_prompt:
        yield (
            "negative_prompt",
            settings.negative_prompt,
            "it has no effect with a guidance of 1 or less",
        )
    if settings.mask_dropout == 1:
        yield "mask_dropout", settings.mask_dropout, "1 shares nothing between pictures, 0.5 is usual"
    off = [name for name in ("sdsa", "injection") if name in given and getattr(settings, name) is False]
    if len(off) == 2:
        yield "sdsa", False, "with sdsa and injection off nothing keeps a subject the same"
    if settings.injection_alpha == 0 and "sdsa" not in off:
        yield "injection_alpha", 0, "0 switches injection off"
    yield from _without_effect(job)
    yield from _unusual_size(job)


def _without_effect(job: RenderJob) -> Iterator[tuple[str, Any, str]]:
    """What is saved on scenes, where the rest of the settings leaves nothing to it, or it takes from them."""
    settings, given = job.settings.for_model(job.model), job.settings.model_fields_set
    reuse, guided = settings.reuse_deep, settings.guidance_interval
    for name in ("lookahead", "lookahead_maps"):
        if name in given and settings.first_pass != "lookahead":
            value = getattr(job.settings, name)
            yield name, value, f"it has no effect with first_pass: {settings.first_pass}, only with lookahead"
    if "lookahead_maps" in given and settings.lookahead_maps > len(settings.lookahead) + 1:
        yield (
            "lookahead_maps",
            settings.lookahead_maps,
            "there are fewer calls: that of the fork and those of lookahead",
        )
    if reuse is not None and reuse[1] == 1 and "reuse_deep" in given:
        yield "reuse_deep", reuse, "with a period of 1 every call is made in full"
    yield from sampling_advice(settings)
    if "shared_every" in given and not settings.sdsa:
        yield "shared_every", settings.shared_every, "it has no effect with sdsa off"
    if "guidance_interval" in given and settings.guidance_scale <= 1:
        yield "guidance_interval", guided, "it has no effect with a guidance_scale of 1 or less"
    elif guided[0] == guided[1]:
        yield "guidance_interval", guided, "it is empty, which switches guidance off"


def _unusual_size(job: RenderJob) -> Iterator[tuple[str, Any, str]]:
    settings = job.settings
    if settings.height is None and settings.width is None:
        return
    native = native_size(job.model)
    height, width = settings.height or native[0], settings.width or native[1]
    share = height * width / (native[0] * native[1])
    own = f"the model's own size is {native[1]} x {native[0]}"
    if not 0.4 <= share <= 2.5:
        yield (
            "size",
            f"{width} x {height}",
            f"pictures much smaller or larger than that are poor, {own}",
        )
    elif not 0.4 <= (height / width) / (native[0] / native[1]) <= 2.5:
        yield "size", f"{width} x {height}", f"pictures of such a shape repeat their subject, {own}"


def _loose_concepts(subjects: list[Said]) -> Iterator[LooseConcept]:
    left = _LOOSE_PROMPTS
    for said in subjects:
        subject = said.subject
        heads = [plain_text(head, said.syntax) for head in (subject.caption(""), subject.prompt(""))]
        if all(mentions(head, concept) for concept in subject.concept for head in heads):
            continue
        anchors = (prompt for _, prompt, _, is_anchor in said.prompts() if is_anchor)
        as_written = all(mentions(prompt, concept) for prompt in anchors for concept in subject.concept)
        matched: dict[str, Counter[str]] = {concept: Counter() for concept in subject.concept}
        lacking: dict[str, dict[str, None]] = {concept: {} for concept in subject.concept}
        for _, prompt, count, every in said.prompts():
            if left <= 0 or all(mentions(prompt, concept) for concept in subject.concept):
                continue
            left -= 1
            found = find_concepts(prompt, subject.concept, every=every, exact_suffices=as_written and not every)
            for concept, match in zip(subject.concept, found, strict=True):
                if match is not None and not match.exact:
                    matched[concept][match.shown(prompt)] += count
                    lacking[concept].update(dict.fromkeys(match.lacking))
        for concept, texts in matched.items():
            if texts:
                most = tuple(text for text, _ in texts.most_common(10))
                yield LooseConcept(said.name, concept, most, tuple(lacking[concept]), texts.total())
