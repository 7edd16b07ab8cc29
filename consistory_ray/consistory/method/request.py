"""What is rendered together, as one value: everything that a call was asked for and that its steps need to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor

from consistory_ray.consistory.method.conditioning import Conditioning, Rows
from consistory_ray.consistory.method.hints import Hints
from consistory_ray.consistory.method.latents import SeededNoise
from consistory_ray.consistory.method.layout import Grid, Level, Levels
from consistory_ray.consistory.method.steps import StepPlan
from consistory_ray.settings import MethodSettings

Additions: TypeAlias = Callable[[Tensor, Tensor, Conditioning, int, int], Any]
"""What is added to the trunk of every call of a step: residuals in the shape that the model's ``Trunk.plus`` takes, or
None for nothing.

Called once a step with what the network is shown, [rows, channels, height, width], the timestep, the conditioning, the
step and how many there are. Vanilla calls, both passes, anchors and scenes get residuals alike."""


@dataclass(frozen=True)
class Batch:
    """Images that are rendered together.

    Attributes:
        prompts: one per image.
        seeds: one per image, their positions where only latents were given.
        latents: [images, channels, h, w] float32 on the CPU, the initial noise.
        columns: which text tokens make the masks, [images, text tokens, concepts]; None for no masks.
        positions: for each prompt, for each concept, its token positions.
        hints: for each image what leads it; empty where nothing leads any.
        fixed: whether every call is to have the same shape whatever the images are, see :meth:`padded`.
        prompts_2: what the second text encoder reads of each image; empty where it reads the prompts.
        negatives: the text of each image's unconditional half, None for the zero embedding; empty where all have that
            of the settings.
        lengths: how many text tokens each image's texts need; empty where all have as many.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    latents: Tensor
    columns: Tensor | None
    positions: list[list[list[int]]]
    hints: Hints = ()
    fixed: bool = False
    prompts_2: tuple[str, ...] = ()
    negatives: tuple[str | None, ...] = ()
    lengths: tuple[int, ...] = ()

    def parts(self, size: int) -> list[list[int]]:
        """Which images are rendered together, at most so many; only those with texts of one length.

        Texts that were made longer would change their pictures, which then depended on those beside them.
        """
        groups: dict[int, list[int]] = {}
        for image in range(len(self.prompts)):
            groups.setdefault(self.lengths[image] if self.lengths else 0, []).append(image)
        return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]

    def part(self, images: list[int]) -> Batch:
        """Some of the images, at least one, with columns for the tokens that their texts have."""
        columns = None if self.columns is None else self.columns[images]
        lengths = tuple(self.lengths[image] for image in images) if self.lengths else ()
        if columns is not None and lengths:
            columns = columns[:, : max(lengths)]
        return replace(self._rows(images), columns=columns, lengths=lengths)

    def padded(self, count: int) -> Batch:
        """So many images, the last one repeated: numbers are rounded alike in batches of the same shape only."""
        rows = [*range(len(self.prompts)), *[len(self.prompts) - 1] * (count - len(self.prompts))]
        return replace(self._rows(rows), fixed=True)

    def _rows(self, rows: list[int]) -> Batch:
        """These images in this order."""

        def of_rows(some: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(some[row] for row in rows) if some else ()

        return Batch(
            of_rows(self.prompts),
            of_rows(self.seeds),
            self.latents[rows],
            None if self.columns is None else self.columns[rows],
            [self.positions[row] for row in rows] if self.positions else [],
            of_rows(self.hints),
            prompts_2=of_rows(self.prompts_2),
            negatives=of_rows(self.negatives),
            lengths=of_rows(self.lengths),
        )

    @property
    def noise(self) -> SeededNoise:
        """See :class:`~consistory_ray.consistory.method.latents.Noise`."""
        return SeededNoise(self.seeds, self.latents)


@dataclass(frozen=True)
class Request:
    """A batch with all that its passes need to know.

    Attributes:
        batch: the images.
        settings: complete ones, with the picture's size.
        plan: which step does what.
        levels, grids: the model's levels, and each one's tokens for pictures of this size.
        conditioning: of the batch.
        additions: what is added to the network's trunk, None for nothing.
        scenes: of anchors, what their scenes will do, which decides what of the anchors is kept; None for scenes.
    """

    batch: Batch
    settings: MethodSettings
    plan: StepPlan
    levels: Levels
    grids: Mapping[Level, Grid]
    conditioning: Conditioning
    additions: Additions | None = None
    scenes: StepPlan | None = None

    @property
    def rows(self) -> Rows:
        """How the images lie in the network's rows."""
        return self.conditioning.rows
