"""How a cache's tensors are packed: as they are, or in 8 or 4 bits a number.

All packings are symmetric and per token: a token is packed by its own numbers alone, so that tokens of several caches
can be put one after the other, and one token that is far larger than the others costs those nothing. Scales are in the
tensor's dtype, rounded up, so that nothing is ever cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from consistory_ray.consistory.cache.codec_sizes import INT4_GROUP, INT8_GROUP


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


class Int8:
    """Whole numbers from -127 to 127, each group of 64 channels of a token with a scale of its own.

    ``name.int8`` int8 [..., channels] and ``name.scale`` [..., groups] in the tensor's dtype: half a scale is the
    largest error, but for the rounding of the product. A channel far larger than the others costs its group only.
    """

    name = "int8"

    def pack(self, name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        """See :class:`Codec`."""
        whole, scale = _like(tensor, torch.int8), _scales(tensor, INT8_GROUP)
        for index, layer in enumerate(tensor):  # one at a time: float32 takes much room
            whole[index], scale[index] = _quantised(layer, INT8_GROUP, 127)
        return {f"{name}.int8": whole, f"{name}.scale": scale}

    def unpack(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """See :class:`Codec`; in the dtype that was packed."""
        scale = tensors[f"{name}.scale"]
        return _scaled(tensors[f"{name}.int8"].to(scale.dtype), scale, INT8_GROUP)


class Float8:
    """Float8 (e4m3), each token with a scale that brings its largest number to 448, the largest there is.

    ``name.fp8`` [..., channels] and ``name.scale`` [..., 1] in the tensor's dtype: the error is a sixteenth of each
    number at most, so that small channels keep their digits beside large ones.
    """

    name = "fp8"

    def pack(self, name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        """See :class:`Codec`."""
        channels = tensor.shape[-1]
        packed, scale = _like(tensor, torch.float8_e4m3fn), _scales(tensor, channels)
        for index, layer in enumerate(tensor):
            divided, scale[index] = _divided(layer, channels, 448)
            packed[index] = divided.squeeze(-2).to(packed.dtype)
        return {f"{name}.fp8": packed, f"{name}.scale": scale}

    def unpack(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """See :class:`Codec`; in the dtype that was packed."""
        scale = tensors[f"{name}.scale"]
        return tensors[f"{name}.fp8"].to(scale.dtype).mul_(scale)


class Int4:
    """Whole numbers from -7 to 7, two in a byte, each group of 32 channels of a token with a scale of its own.

    ``name.int4`` uint8 [..., channels / 2], in whose low half is the first of two channels and 8 is zero, and
    ``name.scale`` [..., groups] in the tensor's dtype. Where channels are odd it is ``name.int4odd``, whose last high
    half is nothing.
    """

    name = "int4"

    def pack(self, name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        """See :class:`Codec`."""
        odd = tensor.shape[-1] % 2
        pairs, scale = _like(tensor, torch.uint8, (tensor.shape[-1] + odd) // 2), _scales(tensor, INT4_GROUP)
        for index, layer in enumerate(tensor):
            whole, scale[index] = _quantised(layer, INT4_GROUP, 7)
            halves = torch.nn.functional.pad(whole, (0, odd)).add_(8).to(torch.uint8)
            pairs[index] = halves[..., ::2] | halves[..., 1::2] << 4
        return {f"{name}.int4odd" if odd else f"{name}.int4": pairs, f"{name}.scale": scale}

    def unpack(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """See :class:`Codec`; in the dtype that was packed."""
        scale, odd = tensors[f"{name}.scale"], f"{name}.int4odd" in tensors
        pairs = tensors[f"{name}.int4odd" if odd else f"{name}.int4"]
        halves = torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(-2)
        return _scaled(halves[..., : -1 if odd else None].to(scale.dtype).sub_(8), scale, INT4_GROUP)


def _like(tensor: Tensor, dtype: torch.dtype, channels: int | None = None) -> Tensor:
    shape = (*tensor.shape[:-1], tensor.shape[-1] if channels is None else channels)
    return torch.empty(shape, dtype=dtype, device=tensor.device)


def _scales(tensor: Tensor, size: int) -> Tensor:
    return _like(tensor, tensor.dtype, -(-tensor.shape[-1] // size))


def _quantised(tensor: Tensor, size: int, most: int) -> tuple[Tensor, Tensor]:
    """Whole numbers from -most to most in float32, [..., channels], and their scales, [..., groups]."""
    divided, scale = _divided(tensor, size, most)
    return divided.round_().flatten(-2)[..., : tensor.shape[-1]], scale


def _divided(tensor: Tensor, size: int, most: int) -> tuple[Tensor, Tensor]:
    """Groups of channels divided so that none is beyond -most to most, float32 [..., groups, size]; and the divisors.

    Zeros follow the last channel. A group that holds NaN or infinity has such a divisor too, and is not finite again.
    """
    *tokens, channels = tensor.shape
    padded = torch.nn.functional.pad(tensor.float(), (0, -channels % size))
    groups = padded.reshape(*tokens, padded.shape[-1] // size, size)
    scale = _rounded_up(groups.abs().amax(dim=-1) / most, tensor.dtype, most)
    divisor = scale.float().masked_fill(scale == 0, 1).unsqueeze(-1)
    return (groups / divisor).clamp_(-most, most), scale


def _rounded_up(exact: Tensor, dtype: torch.dtype, most: int) -> Tensor:
    """Scales, from 0 on, in a dtype: the next one up, but so that ``most`` times as much is still a number there."""
    scale, precision = exact.to(dtype), torch.finfo(dtype)
    if scale.itemsize < exact.itemsize:
        too_small = scale.float() < exact
        scale = (scale.view(torch.int16) + too_small).view(dtype)  # the bits of floats are in their order
    limit = precision.max / most * (1 - precision.eps)
    return torch.where(exact.isinf(), exact.to(dtype), scale.clamp(max=limit))


def _scaled(whole: Tensor, scale: Tensor, size: int) -> Tensor:
    """Every group of channels times its scale, in place."""
    *tokens, channels = whole.shape
    count, rest = divmod(channels, size)
    if count:
        whole[..., : count * size].view(*tokens, count, size).mul_(scale[..., :count, None])
    if rest:
        whole[..., count * size :].mul_(scale[..., count:])
    return whole


NONE = Unpacked()
CODECS: dict[str, Codec] = {codec.name: codec for codec in (NONE, Int8(), Float8(), Int4())}
"""Those that caches can be read with, by name."""
