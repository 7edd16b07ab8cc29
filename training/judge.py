"""Training of the judge on drawings and on their reconstructions by the autoencoder.

About an hour of one core. Everything is seeded and resumable: drawings, reconstructions and a checkpoint
per network lie in ``<run>/judge``. A second judge, of other individuals, other noise and other first weights, is for
gates: what chooses pictures should not be what measures them.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from consistory_ray.evaluation.measures import srgb_to_lab
from consistory_ray.miniature.judge import (
    ATTRIBUTES,
    IDENTITY_WEIGHTS,
    WEIGHTS,
    Identifier,
    Judge,
    Segmenter,
    boxes,
    cut_out,
)
from consistory_ray.miniature.vocabulary import COLOURS, KINDS, PICTURE_SIZE, SCENES
from training.autoencoder import trained_autoencoder
from training.checkpoints import restore, save_atomically, snapshot
from training.individuals import Identity, random_identity, random_placement
from training.world import PictureSpec, draw, random_spec

BUNDLED = WEIGHTS.parent / "weights"
JUDGE_SEED, SECOND_SEED = 3, 4
INDIVIDUALS, PAIRS = 6000, 1000
"""Single subjects, each drawn in two scenes, and pictures of two subjects."""
SEGMENTER_BATCH, IDENTIFIER_BATCH = 16, 12
"""Pictures per step; individuals per step, each seen twice."""
LEARNING_RATE = 2e-3
COLOUR_REACH = 25.0
"""CIELAB distance at which two colours' agreement has fallen to exp(-1/2)."""
LATENT_NOISE = (0.0, 0.0, 0.1, 0.2, 0.35)
"""Noise added to latents before decoding, in standard deviations: blemishes such as sampled pictures have."""

Step = Callable[[np.random.Generator], Tensor]


@dataclass(frozen=True)
class JudgeData:
    """The judge's training pictures; single subject number i is at rows 2 i and 2 i + 1, pairs follow.

    Attributes:
        images: uint8 ``[N, H, W, 3]``, drawings.
        reconstructions: uint8 ``[N / 2, H, W, 3]``, those of the even rows.
        labels: uint8 ``[N, H, W]`` as in :class:`~consistory_ray.miniature.judge.Reading`.
        scenes: int64 ``[N]`` index into SCENES.
        identities: the individuals.
    """

    images: np.ndarray
    reconstructions: np.ndarray
    labels: np.ndarray
    scenes: np.ndarray
    identities: list[Identity]


def judge_specs(seed: int = JUDGE_SEED) -> list[PictureSpec]:
    """What a judge is trained on."""
    rng = random.Random(f"judge/{seed}")
    specs = []
    for _ in range(INDIVIDUALS):
        identity = random_identity(rng)
        for scene in rng.sample(SCENES, 2):
            specs.append(PictureSpec((identity,), (random_placement(rng),), scene, rng.randrange(2**31)))
    return specs + [random_spec(rng, two_subjects=1.0) for _ in range(PAIRS)]


def quick_precision() -> AbstractContextManager[Any]:
    """bfloat16 where the processor computes in it; elsewhere it would take several times as long as float32."""
    backend: Any = torch.backends.mkldnn
    operators: Any = torch.ops.mkldnn
    native = backend.is_available() and operators._is_mkldnn_bf16_supported()
    return torch.autocast("cpu", torch.bfloat16) if native else nullcontext()


def label_map(masks: np.ndarray, kinds: Sequence[str]) -> np.ndarray:
    """uint8 ``[H, W]``: 0 background, 1 + index of the kind covering at least half of a pixel."""
    labels = np.zeros(masks.shape[1:], np.uint8)
    for mask, kind in zip(masks, kinds, strict=True):
        labels[mask >= 0.5] = 1 + KINDS.index(kind)
    return labels


