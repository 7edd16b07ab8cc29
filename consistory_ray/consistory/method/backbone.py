"""What the method asks of a model: the one seam between the two.

A :class:`Backbone` is a model as it is loaded; its :class:`Network` is the part that is called at every step, while the
method's attention processors (:class:`~consistory_ray.consistory.method.attention.LayerProcessor`) are in its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from consistory_ray.consistory.method.attention import AttentionCall, Queries, TextKeys
from consistory_ray.consistory.method.conditioning import Conditioning
from consistory_ray.consistory.method.hints import Hints
from consistory_ray.consistory.method.latents import Schedule
from consistory_ray.consistory.method.layout import Grid, Level, Levels
from consistory_ray.consistory.method.request import Additions
from consistory_ray.consistory.method.tap import Tap
from consistory_ray.settings import FreeU, MethodSettings

Decoded = Literal["pil", "np", "latent"]


class Trunk(Protocol):
    """What a network has computed before its first sharing layer."""

    def plus(self, residuals: Any) -> Trunk:
        """A trunk with residuals added to it, whose shape is the model's own affair."""
        ...


class Network(Protocol):
    """A model's network with the method installed. A call is ``finish(begin(...))``; rows are images in halves."""

    def begin(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning, call: AttentionCall) -> Any:
        """Everything before the first sharing self-attention.

        Args:
            sample: [rows, channels, height, width] in the network's dtype.
            timestep: a tensor without dimensions.
            conditioning: of these rows.
            call: what the attention layers do.

        Returns:
            A :class:`Trunk`.
        """
        ...

    def finish(
        self,
        trunk: Any,
        call: AttentionCall,
        tap: Tap | None = None,
        *,
        reuse: bool = False,
        keep: Tap | None = None,
    ) -> Tensor:
        """The rest of a call.

        Args:
            trunk: from :meth:`begin`; unusable afterwards unless ``reuse``.
            call: what the attention layers do.
            tap: is shown the features that correspondences are found by, [rows, channels, rows, columns]; it copies
                what it wants to keep.
            reuse: leave the trunk as it is, for another call.
            keep: is shown the deep layers' output, which :meth:`shallow` takes; it may keep it.

        Returns:
            The prediction, [rows, channels, height, width].
        """
        ...

    def features(self, trunk: Any, call: AttentionCall, tap: Tap) -> None:
        """A call that ends where features are tapped: past every layer that makes attention maps."""
        ...

    def shallow(
        self, sample: Tensor, timestep: Tensor, conditioning: Conditioning, deep: Tensor, residuals: Any = None
    ) -> Tensor:
        """A call of the outermost layers alone, none of which shares or makes maps.

        Args:
            sample, timestep, conditioning: as for :meth:`begin`.
            deep: what an earlier call in full has shown to ``keep``, for the same rows.
            residuals: as for :meth:`Trunk.plus`, of the same rows; only the outermost are added.

        Returns:
            The prediction, [rows, channels, height, width].
        """
        ...

    def conditional_residuals(self, residuals: Any, images: int) -> Any:
        """Of residuals for all rows those of the conditional half, the last ``images`` rows."""
        ...

    def vanilla_queries(self, trunk: Any, text_keys: TextKeys, *, reuse: bool = False) -> Queries:
        """The sharing layers' queries without the method, at the cost of a call up to the last of them."""
        ...


