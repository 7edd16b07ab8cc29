"""How well a subject mask of a few tokens can, and does, fit the subject's pixels."""

from __future__ import annotations

import numpy as np


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two bool masks; 1 when both are empty."""
    union = np.logical_or(first, second).sum()
    return float(np.logical_and(first, second).sum() / union) if union else 1.0


def enlarged(tokens: np.ndarray, height: int, width: int) -> np.ndarray:
    """A token mask ``[rows, columns]`` at the picture's size; every token covers the pixels nearest to it."""
    rows = (np.arange(height) * tokens.shape[0]) // height
    columns = (np.arange(width) * tokens.shape[1]) // width
    return np.asarray(tokens[rows[:, None], columns[None]])


def token_overlap(tokens: np.ndarray, pixels: np.ndarray) -> float:
    """IoU of a token mask with a pixel mask, at the picture's size."""
    return overlap(enlarged(tokens, *pixels.shape), pixels)


def best_token_overlap(pixels: np.ndarray, rows: int, columns: int) -> float:
    """The largest IoU that any token mask of that many rows and columns can have with a pixel mask.

    Adding tokens in the order of the share of their pixels that the subject covers is optimal, so only as many masks as
    there are tokens need to be tried.
    """
    height, width = pixels.shape
    if height % rows or width % columns:
        raise ValueError(f"a picture of {height} x {width} pixels does not divide into {rows} x {columns} tokens")
    inside = np.sort(pixels.reshape(rows, height // rows, columns, width // columns).sum((1, 3)).ravel())[::-1]
    if inside[0] == 0:
        return 1.0
    taken = np.cumsum(inside)
    size = height * width // (rows * columns)
    return float((taken / (pixels.sum() + np.arange(1, len(inside) + 1) * size - taken)).max())
