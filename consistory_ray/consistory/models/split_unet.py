"""One UNet call in two halves, so that calls on the same latents can share the first (section 3.3).

:class:`SplitUNet` mirrors ``UNet2DConditionModel.forward`` of diffusers for the SDXL architecture with the model's own
blocks; a test asserts that both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from consistory_ray.consistory.method.attention import (
    AttentionCall,
    LayerProcessor,
    Queries,
    QueriesComplete,
    TextKeys,
)
from consistory_ray.consistory.method.conditioning import Conditioning
from consistory_ray.consistory.method.layout import Layer
from consistory_ray.consistory.method.tap import Tap
from consistory_ray.consistory.models.hooks import UNetHooks
from consistory_ray.consistory.models.sdxl_layout import read_layers
from consistory_ray.settings import FreeU


@dataclass(frozen=True)
class Trunk:
    """What the ``down`` and ``mid`` parts leave for the ``up`` part."""

    sample: Tensor
    residuals: tuple[Tensor, ...]
    embedding: Tensor
    text: Tensor

    def plus(self, residuals: tuple[tuple[Tensor, ...], Tensor]) -> Trunk:
        """A trunk with a ControlNet's residuals added: one for each skip connection, and that of the ``mid`` part."""
        skips, mid = residuals
        added = tuple(own + other for own, other in zip(self.residuals, skips, strict=True))
        return replace(self, sample=self.sample + mid, residuals=added)


