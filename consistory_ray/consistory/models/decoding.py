"""Latents to pictures and back, with the user's own pipeline components."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from consistory_ray.consistory.method.backbone import Decoded
from consistory_ray.consistory.models.hooks import evaluating
from consistory_ray.guards.numerics import NOT_FINITE, picture_fault


def decode_latents(pipe: Any, latents: Tensor, output_type: Decoded) -> tuple[Any, dict[int, str]]:
    """Pictures of [images, channels, height, width] latents.

    A VAE in half precision decodes in float32 where its configuration or its dtype ask for it, and once more single
    pictures that came out not finite or of one colour (:func:`~consistory_ray.guards.numerics.picture_fault`).

    Returns:
        PIL images, float arrays in 0..1, or the latents; and for each picture that is none, by its index, the reason:
        in its place is None, or NaN. Latents are only looked at for numbers that are not finite.
    """
    finite = latents.isfinite().flatten(1).all(dim=1).tolist()
    faults = {index: NOT_FINITE for index, fine in enumerate(finite) if not fine}
    if output_type == "latent":
        return latents.cpu(), faults
    found: dict[int, NDArray[np.float32]] = {}
    with evaluating(pipe.vae):
        # One by one: memory stays bounded and a picture does not depend on its neighbours.
        for dtype in (decoding_dtype(pipe.vae), torch.float32):
            missing = [index for index in range(len(latents)) if index not in found and finite[index]]
            if missing:
                with _vae_in(pipe.vae, dtype):
                    decoded = {index: _picture(pipe, latents[index : index + 1]) for index in missing}
                faults |= {index: fault for index, picture in decoded.items() if (fault := picture_fault(picture))}
                found |= {index: picture for index, picture in decoded.items() if not picture_fault(picture)}
            if dtype == torch.float32:
                break
    faults = {index: fault for index, fault in sorted(faults.items()) if index not in found}
    if output_type == "np":
        scale = pipe.vae_scale_factor
        lacking = np.full((latents.shape[2] * scale, latents.shape[3] * scale, 3), np.nan, np.float32)
        return np.stack([found.get(index, lacking) for index in range(len(latents))]), faults
    images = {index: pipe.image_processor.numpy_to_pil(picture[None])[0] for index, picture in found.items()}
    return [images.get(index) for index in range(len(latents))], faults


def encode_pictures(pipe: Any, pictures: Tensor, device: torch.device) -> Tensor:
    """Latents of pictures: the mode of the VAE's posterior, scaled as the UNet wants them.

    Args:
        pipe: the user's pipeline.
        pictures: [images, 3, height, width] in 0..1.
        device: of the VAE.

    Returns:
        [images, channels, rows, columns] float32, not finite where a picture came to nothing. Upcast as in decoding.
    """
    vae, found = pipe.vae, []
    with evaluating(vae):
        for index in range(len(pictures)):  # one by one, as in decoding
            picture = 2 * pictures[index : index + 1] - 1
            for dtype in dict.fromkeys((decoding_dtype(vae), torch.float32)):
                with _vae_in(vae, dtype):
                    latents = _posterior_mode(vae.encode(picture.to(device, dtype))).float()
                if bool(latents.isfinite().all()):
                    break
            found.append(_scaled(vae, latents))
    return torch.cat(found)


def _posterior_mode(encoded: Any) -> Tensor:
    """Of an encoder's output; tiny VAEs have no distribution, their latents are its mode."""
    mode: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    return mode


def decoding_dtype(vae: Any) -> torch.dtype:
    """In what a VAE encodes and decodes: float32 where float16 would overflow, and for bfloat16, which has bands."""
    dtype: torch.dtype = vae.dtype
    upcast = dtype == torch.bfloat16 or (dtype == torch.float16 and getattr(vae.config, "force_upcast", False))
    return torch.float32 if upcast else dtype


def _picture(pipe: Any, latents: Tensor) -> NDArray[np.float32]:
    """[height, width, channels] in 0..1, or with NaN, of one picture's latents."""
    vae = pipe.vae
    decoded = vae.decode(_unscaled(vae, latents).to(vae.dtype), return_dict=False)[0].float().cpu()
    if not bool(decoded.isfinite().all()):
        decoded = torch.full_like(decoded, torch.nan)  # also where it is infinite, which clamping would hide
    picture: NDArray[np.float32] = pipe.image_processor.postprocess(decoded, output_type="np")[0]
    return picture


def _unscaled(vae: Any, latents: Tensor) -> Tensor:
    mean, std = (getattr(vae.config, key, None) for key in ("latents_mean", "latents_std"))
    scaled: Tensor = latents / vae.config.scaling_factor
    if mean is None or std is None:
        return scaled
    return scaled * latents.new_tensor(std).view(1, -1, 1, 1) + latents.new_tensor(mean).view(1, -1, 1, 1)


def _scaled(vae: Any, latents: Tensor) -> Tensor:
    """The inverse of :func:`_unscaled`."""
    mean, std = (getattr(vae.config, key, None) for key in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        latents = (latents - latents.new_tensor(mean).view(1, -1, 1, 1)) / latents.new_tensor(std).view(1, -1, 1, 1)
    scaled: Tensor = latents * vae.config.scaling_factor
    return scaled


@contextmanager
def _vae_in(vae: Any, dtype: torch.dtype) -> Iterator[None]:
    """The VAE in another dtype; its weights are put back as they were."""
    before = vae.dtype
    try:
        if dtype != before:
            nn.Module.to(vae, dtype)  # as diffusers' own does it, which warns of it every time
        yield
    finally:
        if dtype != before:
            nn.Module.to(vae, before)