@runtime_checkable
class Backbone(Protocol):
    """A loaded model. All of it is asked anew in every call: users change their models in between.

    Attributes:
        levels: of its sharing layers.
        device, dtype: where and in what its network computes.
        fingerprint: identifies weights, configurations and adapters, 64 hexadecimal digits.
        text_tokens: how many tokens a prompt has.
        native_size: latent rows and columns that it was trained for.
        pixels_per_latent: by which picture sizes have to be divisible.
        max_steps: denoising steps that make sense.
    """

    @property
    def levels(self) -> Levels: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def text_tokens(self) -> int: ...
    @property
    def native_size(self) -> tuple[int, int]: ...
    @property
    def pixels_per_latent(self) -> int: ...
    @property
    def max_steps(self) -> int: ...

    def hold_fingerprint(self) -> None:
        """Nobody changes the weights from now on, so that the fingerprint need not look at them in every call."""
        ...

    def check(self) -> str:
        """Refuse a model that cannot be used as it is at the moment.

        Returns:
            What somebody should know who uses it, in a whole sentence; empty for nothing.

        Raises:
            CheckpointError: it cannot be used.
        """
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Channels, rows and columns of the latents of a picture of this size in pixels."""
        ...

    def grids(self, rows: int, columns: int) -> dict[Level, Grid]:
        """Each level's tokens, for latents of this size."""
        ...

    def concept_positions(
        self, prompts: Sequence[str], concepts: Sequence[str], *, every: bool = False, exact_suffices: bool = False
    ) -> list[list[list[int]]]:
        """For each prompt, for each concept, the positions of its tokens in the text.

        Raises:
            PromptError: a prompt holds none of the concepts.
        """
        ...

    def encode(
        self,
        prompts: Sequence[str],
        settings: MethodSettings,
        *,
        prompts_2: Sequence[str] = (),
        negatives: Sequence[str | None] = (),
    ) -> Conditioning:
        """What the network is conditioned on; two halves where the guidance scale is more than 1.

        Args:
            prompts, settings: of a batch.
            prompts_2, negatives: see :class:`~consistory_ray.consistory.method.request.Batch`.
        """
        ...

    def schedule(self, settings: MethodSettings) -> Schedule:
        """The steps that settings ask for, on its own noise schedule, at their beginning.

        Raises:
            InputError: they cannot be made with this model.
        """
        ...

    def installed(self, freeu: FreeU | None) -> AbstractContextManager[Network]:
        """The network with the method's processors in its layers; left as found, whatever happens."""
        ...

    def in_use(self) -> AbstractContextManager[None]:
        """Around everything that a call does with the model, decoding included: weights may be moved in and out."""
        ...

    def encode_pictures(self, pictures: Tensor) -> Tensor:
        """Latents, [images, channels, rows, columns] float32, of [images, 3, height, width] pictures in 0..1.

        An image's latents depend on it alone; where they came to nothing they are not finite.
        """
        ...

    def decode(self, latents: Tensor, output_type: Decoded) -> tuple[Any, dict[int, str]]:
        """Pictures of [images, channels, rows, columns] latents, and by index why one is none (it is None or NaN)."""
        ...


@runtime_checkable
class Weighing(Protocol):
    """What a :class:`Backbone` has besides that reads prompts with weights, of any length (``prompt_syntax: compel``).

    Its ``encode`` makes all texts of a batch as long as the longest of them.
    """

    def text_lengths(
        self,
        prompts: Sequence[str],
        settings: MethodSettings,
        *,
        prompts_2: Sequence[str] = (),
        negatives: Sequence[str | None] = (),
    ) -> list[int]:
        """How many tokens each image's texts have, its own alone.

        Raises:
            PromptError: naming every text that cannot be read.
        """
        ...

    def weighted_positions(
        self, prompts: Sequence[str], concepts: Sequence[str], *, every: bool = False, exact_suffices: bool = False
    ) -> list[list[list[int]]]:
        """As ``concept_positions`` of a backbone, in such prompts."""
        ...


@runtime_checkable
class Compilable(Protocol):
    """What a :class:`Backbone` has besides whose network can be compiled."""

    def compile(self, **options: Any) -> None:
        """Have its parts compiled when they first run; ``options`` are those of ``torch.compile``."""
        ...


@runtime_checkable
class Controllable(Protocol):
    """What a :class:`Backbone` has besides whose pictures can be led by hints.

    Attributes:
        control_modes: for each ControlNet the names of the kinds of hints it tells apart; none for a single kind.
        control_fingerprints: identify each ControlNet's weights and configuration, 64 hexadecimal digits.
    """

    @property
    def control_modes(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def control_fingerprints(self) -> tuple[str, ...]: ...

    def additions(self, hints: Hints, settings: MethodSettings, *, fixed: bool = False) -> Additions:
        """What a batch's hints add to its trunks; with resolved settings, while the model is in use.

        With ``fixed`` the shapes of its calls do not depend on which of the images are led.
        """
        ...
