"""Everything that a job says to the model, prompt by prompt, each with the place where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from consistory_ray.concepts.compel_syntax import plain_text
from consistory_ray.plan.words import own_words, whole

if TYPE_CHECKING:
    from consistory_ray.jobs.subject import Anchor, GivenPicture, Scene, Subject
    from consistory_ray.plan.plan import SubjectPlan


@dataclass(frozen=True, slots=True)
class Said:
    """The words of a subject.

    Attributes:
        subject: as the job has it, its own words drawn.
        planned: what was planned of it.
        is_drawn: whether its prompts are dynamic: then each picture has words of its own.
    """

    subject: Subject
    planned: SubjectPlan
    is_drawn: bool

    @property
    def name(self) -> str:
        """The subject's id."""
        return self.planned.subject_id

    @property
    def syntax(self) -> str:
        """How its prompts are written."""
        return self.planned.settings.prompt_syntax

    def entries(self) -> Iterator[tuple[str, str, int]]:
        """Place, words and number of pictures of every anchor and scene."""
        shown_by = "pictures" if self.subject.pictures else "anchors"
        anchors = (anchor.prompt for anchor in self.subject.shown_by)
        if self.is_drawn:
            anchors = (text for text, _ in self.planned.anchor_prompts)
        for index, text in enumerate(anchors):
            yield f"{shown_by}[{index}]", text, 1
        if not self.is_drawn:
            for index, scene in enumerate(self.subject.scenes):
                yield f"scenes[{index}]", scene.prompt, scene.count
            return
        head = len(self.subject.prompt(""))
        for asset in self.planned.scenes:
            yield asset.scene_id, asset.prompt[head:].strip(), 1

    def prompts(self) -> Iterator[tuple[str, str, int, bool]]:
        """The same with whole prompts, what of them is text, and whether it is an anchor's."""
        anchors = len(self.subject.shown_by)
        for number, (place, text, count) in enumerate(self.entries()):
            head = self.subject.caption if number < anchors else self.subject.prompt
            yield place, plain_text(head(text), self.syntax), count, number < anchors

    def others(self) -> Iterator[tuple[str, str]]:
        """Place and text of what is said besides prompts: to the second text encoder, and what not to show."""
        shown_by = "pictures" if self.subject.pictures else "anchors"
        anchors = ((f"{shown_by}[{n}]", one, self.subject.caption) for n, one in enumerate(self.subject.shown_by))
        scenes = ((f"scenes[{n}]", one, self.subject.prompt) for n, one in enumerate(self.subject.scenes))
        entries: Iterator[tuple[str, Anchor | GivenPicture | Scene, Callable[[str], str]]] = chain(anchors, scenes)
        for place, entry, head in entries:
            for name, text in whole(own_words(entry), head).to_dict().items():
                yield f"{place}.{name}", text
