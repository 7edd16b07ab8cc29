"""Where attention happens in a model, in the method's words: levels, their grids of tokens, and layers.

Which levels there are, and which of them does what, a model's backbone lists; nothing here knows one by name. Pure: no
torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Level: TypeAlias = str
"""Name of a grid of tokens that self-attention shares, such as SDXL's ``coarse`` and ``fine``."""


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of a model.

    Attributes:
        names: all of them, in the order in which caches store them.
        masks: whose cross-attention makes the subject masks; they are resized to the others (section 3.1).
        features: at whose tokens correspondences are found and features injected (section 3.4).
    """

    names: tuple[Level, ...]
    masks: Level
    features: Level


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows and columns of a level's tokens."""

    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class Layer:
    """One attention layer of a model.

    Attributes:
        name: of the module, e.g. ``up_blocks.0.attentions.1.transformer_blocks.3.attn1``.
        is_self: self-attention rather than cross-attention.
        level: None for grids the method does not use.
        makes_maps: cross-attention whose probabilities make the subject masks.
        shared_slot: for self-attention that shares tokens, its place among that of its level, else None.
        injected_slot: for self-attention whose output features are injected into, its place among it, else None.
        is_last_shared: the last sharing self-attention that a call reaches.
    """

    name: str
    is_self: bool
    level: Level | None
    makes_maps: bool = False
    shared_slot: int | None = None
    injected_slot: int | None = None
    is_last_shared: bool = False
