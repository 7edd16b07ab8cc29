"""Training of the miniature's autoencoder, and whitening of its latents."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn

from consistory_ray.miniature.architecture import build_autoencoder
from training.dataset import Pictures, open_pictures
from training.parallel import Ema, average, save_atomically

CROP = 64
DECODER_NOISE = 0.25
"""Most noise in the whitened latents that the decoder is trained further on."""


def crops(pictures: Pictures, rng: np.random.Generator, batch: int, recoloured: float = 0.5) -> torch.Tensor:
    """Random crops ``[batch, 3, 64, 64]`` in [-1, 1], a share of them with permuted or inverted colour channels.

    Without that augmentation colours that are rare in the world are lost in the latents.
    """
    tiles = []
    for index in rng.integers(0, len(pictures.images), batch):
        y, x = rng.integers(0, pictures.images.shape[1] - CROP + 1, 2)
        tile = (
            torch.from_numpy(pictures.images[index, y : y + CROP, x : x + CROP].astype(np.float32)).permute(2, 0, 1)
            / 127.5
            - 1
        )
        if rng.random() < recoloured:
            tile = tile[torch.from_numpy(rng.permutation(3))]
        if rng.random() < recoloured * 0.4:
            tile = -tile
        tiles.append(tile)
    return torch.stack(tiles)


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, error of gradients (outlines) and of a low-pass (flat colours)."""
    loss = F.l1_loss(output, target) + 2 * F.mse_loss(output, target)
    for axis in (2, 3):
        loss = loss + 0.5 * F.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
    return loss + F.l1_loss(F.avg_pool2d(output, 8), F.avg_pool2d(target, 8))


def train_autoencoder(
    rank: int, processes: int, folder: str, steps: int, learning_rate: float, decoder_only: bool = False, batch: int = 8
) -> None:
    """One process of autoencoder training on ``folder/pictures``; resumes from ``folder/autoencoder.pt``."""
    pictures = open_pictures(Path(folder, "pictures"))
    checkpoint = Path(folder, "decoder.pt" if decoder_only else "autoencoder.pt")
    torch.manual_seed(rank)
    vae = build_autoencoder()
    if decoder_only:
        vae.load_state_dict(torch.load(Path(folder, "autoencoder.pt"), weights_only=True)["whitened"])
        vae.encoder.requires_grad_(False)
        _convolution(vae.quant_conv).requires_grad_(False)
    ema = Ema(vae, 0.995)
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load(state["ema"])
        first = state["step"]
    dist.barrier()
    rng = np.random.default_rng([rank, first])
    started = time.time()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 100) * max(0.02, 1 - step / steps)
        target = crops(pictures, rng, batch, 0.1 if decoder_only else 0.5)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(target).latent_dist
            # Sampled latents are never perfect: a decoder that has seen blemished ones draws clean outlines from them.
            blemish = torch.rand(batch, 1, 1, 1) * DECODER_NOISE if decoder_only else 0.05
            latents = posterior.mean + blemish * torch.randn_like(posterior.mean)
            output = vae.decode(latents).sample
        loss = reconstruction_loss(output.float(), target) + 1e-4 * posterior.mean.float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if (step + 1) % 10 == 0:
            average(vae.parameters())
        ema.update(vae)
        last = step + 1 == steps
        if rank == 0 and ((step + 1) % 200 == 0 or last):
            psnr = -10 * torch.log10(F.mse_loss(output.float(), target) / 4)
            print(
                f"autoencoder {step + 1}/{steps} loss {loss:.4f} psnr {psnr:.1f} dB {time.time() - started:.0f} s",
                flush=True,
            )
            state = {
                "model": vae.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.state(),
                "step": step + 1,
            }
            if last:
                vae.load_state_dict({**vae.state_dict(), **ema.shadow})
                if not decoder_only:
                    whiten(vae, pictures)
                state["whitened"] = vae.state_dict()
            save_atomically(state, checkpoint)
    dist.barrier()


def trained_autoencoder(run: Path) -> AutoencoderKL:
    """The run's autoencoder, with the further trained decoder where there is one; the encoder is the same."""
    vae = build_autoencoder()
    decoder = run / "decoder.pt"
    state = torch.load(decoder if decoder.exists() else run / "autoencoder.pt", weights_only=True)
    vae.load_state_dict(state["whitened"])
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images: np.ndarray) -> torch.Tensor:
    """Mean latents ``[N, 4, h, w]`` of uint8 pictures ``[N, H, W, 3]``."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.autocast("cpu", torch.bfloat16):
        mean: torch.Tensor = vae.encode(pixels).latent_dist.mean.float()
        return mean


@torch.no_grad()
def whiten(vae: AutoencoderKL, pictures: Pictures, sample: int = 512) -> None:
    """Fold an affine map into quant_conv and post_quant_conv so that latents have mean 0 and covariance identity."""
    latents = encode(vae, pictures.images[:sample]).double().transpose(0, 1).flatten(1)
    mean = latents.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh((latents - mean) @ (latents - mean).T / latents.shape[1])
    forward = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    backward = vectors @ torch.diag(values.sqrt()) @ vectors.T
    into, out_of = (_convolution(layer).state_dict(keep_vars=True) for layer in (vae.quant_conv, vae.post_quant_conv))
    weight, bias = into["weight"].double()[:4, :, 0, 0], into["bias"].double()[:4]
    into["weight"][:4, :, 0, 0] = (forward @ weight).float()
    into["bias"][:4] = (forward @ (bias - mean[:, 0])).float()
    weight, bias = out_of["weight"].double()[:, :, 0, 0], out_of["bias"].double()
    out_of["bias"].copy_((bias + weight @ mean[:, 0]).float())
    out_of["weight"][:, :, 0, 0] = (weight @ backward).float()
    # The log-variance half is not trained; make the posterior deterministic enough for image-to-image use.
    into["weight"][4:] = 0
    into["bias"][4:] = -8


def _convolution(layer: nn.Conv2d | None) -> nn.Conv2d:
    assert layer is not None
    return layer
