"""One UNet call in two halves, so that calls on the same latents can share the first (section 3.3).

:class:`SplitUNet` mirrors ``UNet2DConditionModel.forward`` of diffusers for the SDXL architecture with the model's own
blocks; a test asserts that both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from consistory_ray.consistory.method.attention import (
    AttentionCall,
    LayerProcessor,
    Queries,
    TextKeys,
    at_work,
)
from consistory_ray.consistory.method.compiling import many_graphs
from consistory_ray.consistory.method.conditioning import Conditioning
from consistory_ray.consistory.method.layout import Layer
from consistory_ray.consistory.method.tap import Tap
from consistory_ray.consistory.models.encoding import GUIDANCE
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


class QueriesComplete(Exception):
    """Ends a vanilla call at its last query: nothing after it is needed (section 3.3). Never leaves the network."""


class SplitUNet:
    """A UNet whose ``down``/``mid`` and ``up`` parts are called separately. Needs :func:`method_installed`.

    See :class:`~consistory_ray.consistory.method.backbone.Network`; what is tapped is the first ``up`` block's output,
    which FreeU overwrites afterwards.

    Transformer blocks that are compiled (``unet.compile_repeated_blocks()``) run compiled where what they have to do
    allows it, which is all that scenes and vanilla pictures do but for each text's first call.

    Args:
        unet: of the SDXL architecture.
        processors: those of its layers, by the layers' names, in the modules' order.
    """

    def __init__(self, unet: UNet2DConditionModel, processors: Mapping[str, LayerProcessor]) -> None:
        self.unet = unet
        self._hooks = UNetHooks(unet)
        blocks: dict[str, Any] = {name: part for name, part in unet.named_modules() if _is_block(name)}
        self._processors: dict[nn.Module, list[LayerProcessor]] = {
            block: [processors[layer] for layer in processors if layer.startswith(f"{name}.")]
            for name, block in blocks.items()
        }
        self._last = next(processor for processor in processors.values() if processor.layer.is_last_shared)
        self._compiled = is_compiled(unet)

    def begin(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning, call: AttentionCall) -> Trunk:
        """Run the ``down`` and ``mid`` parts on [rows, channels, height, width] latents."""
        unet = self.unet
        sample, embedding = self._entered(sample, timestep, conditioning)
        residuals: tuple[Tensor, ...] = (sample,)
        for block in unet.down_blocks:
            sample, states = self._run(block, conditioning.text, call, sample, embedding)
            residuals += states
        if unet.mid_block is not None:
            sample = self._run(unet.mid_block, conditioning.text, call, sample, embedding)
        return Trunk(sample, residuals, embedding, conditioning.text)

    def _entered(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
        """The first convolution's output, and the embedding of the timestep and of what else is told."""
        unet = self.unet
        sample = self._hooks.before(sample)
        added = {"text_embeds": conditioning.pooled, **conditioning.extra}
        told = conditioning.extra.get(GUIDANCE)
        embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), told)
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
        inputs = sample, trunk.residuals[start:stop], trunk.embedding
        grown: Tensor = self._run(blocks[index], trunk.text, call, *inputs, upsample_size=size)
        return grown

    def _run(self, block: Any, text: Tensor, call: AttentionCall, *inputs: Any, **named: Any) -> Any:
        """One of the UNet's blocks, with the call laid out on its attention layers."""
        if not getattr(block, "has_cross_attention", False):
            return block(*inputs, **named)
        with at_work(self._processors[block], call) as compiles, self._eagerly(not compiles):
            return block(*inputs, encoder_hidden_states=text, **named)

    def _eagerly(self, eagerly: bool) -> AbstractContextManager[Any]:
        return torch.compiler.set_stance("force_eager") if eagerly and self._compiled else nullcontext()

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
        _, states = self._run(first, conditioning.text, call, sample, embedding)
        skips: tuple[Tensor, ...] = (sample, *states)[: len(last.resnets)]
        if residuals is not None:
            skips = tuple(own + other for own, other in zip(skips, residuals[0], strict=False))  # the outermost
        return self._out(self._run(last, conditioning.text, call, deep, skips, embedding))

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
            with self._ends_at_last_query():
                self.finish(trunk, AttentionCall(text_keys=text_keys, captured=captured), reuse=reuse)
        except QueriesComplete:
            return captured
        raise RuntimeError("the UNet call ended without reaching its last self-attention")

    @contextmanager
    def _ends_at_last_query(self) -> Iterator[None]:
        """Raise :class:`QueriesComplete` there, from a block that is not compiled: graphs know no exceptions."""
        unet, name = cast(Any, self.unet), self._last.layer.name
        attention, block = unet.get_submodule(name), unet.get_submodule(name.rpartition(".")[0])
        compiled, block._compiled_call_impl = block._compiled_call_impl, None

        def end(attn: Any, inputs: Sequence[Any]) -> None:
            self._last.task.query = attn.to_q(inputs[0])
            raise QueriesComplete

        hook = attention.register_forward_pre_hook(end)
        try:
            yield
        finally:
            hook.remove()
            block._compiled_call_impl = compiled


def _is_block(name: str) -> bool:
    """Whether a module is one of those that the UNet calls one after the other."""
    return name == "mid_block" or (name.startswith(("down_blocks.", "up_blocks.")) and name.count(".") == 1)


def is_compiled(unet: nn.Module) -> bool:
    """Whether its transformer blocks, or any other parts, are to run compiled."""
    return any(part._compiled_call_impl is not None for part in unet.modules())


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
    installed = {layer.name: LayerProcessor(layer) for layer in unet_layers(unet)}
    split = SplitUNet(unet, installed)
    try:
        for name, processor in installed.items():
            modules[name].set_processor(processor)
        for block in unet.up_blocks:
            for key, value in zip(_FREEU_KEYS, freeu or (None,) * 4, strict=True):
                setattr(block, key, value)
        unet.eval()
        with many_graphs() if is_compiled(unet) else nullcontext():
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
