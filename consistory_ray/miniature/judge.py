"""The judge: two small networks that read a picture of the miniature's world, used only to measure pictures.

The *segmenter* says which scene a picture shows and which kind of subject covers each pixel. The *identifier* looks at
one subject alone, cut out along its mask with everything else gray, and says which attributes it has; its embedding is
trained so that the cosine of two subjects is the weighted share of their identity that agrees (see
:data:`IDENTITY_WEIGHTS`), whatever their scene, place, size, pose and mirroring. Both were trained on drawings and on
their reconstructions by the miniature's autoencoder (``training/judge.py`` in the repository), never on sampled
pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from consistory_ray.errors import CheckpointError, Problem
from consistory_ray.miniature.vocabulary import (
    ACCESSORIES,
    ACCESSORY_COLOURS,
    COLOURS,
    KINDS,
    PATTERNS,
    PICTURE_SIZE,
    SCENES,
)

WEIGHTS = Path(__file__).parent / "judge.safetensors"
SECOND_WEIGHTS = Path(__file__).parent / "judge-2.safetensors"
"""Of a judge that was trained like the first one on other individuals, from other seeds: it gates, the first one
measures."""

CROP_SIZE = 64
"""Side of the cut-out that the identifier sees, in pixels."""
EMBEDDING_SIZE = 64
SMALLEST_SUBJECT = 0.01
"""Share of the picture below which a mask counts as no subject at all."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "body": tuple(COLOURS),
    "second": tuple(COLOURS),
    "pattern": PATTERNS,
    "accessory": ACCESSORIES,
    "accessory_colour": ACCESSORY_COLOURS,
    "variant": tuple(f"{kind}-{variant}" for kind in KINDS for variant in (0, 1)),
}
"""What the identifier reads, and each attribute's possible values."""

IDENTITY_WEIGHTS: dict[str, float] = {
    "kind": 0.15,
    "body": 0.30,
    "second": 0.15,
    "pattern": 0.15,
    "accessory": 0.15,
    "accessory_colour": 0.05,
    "variant": 0.05,
}
"""How much of an individual's identity each attribute makes up; sums to 1. Colours agree by degrees."""


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.GroupNorm(8, channels_out), nn.SiLU()
    )


def _pooled(features: Tensor) -> Tensor:
    return torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)