class SplitUNet:
    """A UNet whose ``down``/``mid`` and ``up`` parts are called separately. Needs :func:`method_installed`.

    See :class:`~consistory_ray.consistory.method.backbone.Network`; what is tapped is the first ``up`` block's output,
    which FreeU overwrites afterwards.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.unet = unet
        self._hooks = UNetHooks(unet)

    def begin(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning, call: AttentionCall) -> Trunk:
        """Run the ``down`` and ``mid`` parts on [rows, channels, height, width] latents."""
        unet = self.unet
        sample, embedding = self._entered(sample, timestep, conditioning)
        residuals: tuple[Tensor, ...] = (sample,)
        for block in unet.down_blocks:
            sample, states = block(sample, embedding, **_attention_inputs(block, conditioning.text, call))
            residuals += states
        if unet.mid_block is not None:
            sample = unet.mid_block(sample, embedding, **_attention_inputs(unet.mid_block, conditioning.text, call))
        return Trunk(sample, residuals, embedding, conditioning.text)

    def _entered(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """The first convolution's output, and the embedding of the timestep and of what else is told."""
        unet = self.unet
        sample = self._hooks.before(sample)
        added = {"text_embeds": conditioning.pooled, **conditioning.extra}
        embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))
        embedding = embedding + unet.get_aug_embed(
            emb=embedding, encoder_hidden_states=conditioning.text, added_cond_kwargs=added
        )
        if unet.time_embed_act is not None:
            embedding = unet.time_embed_act(embedding)
        return unet.conv_in(sample), embedding

    def finish(
        self,
        trunk: Trunk,
        call: AttentionCall,
        tap: Tap | None = None,
        *,
        reuse: bool = False,
        keep: Tap | None = None,
    ) -> Tensor:
        """Run the ``up`` part and the output layers.

        Args:
            trunk: from :meth:`begin`; unusable afterwards unless ``reuse``.
            call: what the attention layers do.
            tap: receives the output of the first block, which it must not keep a reference to: FreeU overwrites it.
            reuse: leave the trunk as it is, for another call.
            keep: receives the input of the last block.

        Returns:
            The model's prediction, [rows, channels, height, width].
        """
        sample = trunk.sample.clone() if reuse else trunk.sample  # FreeU scales its input in place
        last = len(self.unet.up_blocks) - 1
        for index in range(last + 1):
            if index == last and keep is not None:
                keep(sample)
            sample = self._up(index, sample, trunk, call)
            if index == 0 and tap is not None:
                tap(sample)
        return self._out(sample)

    def _up(self, index: int, sample: Tensor, trunk: Trunk, call: AttentionCall) -> Tensor:
        """One block of the ``up`` part, with its skip connections: the last ones that earlier blocks have left."""
        blocks: Any = self.unet.up_blocks
        stop = len(trunk.residuals) - sum(len(block.resnets) for block in blocks[:index])
        start = stop - len(blocks[index].resnets)
        # Sizes that halving does not divide need to be told what to grow back to; for others it is the default.
        size = trunk.residuals[start - 1].shape[2:] if start else None
        inputs = _attention_inputs(blocks[index], trunk.text, call)
        grown: Tensor = blocks[index](
            sample, trunk.residuals[start:stop], trunk.embedding, upsample_size=size, **inputs
        )
        return grown

    def _out(self, sample: Tensor) -> Tensor:
        unet: Any = self.unet
        if unet.conv_norm_out is not None:
            sample = unet.conv_act(unet.conv_norm_out(sample))
        return self._hooks.after(unet.conv_out(sample))

    def features(self, trunk: Trunk, call: AttentionCall, tap: Tap) -> None:
        """See :class:`~consistory_ray.consistory.method.backbone.Network`; the trunk is unusable afterwards."""
        tap(self._up(0, trunk.sample, trunk, call))
        self._hooks.after(trunk.sample)

    def shallow(
        self,
        sample: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        deep: Tensor,
        residuals: tuple[tuple[Tensor, ...], Tensor] | None = None,
    ) -> Tensor:
        """The first ``down`` and the last ``up`` block alone; see the method's ``Network``."""
        unet, call = cast(Any, self.unet), AttentionCall()
        first, last = unet.down_blocks[0], unet.up_blocks[-1]
        sample, embedding = self._entered(sample, timestep, conditioning)
        _, states = first(sample, embedding, **_attention_inputs(first, conditioning.text, call))
        skips: tuple[Tensor, ...] = (sample, *states)[: len(last.resnets)]
        if residuals is not None:
            skips = tuple(own + other for own, other in zip(skips, residuals[0], strict=False))  # the outermost
        return self._out(last(deep, skips, embedding, **_attention_inputs(last, conditioning.text, call)))

    @staticmethod
    def conditional_residuals(
        residuals: tuple[tuple[Tensor, ...], Tensor], images: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """See :class:`~consistory_ray.consistory.method.backbone.Network`."""
        skips, mid = residuals
        return tuple(skip[-images:] for skip in skips), mid[-images:]

    def vanilla_queries(self, trunk: Trunk, text_keys: TextKeys, *, reuse: bool = False) -> Queries:
        """The ``up`` queries without the method, at the cost of the ``up`` part up to the last of them."""
        captured: Queries = {}
        try:
            self.finish(trunk, AttentionCall(text_keys=text_keys, captured=captured), reuse=reuse)
        except QueriesComplete:
            return captured
        raise RuntimeError("the UNet call ended without reaching its last self-attention")


def _attention_inputs(block: nn.Module, text: Tensor, call: AttentionCall) -> dict[str, Any]:
    if not getattr(block, "has_cross_attention", False):
        return {}
    return {"encoder_hidden_states": text, "cross_attention_kwargs": {"call": call}}


def attention_modules(unet: UNet2DConditionModel) -> dict[str, Attention]:
    """The UNet's attention modules by path."""
    return {name: module for name, module in unet.named_modules() if isinstance(module, Attention)}


def unet_layers(unet: UNet2DConditionModel) -> tuple[Layer, ...]:
    """Every attention layer of the UNet with its place.

    Raises:
        CheckpointError: the UNet is not of the SDXL architecture.
    """
    return read_layers(attention_modules(unet), len(unet.down_blocks))


@contextmanager
def method_installed(unet: UNet2DConditionModel, freeu: FreeU | None) -> Iterator[SplitUNet]:
    """Give the UNet the method's attention processors and FreeU; leave it as found, whatever happens.

    Raises:
        CheckpointError: the UNet is not of the SDXL architecture, or has hooks that would be bypassed.
    """
    modules: dict[str, Any] = dict(attention_modules(unet))
    processors = {name: module.processor for name, module in modules.items()}
    freeu_before = [
        {key: getattr(block, key) for key in _FREEU_KEYS if hasattr(block, key)} for block in unet.up_blocks
    ]
    training = {module: module.training for module in unet.modules()}
    split = SplitUNet(unet)
    try:
        for layer in unet_layers(unet):
            modules[layer.name].set_processor(LayerProcessor(layer))
        for block in unet.up_blocks:
            for key, value in zip(_FREEU_KEYS, freeu or (None,) * 4, strict=True):
                setattr(block, key, value)
        unet.eval()
        yield split
    finally:
        for name, module in modules.items():
            module.set_processor(processors[name])
        for block, before in zip(unet.up_blocks, freeu_before, strict=True):
            for key in _FREEU_KEYS:
                if key in before:
                    setattr(block, key, before[key])
                elif hasattr(block, key):
                    delattr(block, key)
        for part, mode in training.items():
            part.training = mode


_FREEU_KEYS = ("s1", "s2", "b1", "b2")
