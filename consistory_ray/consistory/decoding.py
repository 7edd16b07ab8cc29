"""Text to conditioning, and latents to pictures, with the user's own pipeline components."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from consistory_ray.consistory.prompts import bounded_tokenizers
from consistory_ray.consistory.unet import Conditioning

OutputType = Literal["pil", "np", "latent"]


@contextmanager
def evaluating(*modules: nn.Module | None) -> Iterator[None]:
    """Run modules in evaluation mode and put back the mode of each part afterwards."""
    training = {part: part.training for module in modules if module is not None for part in module.modules()}
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part, mode in training.items():
            part.training = mode


def encode_prompts(
    pipe: Any,
    prompts: Sequence[str],
    negative_prompt: str | None,
    size: tuple[int, int],
    guided: bool,
    device: torch.device,
) -> Conditioning:
    """What the UNet is conditioned on.

    Args:
        pipe: the user's pipeline.
        prompts: of the batch.
        negative_prompt: of the unconditional half, None for SDXL's zero embedding.
        size: picture height and width in pixels.
        guided: whether there is an unconditional half.
        device: of the UNet.
    """
    with evaluating(pipe.text_encoder, pipe.text_encoder_2), bounded_tokenizers(pipe):
        text, negative_text, pooled, negative_pooled = pipe.encode_prompt(
            list(prompts), device=device, do_classifier_free_guidance=guided, negative_prompt=negative_prompt
        )
    if guided:
        text, pooled = torch.cat([negative_text, text]), torch.cat([negative_pooled, pooled])
    dtype = pipe.unet.dtype
    time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=dtype, device=device).expand(text.shape[0], -1)
    return Conditioning(text.to(device, dtype), pooled.to(device, dtype), time_ids, 2 if guided else 1)


def decode_latents(pipe: Any, latents: Tensor, output_type: OutputType) -> Any:
    """Pictures of [images, channels, height, width] latents: PIL images, float arrays in 0..1, or the latents."""
    if output_type == "latent":
        return latents.cpu()
    vae = pipe.vae
    with evaluating(vae), _vae_dtype(vae) as dtype:
        latents = _unscaled(vae, latents).to(dtype)
        # One by one: memory stays bounded and a picture does not depend on its neighbours.
        decoded = torch.cat([vae.decode(one, return_dict=False)[0].float().cpu() for one in latents[:, None]])
    pictures = pipe.image_processor.postprocess(decoded, output_type="np")
    return pictures if output_type == "np" else pipe.image_processor.numpy_to_pil(np.asarray(pictures))


def _unscaled(vae: Any, latents: Tensor) -> Tensor:
    mean, std = (getattr(vae.config, key, None) for key in ("latents_mean", "latents_std"))
    scaled: Tensor = latents / vae.config.scaling_factor
    if mean is None or std is None:
        return scaled
    return scaled * latents.new_tensor(std).view(1, -1, 1, 1) + latents.new_tensor(mean).view(1, -1, 1, 1)


@contextmanager
def _vae_dtype(vae: Any) -> Iterator[torch.dtype]:
    """Decode in float32 where the VAE would overflow in float16; its weights are put back as they were."""
    dtype = vae.dtype
    upcast = dtype == torch.float16 and vae.config.force_upcast
    try:
        yield vae.to(torch.float32).dtype if upcast else dtype
    finally:
        if upcast:
            vae.to(dtype)
