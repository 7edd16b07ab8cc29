"""How many bytes each codec takes for a token, known before anything is packed. Pure: no torch."""

from __future__ import annotations

from typing import get_args

from consistory_ray.guards.choices import CacheCodec

INT8_GROUP = 64
"""Channels with a scale of their own in int8; head widths and channels are multiples of it.

Of normal numbers 44 dB stay, as with 128 (44) or one scale per token (42). Where one channel in a hundred is 50 times
the others, as the states of large models may have some, 21 dB stay of the others, about what int4 keeps without such
channels; with 128 it is 19, per token 13."""
INT4_GROUP = 32
"""The same in int4, whose 15 steps need narrower groups."""


def packed_bytes(codec: CacheCodec, channels: int, item_bytes: int) -> int:
    """Bytes of one token of one layer: its channels, and scales in the model's dtype.

    Args:
        codec: by name.
        channels: of the token.
        item_bytes: of a number in the model's dtype.
    """
    sizes = {
        "none": channels * item_bytes,
        "int8": channels + _groups(channels, INT8_GROUP) * item_bytes,
        "fp8": channels + item_bytes,
        "int4": (channels + 1) // 2 + _groups(channels, INT4_GROUP) * item_bytes,
    }
    assert sizes.keys() == set(get_args(CacheCodec))
    return sizes[codec]


def _groups(channels: int, size: int) -> int:
    return -(-channels // size)
