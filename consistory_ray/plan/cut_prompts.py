"""Prompts that are longer than a model's text encoders read, and the words that are lost with their ends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consistory_ray.concepts.matching import Match, find_concepts
from consistory_ray.plan.prompt_lengths import PromptReader

if TYPE_CHECKING:
    from consistory_ray.jobs.job import RenderJob
    from consistory_ray.plan.said import Said

_LOOKED_AT = 5_000
_QUOTED = 240


@dataclass(frozen=True, slots=True)
class CutPrompt:
    """A prompt that is cut off.

    Attributes:
        where: it stands.
        lost: the words of it that are not read.
        visible: how many tokens are read.
        measured: whether the model's own tokenizer counted them, or those of CLIP were estimated.
        has_no_concept: whether a concept is cut off with it, which is known only where it was measured.
    """

    where: str
    lost: str
    visible: int
    measured: bool
    has_no_concept: bool

    @property
    def message(self) -> str:
        """What happens and what to do about it."""
        basis = "the model reads" if self.measured else "by an estimate of CLIP's tokens the model reads"
        only = f"{basis} only the first {self.visible} tokens of a prompt, the rest is lost"
        return f"{only}: shorten it, or write prompt_syntax: compel under settings"

    @property
    def quoted(self) -> str:
        """What is lost, a long text only in part."""
        left = len(self.lost) - _QUOTED
        text = self.lost if left <= 0 else f"{self.lost[:_QUOTED]}… ({left} more characters)"
        about = "lost is" if self.measured else "lost is about"
        return f"{about} {json.dumps(text, ensure_ascii=not text.isprintable())}"


def cut_prompts(job: RenderJob, subjects: Sequence[Said]) -> Iterator[CutPrompt]:
    """The prompts of a job that are cut off.

    Of very many long prompts the first ones are looked at: it is about what is probably wrong with all of them.

    Args:
        job: names the model.
        subjects: what it says.
    """
    reader = PromptReader(job.model, job.config)
    looked_at = 0
    for where, prompt, concepts in _prompts(job, subjects):
        if len(prompt) * 4 <= reader.visible:  # a token is a byte at least
            continue
        looked_at += 1
        if looked_at > _LOOKED_AT:
            return
        end = reader.end(prompt)
        if end is not None:
            matches = [match for match in find_concepts(prompt, concepts) if match is not None] if concepts else []
            no_concept = reader.measured and any(_is_cut(match, end) for match in matches)
            lost = prompt[_word_start(prompt, end) :].strip()
            yield CutPrompt(where, lost, reader.visible, reader.measured, no_concept)


def _prompts(job: RenderJob, subjects: Sequence[Said]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """All that is read as plain text; in compel's syntax nothing is cut off."""
    if job.settings.for_model(job.model).prompt_syntax == "plain":
        for name in ("negative_prompt", "negative_prompt_2"):
            if text := getattr(job.settings, name):
                yield f"settings.{name}", text, ()
    for said in subjects:
        if said.syntax != "plain":
            continue
        for place, prompt, _, _ in said.prompts():
            yield f"{said.name} {place}", prompt, said.subject.concept
        for place, text in said.others():
            yield f"{said.name} {place}", text, ()


def _word_start(prompt: str, end: int) -> int:
    """Where the word begins in whose middle a prompt is cut off."""
    if end < len(prompt) and prompt[end - 1].isalnum() and prompt[end].isalnum():
        return max(prompt.rfind(" ", 0, end), 0)
    return end


def _is_cut(match: Match, end: int) -> bool:
    """Whether nothing of a concept is left; of words that stand apart one is enough."""
    places = match.places if match.exact else [(span,) for place in match.places for span in place]
    return all(place[-1][1] > end for place in places)
