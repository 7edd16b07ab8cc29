"""From a mask of tokens to one of pixels, without anything learned: colours of subject and ground, and edges.

A run's mask says of every token, which is 8 pixels wide or more, whether the subject is in it. That is enough to learn
from the picture itself what the subject's colours are and what the ground's: a mixture of Gaussians each, in CIELAB.
A minimum cut then gives every pixel to one of them, by its colour, its distance to the mask, and the edges between
neighbours; colours are learned again from what came of it, a few times (GrabCut, Rother et al. 2004). Drawings have
dark outlines, which by their colour belong to dark ground: there the subject gets a rim (:func:`with_rim`).

Computed at no more than :data:`WORKING_SIDE` pixels: what is finer is left to matting. Nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

WORKING_SIDE = 256
_ITERATIONS = 3
_CAPACITY = 100.0
"""Of one unit of cost: capacities of a cut are whole numbers."""
_CERTAIN = 1000.0
_INK = 30.0
"""Lightness below which a stroke is ink."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """What decides; lengths in tokens. Chosen by ``benchmarks/sprites.py --tuning``.

    Attributes:
        core: farther inside the mask than this is the subject, whatever its colour.
        learned: farther inside than this its first colours are learned from.
        unknown: log-likelihood of a colour that is neither's; without it, outlines that are in no example would go to
            whatever is a little less unlike them.
        reach: farther outside than this is the ground.
        colours: Gaussians of the subject, and of the ground.
        spread: added to their variances, in CIELAB units squared.
        prior: how much a token's width in or out of the mask counts, in log-likelihood.
        edges: how much a border between two pixels of one colour costs.
        doubt: how much less likely a pixel is the subject than its colour says, in log-likelihood.
        rim: pixels of a dark outline, of 128 in the picture's side.
        dark, light: lightness below which ground is dark, and above which a subject's edge has no outline.
        ink: share of dark strokes inside a subject from which on it is a drawing with outlines.
        part: pieces smaller than this share of the largest are dropped.
        hole: enclosed ground of fewer square tokens is filled.
    """

    core: float = 1.5
    learned: float = 0.75
    unknown: float = -15.0
    reach: float = 1.75
    colours: int = 8
    spread: float = 2.0
    prior: float = 2.0
    edges: float = 10.0
    doubt: float = 0.5
    rim: float = 3.0
    dark: float = 40.0
    light: float = 35.0
    ink: float = 0.02
    part: float = 0.1
    hole: float = 1.5


TUNED = Tuning()


def segmented(image: Image.Image, mask: Booleans, tuning: Tuning = TUNED) -> Booleans:
    """Which pixels the subject is.

    Args:
        image: RGB.
        mask: bool ``[rows, columns]``, one value per token; something in it is true.
        tuning: what decides.

    Returns:
        bool ``[h, w]`` of the image's size.
    """
    from scipy import ndimage

    small = image.copy()
    small.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX)
    lab = cielab(np.asarray(small, np.float64) / 255)
    height, width = lab.shape[:2]
    token = max(height / mask.shape[0], width / mask.shape[1])
    covered = enlarged(mask, (height, width))
    # what lies beyond the frame is no subject: tokens at the frame are no core
    inside = ndimage.distance_transform_edt(np.pad(covered, 1))[1:-1, 1:-1] / token
    outside = ndimage.distance_transform_edt(~covered) / token
    core, ground = inside > tuning.core, outside > tuning.reach
    subject, others = inside > tuning.learned, outside > 0
    prior = tuning.prior * np.clip(outside - inside, -2, 2)
    subject = subject if subject.any() else covered
    for _ in range(_ITERATIONS):
        if not subject.any() or not others.any():
            break
        as_subject = _surprise(lab, lab[subject], tuning) + np.maximum(prior, 0) + tuning.doubt
        as_ground = _surprise(lab, lab[others], tuning) + np.maximum(-prior, 0)
        as_subject[ground] = as_ground[core] = _CERTAIN
        as_ground[ground] = as_subject[core] = 0
        subject = _minimum_cut(as_subject, as_ground, lab, tuning.edges)
        others = ~subject
    subject = _whole(subject, tuning.part, tuning.hole * token**2)
    subject = with_rim(subject, lab[..., 0], round(tuning.rim * max(height, width) / 128), tuning)
    return enlarged(subject, (image.height, image.width), smooth=True)


def enlarged(mask: Booleans, size: tuple[int, int], *, smooth: bool = False) -> Booleans:
    """A mask at another height and width."""
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.resize((size[1], size[0]), how)) >= 128


def cielab(pixels: Floats) -> Floats:
    """sRGB in 0 to 1 as CIELAB (D65): lightness in 0 to 100, and two axes of colour."""
    linear = np.where(pixels > 0.04045, ((pixels + 0.055) / 1.055) ** 2.4, pixels / 12.92)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(root, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _surprise(colours: Floats, examples: Floats, tuning: Tuning) -> Floats:
    """Negative log-likelihood of every pixel's colour ``[h, w]`` under a mixture of Gaussians of some examples."""
    parts = _grouped(examples, tuning.colours)
    logs = []
    for part in parts:
        covariance = np.cov(part.T) + tuning.spread * np.eye(3)
        difference = colours - part.mean(0)
        distance = np.einsum("...i,ij,...j", difference, np.linalg.inv(covariance), difference)
        logs.append(np.log(len(part) / len(examples)) - (np.linalg.slogdet(covariance)[1] + distance) / 2)
    return np.asarray(-np.logaddexp.reduce([*logs, np.full(colours.shape[:2], tuning.unknown)]))