class Residual(nn.Module):
    """Two convolutions around which the input is carried."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_convolution(channels, channels), nn.Conv2d(channels, channels, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        return F.silu(x + self.layers(x))


class Segmenter(nn.Module):
    """A small U-Net from pictures to a scene and a map of kinds."""

    def __init__(self, channels: tuple[int, int, int] = (24, 48, 96)) -> None:
        super().__init__()
        a, b, c = channels
        classes = 1 + len(KINDS)
        self.stem = nn.Sequential(nn.PixelUnshuffle(4), _convolution(48, a))
        self.down_1 = nn.Sequential(_convolution(a, b, 2), Residual(b))
        self.down_2 = nn.Sequential(_convolution(b, c, 2), Residual(c), Residual(c))
        self.scene = nn.Linear(2 * c, len(SCENES))
        self.up_1, self.join_1 = nn.Conv2d(c, b, 1), nn.Sequential(_convolution(2 * b, b), Residual(b))
        self.up_2, self.join_2 = nn.Conv2d(b, a, 1), _convolution(2 * a, a)
        self.regions = nn.Sequential(nn.Conv2d(a, 4 * classes, 3, 1, 1), nn.PixelShuffle(2))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Read pictures.

        Args:
            pictures: ``[B, 3, H, W]`` in [-1, 1].

        Returns:
            Scene logits ``[B, scenes]`` and region logits ``[B, 1 + kinds, H / 2, W / 2]``.
        """
        fine, middle, coarse = self._encoded(pictures)
        scene = self.scene(_pooled(coarse))
        middle = self.join_1(torch.cat([middle, F.interpolate(self.up_1(coarse), scale_factor=2.0)], 1))
        fine = self.join_2(torch.cat([fine, F.interpolate(self.up_2(middle), scale_factor=2.0)], 1))
        return scene, self.regions(fine)

    def textures(self, pictures: Tensor) -> Tensor:
        """``[B, 144]``: means and deviations over the picture of its two finer layers.

        The deepest layer, which says what is shown, has learned to overlook blur and blemishes; these have not.
        """
        layers = self._encoded(pictures)[:2]
        return torch.cat([part for layer in layers for part in (layer.mean((2, 3)), layer.std((2, 3)))], 1)

    def _encoded(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine = self.stem(pictures)
        middle = self.down_1(fine)
        return fine, middle, self.down_2(middle)


class Identifier(nn.Module):
    """From a cut-out subject to its attributes and its identity embedding."""

    def __init__(self, channels: tuple[int, int, int] = (32, 64, 112)) -> None:
        super().__init__()
        a, b, c = channels
        self.texture = nn.Sequential(
            nn.PixelUnshuffle(2), _convolution(12, a), _convolution(a, b, 2), Residual(b), Residual(b)
        )
        self.shape = nn.Sequential(
            _convolution(b, c, 2), Residual(c), _convolution(c, b, 2), nn.Flatten(), nn.Linear(16 * b, 192), nn.SiLU()
        )
        features = 192 + 2 * b
        self.heads = nn.ModuleDict({name: nn.Linear(features, len(values)) for name, values in ATTRIBUTES.items()})
        self.embedding = nn.Linear(features, EMBEDDING_SIZE)

    def forward(self, crops: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Crops ``[B, 3, 64, 64]`` in [-1, 1] to attribute logits and unit embeddings ``[B, 64]``."""
        features = self.features(crops)
        return {name: head(features) for name, head in self.heads.items()}, F.normalize(
            self.embedding(features).float(), dim=1
        )

    def features(self, crops: Tensor) -> Tensor:
        """``[B, 320]``: what the heads and the embedding are read from."""
        texture = self.texture(crops)
        # Patterns are seen anywhere on the subject, accessories at their place.
        return torch.cat([self.shape(texture), _pooled(texture)], 1)


def boxes(masks: Tensor, margin: float = 0.05) -> Tensor:
    """The square box around each mask, as centre x, centre y and half side in [-1, 1] picture coordinates.

    Args:
        masks: bool ``[B, H, W]``; an empty one gets the whole picture.
        margin: share of the side added on every side.

    Returns:
        float32 ``[B, 3]``.
    """
    found = []
    for mask in masks.cpu().numpy():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows) == 0:
            found.append((0.0, 0.0, 1.0))
            continue
        height, width = mask.shape
        y0, y1 = 2 * rows[0] / height - 1, 2 * (rows[-1] + 1) / height - 1
        x0, x1 = 2 * columns[0] / width - 1, 2 * (columns[-1] + 1) / width - 1
        found.append(((x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0) / 2 * (1 + 2 * margin)))
    return torch.tensor(found, dtype=torch.float32)


def cut_out(pictures: Tensor, masks: Tensor, where: Tensor | None = None) -> Tensor:
    """Each subject alone on gray, scaled to fill the crop.

    Args:
        pictures: ``[B, 3, H, W]`` in [-1, 1].
        masks: bool ``[B, H, W]``.
        where: boxes as :func:`boxes` gives them; computed from the masks if None.

    Returns:
        ``[B, 3, 64, 64]`` in [-1, 1].
    """
    where = boxes(masks) if where is None else where
    alone = pictures * masks[:, None]
    matrices = torch.zeros(len(where), 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = where[:, 2]
    matrices[:, :, 2] = where[:, :2]
    # Sampled at twice the size and averaged, so that shrinking does not alias.
    grid = F.affine_grid(matrices, [len(where), 3, 2 * CROP_SIZE, 2 * CROP_SIZE], align_corners=False)
    return F.avg_pool2d(F.grid_sample(alone, grid, align_corners=False), 2)


@dataclass(frozen=True)
class Reading:
    """What the judge sees in one picture.

    Attributes:
        scene: the most probable scene.
        scene_probability: how probable.
        labels: uint8 ``[H, W]``; 0 is background, 1 + i the i-th kind.
        scenes: the probability of each scene.
        kind_probabilities: of each kind, mean over the subjects' pixels; all 0 where there are none.
    """

    scene: str
    scene_probability: float
    labels: np.ndarray
    scenes: Mapping[str, float] = field(repr=False)
    kind_probabilities: Mapping[str, float] = field(repr=False)

    @property
    def foreground(self) -> np.ndarray:
        """Every subject's pixels, bool ``[H, W]``."""
        return np.asarray(self.labels > 0)

    def region(self, kind: str) -> np.ndarray:
        """One kind's pixels, bool ``[H, W]``."""
        return np.asarray(self.labels == 1 + KINDS.index(kind))

    @property
    def areas(self) -> dict[str, float]:
        """Each kind's share of the picture."""
        counts = np.bincount(self.labels.ravel(), minlength=1 + len(KINDS))[1:] / self.labels.size
        return dict(zip(KINDS, counts.tolist(), strict=True))

    def kinds(self, count: int = 1) -> list[str]:
        """The ``count`` kinds that cover most, largest first; kinds that cover (almost) nothing are left out."""
        areas = self.areas
        largest = sorted(KINDS, key=lambda kind: -areas[kind])[:count]
        return [kind for kind in largest if areas[kind] >= SMALLEST_SUBJECT]


@dataclass(frozen=True)
class Portrait:
    """What the judge sees in one cut-out subject.

    Attributes:
        attributes: the most probable value of each of :data:`ATTRIBUTES`.
        embedding: float32 ``[64]`` of length 1; zeros, which resemble nothing, if there was no subject.
    """

    attributes: dict[str, str]
    embedding: np.ndarray


class Judge:
    """Reads pictures; see the module's text."""

    def __init__(self, segmenter: Segmenter, identifier: Identifier) -> None:
        self.segmenter, self.identifier = segmenter.eval(), identifier.eval()

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Judge:
        """The bundled judge.

        Raises:
            CheckpointError: its weights are absent or do not fit the networks.
        """
        segmenter, identifier = Segmenter(), Identifier()
        try:
            weights = {name: value.float() for name, value in load_file(path).items()}
            for prefix, network in (("segmenter.", segmenter), ("identifier.", identifier)):
                own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
                network.load_state_dict(own)
        except (OSError, RuntimeError) as error:
            fix = "reinstall consistory-ray, or in a checkout: python -m training.train judge --run FOLDER"
            raise CheckpointError("the judge cannot be loaded", [Problem(str(path), str(error), fix)]) from error
        return cls(segmenter, identifier)

    def save(self, path: Path = WEIGHTS) -> None:
        """Write the weights, float16 safetensors."""
        parts = {"segmenter": self.segmenter, "identifier": self.identifier}
        tensors = {
            f"{part}.{name}": value.half() for part, net in parts.items() for name, value in net.state_dict().items()
        }
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary)
        temporary.chmod(0o644)
        temporary.replace(path)

    @torch.no_grad()
    def read(self, pictures: Sequence[Image.Image] | np.ndarray, batch: int = 32) -> list[Reading]:
        """Scene and regions of pictures (PIL, or uint8 ``[N, H, W, 3]``)."""
        readings = []
        for block in _blocks(pictures, batch):
            scenes, regions = self.segmenter(block)
            regions = F.interpolate(regions, size=block.shape[2:], mode="bilinear").softmax(1)
            foreground = regions[:, 0] < 0.5
            labels = (1 + regions[:, 1:].argmax(1)) * foreground
            weights = (foreground / foreground.sum((1, 2), keepdim=True).clamp(min=1))[:, None]
            kinds = (weights * regions[:, 1:] / regions[:, 1:].sum(1, keepdim=True)).sum((2, 3))
            for row, kind, label in zip(scenes.softmax(1).tolist(), kinds.tolist(), labels.numpy(), strict=True):
                best = max(range(len(SCENES)), key=row.__getitem__)
                readings.append(
                    Reading(
                        scene=SCENES[best],
                        scene_probability=row[best],
                        labels=label.astype(np.uint8),
                        scenes=dict(zip(SCENES, row, strict=True)),
                        kind_probabilities=dict(zip(KINDS, kind, strict=True)),
                    )
                )
        return readings

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image] | np.ndarray, batch: int = 32) -> np.ndarray:
        """How whole pictures are drawn, whatever they show, float32 ``[N, 144]``: :meth:`Segmenter.textures`."""
        return np.concatenate([self.segmenter.textures(block).numpy() for block in _blocks(pictures, batch)])

    @torch.no_grad()
    def portray(
        self, pictures: Sequence[Image.Image] | np.ndarray, masks: Sequence[np.ndarray] | np.ndarray, batch: int = 64
    ) -> list[Portrait]:
        """Attributes and embedding of one subject per picture.

        Args:
            pictures: PIL, or uint8 ``[N, H, W, 3]``.
            masks: where the subject is, bool ``[H, W]`` each.
            batch: how many to look at together.
        """
        portraits = []
        for first, block in zip(range(0, len(pictures), batch), _blocks(pictures, batch), strict=True):
            chosen = torch.from_numpy(np.stack(list(masks[first : first + batch]))).bool()
            logits, embeddings = self.identifier(cut_out(block, chosen))
            found = {name: values.argmax(1).tolist() for name, values in logits.items()}
            seen = chosen.float().mean((1, 2)) >= SMALLEST_SUBJECT
            for row, embedding in enumerate((embeddings * seen[:, None]).numpy()):
                portraits.append(Portrait({name: ATTRIBUTES[name][found[name][row]] for name in ATTRIBUTES}, embedding))
        return portraits


def to_tensor(pictures: Sequence[Image.Image] | np.ndarray) -> Tensor:
    """Pictures as ``[N, 3, H, W]`` in [-1, 1]; PIL pictures of another size are resized to the world's."""
    if not isinstance(pictures, np.ndarray):
        side = (PICTURE_SIZE, PICTURE_SIZE)
        pictures = np.stack(
            [np.asarray(p.convert("RGB").resize(side) if p.size != side else p.convert("RGB")) for p in pictures]
        )
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _blocks(pictures: Sequence[Image.Image] | np.ndarray, batch: int) -> Iterator[Tensor]:
    for index in range(math.ceil(len(pictures) / batch)):
        yield to_tensor(pictures[index * batch : (index + 1) * batch])
