"""What a batch is conditioned on, and how its images lie in the rows that a network sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a batch, unconditional half first.

    Attributes:
        halves: 2 with classifier-free guidance, else 1.
        images: rows of a half.
    """

    halves: int
    images: int

    def by_half(self, rows: Tensor) -> Tensor:
        """[rows, ...] -> [halves, images, ...]."""
        return rows.reshape(self.halves, self.images, *rows.shape[1:])

    def conditional(self, rows: Tensor) -> Tensor:
        """The conditional half of [rows, ...], as a view: [images, ...]."""
        return rows[-self.images :]


@dataclass(frozen=True)
class Conditioning:
    """What a batch's texts became, for all rows.

    Attributes:
        rows: how many there are.
        text: [rows, text tokens, channels].
        pooled: [rows, channels].
        extra: what else a model is told, by the model's own names; SDXL has ``time_ids`` [rows, 6] (original size,
            crop, target size).
    """

    rows: Rows
    text: Tensor
    pooled: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def conditional(self) -> Conditioning:
        """Of the conditional half alone."""
        rows, extra = self.rows, {name: self.rows.conditional(value) for name, value in self.extra.items()}
        return Conditioning(Rows(1, rows.images), rows.conditional(self.text), rows.conditional(self.pooled), extra)