@torch.no_grad()
def reconstruct(vae: Any, images: np.ndarray, noise: Sequence[float] = (0.0,), seed: int = 0) -> np.ndarray:
    """uint8 ``[N, H, W, 3]`` through the autoencoder, with one of the noise levels drawn for each picture."""
    generator = torch.Generator().manual_seed(seed)
    result = np.empty_like(images)
    dtype = next(vae.parameters()).dtype
    for first in range(0, len(images), 8):
        block = images[first : first + 8]
        pixels = torch.from_numpy(np.ascontiguousarray(block)).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1
        levels = torch.tensor(noise)[torch.randint(len(noise), (len(block), 1, 1, 1), generator=generator)]
        with quick_precision():
            latents = vae.encode(pixels).latent_dist.mean.float()
            latents = latents + levels * torch.randn(latents.shape, generator=generator)
            decoded = vae.decode(latents.to(dtype)).sample.float()
        result[first : first + 8] = ((decoded + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    return result


def draw_judge_pictures(folder: Path, seed: int) -> None:
    """Write ``images.npy`` and ``labels.npy`` unless they are there."""
    if (folder / "labels.npy").exists():
        return
    specs, size = judge_specs(seed), PICTURE_SIZE
    images = np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype="uint8", shape=(len(specs), size, size, 3)
    )
    labels = np.empty((len(specs), size, size), np.uint8)
    for index, spec in enumerate(specs):
        drawing = draw(spec)
        images[index] = np.asarray(drawing.image)
        labels[index] = label_map(drawing.masks, [identity.kind for identity in spec.subjects])
    images.flush()
    np.save(folder / "labels.npy", labels)
    print(f"judge: {len(specs)} pictures drawn", flush=True)


def reconstruct_judge_pictures(run: Path, folder: Path, seed: int) -> None:
    """Write ``reconstructions.npy``, of one view of every individual and of half of the pairs, unless it is there."""
    path = folder / "reconstructions.npy"
    if path.exists():
        return
    vae: Any = trained_autoencoder(run) if (run / "autoencoder.pt").exists() else bundled_autoencoder()
    images = np.load(folder / "images.npy", mmap_mode="r")
    noise_seed = 0 if seed == JUDGE_SEED else seed
    result = reconstruct(vae.to(memory_format=torch.channels_last), images[::2], LATENT_NOISE, noise_seed)
    np.save(path.with_suffix(".tmp.npy"), result)
    path.with_suffix(".tmp.npy").replace(path)
    print(f"judge: {len(result)} pictures reconstructed", flush=True)


def bundled_autoencoder() -> Any:
    """The exported one, where the run has trained none."""
    loader: Any = AutoencoderKL
    return loader.from_pretrained(BUNDLED, subfolder="vae", torch_dtype=torch.float32)


def judge_data(run: Path, folder: Path, seed: int = JUDGE_SEED) -> JudgeData:
    """The training pictures, drawn and reconstructed into the folder unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_judge_pictures(folder, seed)
    reconstruct_judge_pictures(run, folder, seed)
    specs = judge_specs(seed)
    return JudgeData(
        np.load(folder / "images.npy", mmap_mode="r"),
        np.load(folder / "reconstructions.npy", mmap_mode="r"),
        np.load(folder / "labels.npy"),
        np.array([SCENES.index(spec.scene) for spec in specs]),
        [spec.subjects[0] for spec in specs[: 2 * INDIVIDUALS : 2]],
    )


def augment(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Slight shifts of brightness, contrast and colour, blur and noise; ``[B, 3, H, W]`` in [-1, 1]."""
    rows = len(pictures)
    gain = torch.from_numpy(rng.normal(1, 0.05, (rows, 1, 1, 1)) * rng.normal(1, 0.025, (rows, 3, 1, 1))).float()
    shift = torch.from_numpy(rng.normal(0, 0.05, (rows, 1, 1, 1)) + rng.normal(0, 0.02, (rows, 3, 1, 1))).float()
    blur = torch.from_numpy(rng.random((rows, 1, 1, 1)) * (rng.random((rows, 1, 1, 1)) < 0.5)).float()
    pictures = torch.lerp(pictures, F.avg_pool2d(pictures, 3, 1, 1), blur)
    noise = torch.from_numpy(rng.standard_normal(pictures.shape, np.float32)) * float(rng.uniform(0, 0.06))
    return (pictures * gain + shift + noise).clamp(-1, 1)


def pick(data: JudgeData, rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pictures ``[B, 3, H, W]`` in [-1, 1], drawn or reconstructed, some mirrored, and their labels ``[B, H, W]``."""
    through = (rows % 2 == 0) & (rng.random(len(rows)) < 0.8)
    images = np.stack(
        [data.reconstructions[row // 2] if t else data.images[row] for t, row in zip(through, rows, strict=True)]
    )
    labels = data.labels[rows]
    mirrored = rng.random(len(rows)) < 0.5
    images[mirrored], labels[mirrored] = images[mirrored][:, :, ::-1], labels[mirrored][:, :, ::-1]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(labels.astype(np.int64))


def half_size(labels: Tensor) -> Tensor:
    """Labels ``[B, H, W]`` at half the size; a cell is background unless a subject covers half of it."""
    pooled = F.max_pool2d(labels[:, None].float(), 2)[:, 0].long()
    covered = F.avg_pool2d((labels > 0)[:, None].float(), 2)[:, 0] >= 0.5
    return pooled * covered


def segmenter_step(network: Segmenter, data: JudgeData) -> Step:
    """The loss of one batch: cross-entropy of the scene and of each cell's kind."""

    def loss(rng: np.random.Generator) -> Tensor:
        rows = rng.integers(0, len(data.labels), SEGMENTER_BATCH)
        pictures, labels = pick(data, rows, rng)
        with quick_precision():
            scenes, regions = network(augment(pictures, rng))
        scene_loss = F.cross_entropy(scenes.float(), torch.from_numpy(data.scenes[rows]))
        return scene_loss + 3 * F.cross_entropy(regions.float(), half_size(labels))

    return loss


def identity_targets(identities: Sequence[Identity]) -> dict[str, Tensor]:
    """Index of each identity's attributes, ``[N]`` each; -1 where a picture cannot show it."""
    rows = []
    for identity in identities:
        values = dataclasses.asdict(identity) | {"variant": f"{identity.kind}-{identity.variant}"}
        row = {name: known.index(values[name]) for name, known in ATTRIBUTES.items()}
        if identity.accessory in ("none", "crown"):
            row["accessory_colour"] = -1
        rows.append(row)
    return {name: torch.tensor([row[name] for row in rows]) for name in ATTRIBUTES}


def identity_agreement(targets: dict[str, Tensor]) -> Tensor:
    """The cosine that each pair of embeddings should have, ``[N, N]``: 1 for one individual, 0 for strangers."""
    lab = srgb_to_lab(np.array(list(COLOURS.values())))
    closeness = torch.from_numpy(np.exp(-((lab[:, None] - lab[None]) ** 2).sum(-1) / (2 * COLOUR_REACH**2))).float()
    total = torch.zeros(len(targets["kind"]), len(targets["kind"]))
    for name, weight in IDENTITY_WEIGHTS.items():
        values = targets[name]
        if name in ("body", "second"):
            agree = closeness[values[:, None], values[None]]
        else:
            agree = (values[:, None] == values[None]).float()
            if name == "accessory_colour":
                agree = agree * (targets["accessory"][:, None] == targets["accessory"][None])
        total += weight * agree
    return total


def shaken(labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Masks slightly grown, shrunk or ragged, and their boxes slightly moved, as a segmenter's would be."""
    masks = (labels > 0).float()[:, None]
    threshold = torch.from_numpy(rng.choice((0.25, 0.5, 0.5, 0.75), (len(masks), 1, 1, 1))).float()
    ragged = torch.from_numpy(rng.normal(0, 0.15, (len(masks), 1, 16, 16))).float()
    ragged = F.interpolate(ragged, size=masks.shape[2:], mode="bilinear")
    masks = (F.avg_pool2d(masks, 5, 1, 2) + ragged > threshold)[:, 0]
    masks = masks & (F.max_pool2d((labels > 0).float()[:, None], 5, 1, 2)[:, 0] > 0)
    where = boxes(masks)
    jitter = torch.from_numpy(rng.normal(0, 0.02, where.shape)).float()
    where[:, :2] += jitter[:, :2] * where[:, 2:]
    where[:, 2] *= 1 + jitter[:, 2]
    return masks, where


def identifier_step(network: Identifier, data: JudgeData) -> Step:
    """The loss of one batch: cross-entropy of every attribute, and distance of the cosines from the agreement."""

    def loss(rng: np.random.Generator) -> Tensor:
        chosen = np.repeat(rng.integers(0, len(data.identities), IDENTIFIER_BATCH), 2)
        pictures, labels = pick(data, 2 * chosen + np.arange(len(chosen)) % 2, rng)
        masks, where = shaken(labels, rng)
        crops = cut_out(augment(pictures, rng), masks, where)
        targets = identity_targets([data.identities[index] for index in chosen])
        with quick_precision():
            logits, embeddings = network(crops)
        total = torch.zeros(())
        for name, values in targets.items():
            if bool((values >= 0).any()):
                weight = 3.0 if name == "pattern" else 1.0  # the hardest to learn
                total = total + weight * F.cross_entropy(logits[name].float(), values, ignore_index=-1)
        wanted = identity_agreement(targets)
        errors = (embeddings @ embeddings.T - wanted).square()
        same = torch.from_numpy(chosen[:, None] == chosen[None]) & ~torch.eye(len(chosen), dtype=torch.bool)
        contrast: Tensor = errors.mean() + 0.5 * errors[same].mean()
        return total + 20 * contrast

    return loss


def fit(name: str, network: nn.Module, step_loss: Step, steps: int, checkpoint: Path, seed: int = JUDGE_SEED) -> None:
    """Train a network, resuming from its checkpoint."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-2)
    first = restore(checkpoint, network, optimizer)
    rng = np.random.default_rng([seed, first])
    started, losses = time.time(), []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 100) * max(0.01, 1 - step / steps)
        loss = step_loss(rng)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        last = step + 1 == steps
        if (step + 1) % 100 == 0 or last:
            print(
                f"{name} {step + 1}/{steps} loss {np.mean(losses[-100:]):.3f} {time.time() - started:.0f} s", flush=True
            )
        if (step + 1) % 250 == 0 or last:
            save_atomically(snapshot(step + 1, network, optimizer), checkpoint)


def train_judge(run: Path, steps: int, out: Path = WEIGHTS, seed: int = JUDGE_SEED) -> None:
    """Train both networks and write a judge's weights.

    Args:
        run: the training run's folder; without an autoencoder of its own, the bundled model's is taken.
        steps: optimizer steps of the identifier; the segmenter learns faster and takes a quarter.
        out: where the weights go.
        seed: of individuals, noise, order and first weights; each has a folder of its own in the run.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    folder = run / ("judge" if seed == JUDGE_SEED else f"judge-{seed}")
    data = judge_data(run, folder, seed)
    segmenter, identifier = Segmenter(), Identifier()
    fit("segmenter", segmenter, segmenter_step(segmenter, data), steps // 4, folder / "segmenter.pt", seed)
    fit("identifier", identifier, identifier_step(identifier, data), steps, folder / "identifier.pt", seed)
    Judge(segmenter, identifier).save(out)
    print(f"judge written to {out}, {out.stat().st_size / 1e6:.1f} MB", flush=True)
