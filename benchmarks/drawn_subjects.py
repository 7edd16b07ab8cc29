"""What would the same subjects be if they were drawn? The floor and the ceiling of every measure, and good pictures."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.miniature.judge import to_tensor
from training.individuals import Identity, random_identity, random_placement
from training.world import PictureSpec, draw

DRAWINGS_PER_SCENE = 4


def _drawn(who: Identity, scene: str, rng: random.Random) -> np.ndarray:
    spec = PictureSpec((who,), (random_placement(rng),), scene, rng.randrange(2**31))
    return np.asarray(draw(spec).image)


@torch.no_grad()
def _reconstructed(vae: Any, images: np.ndarray) -> np.ndarray:
    """Drawings as sampled pictures come: through the autoencoder, in its own dtype."""
    weight = next(vae.parameters())
    pixels = to_tensor(images).to(weight.device, weight.dtype)
    decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.float().cpu()
    return ((decoded + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def same_individual(subject: SubjectPrompts, number: int, vae: Any) -> np.ndarray:
    """One individual drawn in each of the subject's scenes, after the autoencoder, uint8 ``[scenes, H, W, 3]``.

    What the judge says of these is the floor: nothing differs that makes an individual.
    """
    rng = random.Random(f"same individual/{number}")
    who = random_identity(rng, subject.kind)
    return _reconstructed(vae, np.stack([_drawn(who, scene, rng) for scene in subject.scenes]))


def strangers(subject: SubjectPrompts, number: int, vae: Any) -> np.ndarray:
    """Another individual of the kind in each of its scenes: nothing agrees but by chance."""
    rng = random.Random(f"strangers/{number}")
    drawings = [_drawn(random_identity(rng, subject.kind), scene, rng) for scene in subject.scenes]
    return _reconstructed(vae, np.stack(drawings))


def drawings_of(subject: SubjectPrompts, number: int) -> np.ndarray:
    """Drawings of its kind in its scenes, several of each, that pictures are compared with."""
    rng = random.Random(f"drawings/{number}")
    return np.stack(
        [
            _drawn(random_identity(rng, subject.kind), scene, rng)
            for scene in subject.scenes
            for _ in range(DRAWINGS_PER_SCENE)
        ]
    )
