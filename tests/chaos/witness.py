"""A fake renderer that leaves word of what it is at, for whoever is about to kill its process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consistory_ray.testing import FakeRenderer

if TYPE_CHECKING:
    from PIL.Image import Image

    from consistory_ray.engine.workers.renderer import MadeSubject, RendererSpec
    from consistory_ray.plan.plan import Asset, SubjectPlan
    from consistory_ray.settings import MethodSettings

_WIDTH = 8  # of a word in its file, which is one write and so never seen half-written


class Witness(FakeRenderer):
    """Writes into the folder ``trace`` whether it has ``loaded``, makes ``anchors``, renders ``scenes``, or has handed
    pictures over that are ``writing``.
    """

    def __init__(self, spec: RendererSpec | None = None, *, trace: str, **options: Any) -> None:
        super().__init__(spec, trace=trace, **options)
        self._file = os.open(_path(trace, os.getpid()), os.O_WRONLY | os.O_CREAT, 0o600)
        self._say("loaded")

    def make_subject(self, subject: SubjectPlan) -> MadeSubject:
        """Anchors."""
        self._say("anchors")
        made = super().make_subject(subject)
        self._say("writing")
        return made

    def render(
        self, scenes: Sequence[Asset], cache: Mapping[str, str], settings: MethodSettings | None = None
    ) -> list[Image]:
        """Scenes."""
        self._say("scenes")
        images = super().render(scenes, cache, settings)
        self._say("writing")
        return images

    def _say(self, word: str) -> None:
        os.pwrite(self._file, word.ljust(_WIDTH).encode(), 0)


def last_word(trace: str | os.PathLike[str], pid: int) -> str:
    """What a worker's process is at; ``starting`` before it has loaded."""
    try:
        return _path(trace, pid).read_text().strip() or "starting"
    except FileNotFoundError:
        return "starting"


def _path(trace: str | os.PathLike[str], pid: int) -> Path:
    return Path(trace, f"{pid}.word")
