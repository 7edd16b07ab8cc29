"""How a cache's tensors are packed: the seam for caches that hold less than the model's own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Codec(Protocol):
    """Packs what is shared and injected at a step. A cache's file tells its name.

    Attributes:
        name: stored with the cache; names what is done, for ever.
    """

    name: str

    def pack(self, name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        """One tensor [layers, ..., tokens, channels] as tensors of any shape whose names begin with its own.

        It keeps nothing: layers, tokens and steps are unpacked apart from each other, on any device.
        """
        ...

    def unpack(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The tensor, or nearly, in any floating dtype, where the packed ones are. It must not write to them."""
        ...


class Unpacked:
    """Tensors as they are."""

    name = "none"

    def pack(self, name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        """See :class:`Codec`."""
        return {name: tensor}

    def unpack(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """See :class:`Codec`."""
        return tensors[name]


NONE = Unpacked()
CODECS: dict[str, Codec] = {NONE.name: NONE}
"""Those that caches can be read with, by name."""