def _grouped(examples: Floats, count: int, least: int = 8, rounds: int = 8) -> list[Floats]:
    """Colours in groups by k-means, which begins with equal shares along their main axis; one at least."""
    centred = examples - examples.mean(0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    shares = np.array_split(np.argsort(centred @ axis, kind="stable"), count)
    centres = np.stack([examples[share].mean(0) for share in shares if len(share)])
    for _ in range(rounds):
        nearest = ((examples[:, None] - centres) ** 2).sum(-1).argmin(1)
        found = [examples[nearest == number] for number in range(len(centres))]
        centres = np.stack([part.mean(0) if len(part) else old for part, old in zip(found, centres, strict=True)])
    return [part for part in found if len(part) >= least] or [np.repeat(examples, least, 0)]


def _minimum_cut(as_subject: Floats, as_ground: Floats, colours: Floats, edges: float) -> Booleans:
    """Who gets which pixel at the least cost: of its own, and of borders, which are cheap where colours change.

    Args:
        as_subject, as_ground: costs of a pixel ``[h, w]``.
        colours: ``[h, w, 3]``.
        edges: of a border between two pixels of one colour, one pixel long.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    height, width = as_subject.shape
    count = height * width
    numbers = np.arange(count).reshape(height, width)
    every = slice(None)
    steps = (
        (1.0, (every, slice(None, -1)), (every, slice(1, None))),
        (1.0, (slice(None, -1), every), (slice(1, None), every)),
        (2**0.5, (slice(None, -1), slice(None, -1)), (slice(1, None), slice(1, None))),
        (2**0.5, (slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))),
    )
    pairs = [
        (numbers[a].ravel(), numbers[b].ravel(), ((colours[a] - colours[b]) ** 2).sum(-1).ravel(), length)
        for length, a, b in steps
    ]
    contrast = 1 / (2 * np.mean(np.concatenate([pair[2] for pair in pairs])) + 1e-9)
    source, sink = count, count + 1
    rows, columns, costs = [], [], []
    for first, second, difference, length in pairs:
        cost = edges * np.exp(-contrast * difference) / length
        rows += [first, second]
        columns += [second, first]
        costs += [cost, cost]
    least = np.minimum(as_subject, as_ground)
    rows += [np.full(count, source), numbers.ravel()]
    columns += [numbers.ravel(), np.full(count, sink)]
    costs += [(as_ground - least).ravel(), (as_subject - least).ravel()]
    capacity = np.rint(np.concatenate(costs) * _CAPACITY).astype(np.int32)
    graph = csr_matrix((capacity, (np.concatenate(rows), np.concatenate(columns))), shape=(count + 2, count + 2))
    left = graph - maximum_flow(graph, source, sink).flow
    left.data = np.maximum(left.data, 0)
    left.eliminate_zeros()
    reached = np.zeros(count + 2, np.bool_)
    reached[breadth_first_order(left, source, return_predecessors=False)] = True
    return reached[:count].reshape(height, width)


def _whole(subject: Booleans, part: float, hole: float) -> Booleans:
    """Without small pieces, and without small holes.

    Args:
        part: of the largest piece, below which a piece is dropped.
        hole: pixels below which a hole is filled.
    """
    from scipy import ndimage

    pieces, count = ndimage.label(subject)
    if not count:
        return subject
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    subject = np.asarray((sizes >= part * sizes.max())[pieces])
    holes, count = ndimage.label(~subject)
    sizes = np.bincount(holes.ravel(), minlength=count + 1)
    at_frame = np.unique(np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]]))
    filled = sizes <= hole
    filled[at_frame] = False
    return np.asarray(subject | filled[holes])


def with_rim(subject: Booleans, lightness: Floats, width: int, tuning: Tuning) -> Booleans:
    """The subject with the outline that it lost to dark ground.

    Around it, where the ground nearby is dark and the subject's edge is not, its outline must be in what was taken for
    ground; it is as wide as outlines are. Only drawings have outlines: a subject without dark strokes inside gets none.

    Args:
        subject: bool ``[h, w]``.
        lightness: CIELAB's, ``[h, w]``.
        width: an outline's, in pixels.
        tuning: what decides.
    """
    from scipy import ndimage

    inside = ndimage.binary_erosion(subject, iterations=max(1, width), border_value=1)
    ink = inside & (lightness < _INK)
    strokes = ink & ~ndimage.binary_opening(ink, iterations=max(1, width))
    if not width or not inside.any() or strokes.sum() < tuning.ink * inside.sum():
        return subject
    near = 2 * width
    grown = ndimage.binary_dilation(subject, iterations=width)
    around = ndimage.binary_dilation(subject, iterations=near) & ~grown

    def mean(where: Booleans, missing: float) -> Floats:
        size = 2 * near + 5
        share = ndimage.uniform_filter(where.astype(np.float64), size)
        total = ndimage.uniform_filter(np.where(where, lightness, 0.0), size)
        return np.where(share > 1e-6, total / np.maximum(share, 1e-6), missing)

    is_dark, is_light = mean(around, 100.0) < tuning.dark, mean(subject & ~inside, 0.0) > tuning.light
    return np.asarray(subject | (grown & is_dark & is_light))
