"""Drawn pictures with captions and masks, made once per run folder and memory-mapped from there."""

from __future__ import annotations

import dataclasses
import json
import random
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from consistory_ray.miniature.vocabulary import PICTURE_SIZE
from training.world import GENEROUS, TWO_SUBJECTS, PictureSpec, draw, random_caption, random_spec

MASK_SIZE = 16
TRAIN_SEED, HELD_OUT_SEED = 1, 2
CAPTIONS, GENEROUS_CAPTIONS = 2, 4
"""Of each picture: as people write them, and naming more."""


@dataclass(frozen=True)
class Pictures:
    """A drawn data set.

    Attributes:
        images: uint8 ``[N, H, W, 3]``, memory-mapped.
        coverage: float16 ``[N, 2, 16, 16]``, the part of each cell that the first and second subject cover.
        captions: those of each picture.
        specs: what was drawn, as JSON-ready dictionaries.
    """

    images: np.ndarray
    coverage: np.ndarray
    captions: list[list[str]]
    specs: list[dict[str, object]]

    def kinds(self, index: int) -> list[str]:
        """The kinds of subject in one picture."""
        return [subject["kind"] for subject in self.specs[index]["subjects"]]  # type: ignore[attr-defined]


def imagine(seed: int, index: int, two_subjects: float = TWO_SUBJECTS) -> tuple[PictureSpec, list[str]]:
    """What a picture of a set shows, and its captions, without drawing it."""
    rng, more = random.Random(f"{seed}/{index}"), random.Random(f"{seed}/captions/{index}")
    spec = random_spec(rng, two_subjects)
    captions = [random_caption(rng, spec) for _ in range(CAPTIONS)]
    return spec, captions + [random_caption(more, spec, GENEROUS) for _ in range(GENEROUS_CAPTIONS)]


def _draw_block(arguments: tuple[str, int, int, int, float]) -> None:
    folder, seed, first, last, pairs = arguments
    images = np.lib.format.open_memmap(f"{folder}/images.npy", mode="r+")
    coverage = np.lib.format.open_memmap(f"{folder}/coverage.npy", mode="r+")
    rows = []
    for index in range(first, last):
        spec, captions = imagine(seed, index, pairs)
        drawing = draw(spec)
        images[index] = np.asarray(drawing.image)
        cell = PICTURE_SIZE // MASK_SIZE
        for slot, mask in enumerate(drawing.masks):
            coverage[index, slot] = mask.reshape(MASK_SIZE, cell, MASK_SIZE, cell).mean((1, 3))
        rows.append({"captions": captions, **dataclasses.asdict(spec)})
    Path(folder, f"rows-{first:08d}.json").write_text(json.dumps(rows))


def draw_pictures(
    folder: Path, count: int, seed: int, processes: int = 2, two_subjects: float = TWO_SUBJECTS
) -> Pictures:
    """Draw ``count`` pictures into ``folder`` unless they are there, and open them."""
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, shape, dtype in (
            ("images", (count, PICTURE_SIZE, PICTURE_SIZE, 3), "uint8"),
            ("coverage", (count, 2, MASK_SIZE, MASK_SIZE), "float16"),
        ):
            np.lib.format.open_memmap(f"{folder}/{name}.npy", mode="w+", dtype=dtype, shape=shape).flush()
        blocks = [(str(folder), seed, first, min(first + 1000, count), two_subjects) for first in range(0, count, 1000)]
        with get_context("spawn").Pool(processes) if processes > 1 else nullcontext() as pool:
            drawn = pool.imap_unordered(_draw_block, blocks) if pool else map(_draw_block, blocks)
            for done, _ in enumerate(drawn, start=1):
                print(f"drawn {min(done * 1000, count)}/{count}", flush=True)
        (folder / "done").touch()
    return open_pictures(folder)


def open_pictures(folder: Path) -> Pictures:
    """Open pictures that :func:`draw_pictures` made."""
    rows = [row for part in sorted(folder.glob("rows-*.json")) for row in json.loads(part.read_text())]
    return Pictures(
        images=np.load(folder / "images.npy", mmap_mode="r"),
        coverage=np.load(folder / "coverage.npy", mmap_mode="r"),
        captions=[row.pop("captions") for row in rows],
        specs=rows,
    )
