"""Seeds of the pictures for which a job names none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from consistory_ray.jobs.subject import Anchor, GivenPicture
from consistory_ray.plan.drawing import Take
from consistory_ray.plan.words import digest

_SEEDS = 2**32


class Seeds:
    """Seeds of one subject where the job names none.

    They are hashes of the job's seed, the subject's own id or words, the scene's words and how often these occurred
    before, so that neither order nor neighbours matter, and a new style keeps the compositions.
    """

    def __init__(self, job_seed: int, scenes: Sequence[Take], scope: str) -> None:
        self._scope = [job_seed, scope]
        self._seen: Counter[tuple[str, str]] = Counter()
        repeated = Counter(scene.prompt for scene in scenes)
        self._used: dict[str, set[int]] = {text: set() for text, times in repeated.items() if times > 1}
        for scene in scenes:
            if scene.seed is not None and scene.prompt in self._used:
                self._used[scene.prompt].update(range(scene.seed, scene.seed + scene.count))

    def of_anchor(self, anchor: Anchor | GivenPicture) -> int:
        """The seed of an anchor, or of the noise on a picture."""
        return self._derived("anchor", anchor.prompt) if anchor.seed is None else anchor.seed

    def of_scene(self, scene: Take) -> Sequence[int]:
        """The seeds of a scene's pictures: its own, counting up, or derived ones that no scene of these words has."""
        if scene.seed is not None:
            return range(scene.seed, scene.seed + scene.count)
        while True:
            first = self._derived("scene", scene.prompt)
            seeds = [(first + number) % _SEEDS for number in range(scene.count)]
            used = self._used.get(scene.prompt)
            if used is None:
                return seeds
            if used.isdisjoint(seeds):
                used.update(seeds)
                return seeds

    def _derived(self, kind: str, text: str) -> int:
        occurrence = self._seen[kind, text]
        self._seen[kind, text] += 1
        return int(digest([*self._scope, kind, text, occurrence])[:8], 16)
