"""Scores: one number of one metric about one picture, and the columns in which ``evaluation/*.parquet`` holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SCORES_VERSION = 1
VERSION_KEY = b"consistory_scores_version"

SCHEMA: pa.Schema = pa.schema(
    [
        pa.field("asset_id", pa.string(), nullable=False),
        pa.field("take", pa.int32(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("context", pa.string(), nullable=False),
        pa.field("other", pa.string()),
        pa.field("scored_at", pa.timestamp("us", tz="UTC")),
    ],
    metadata={VERSION_KEY: str(SCORES_VERSION).encode()},
)
"""The columns of ``evaluation/*.parquet``."""
KEY = ("asset_id", "take", "metric", "version")
"""What there is one score of: the newest counts."""


@dataclass(frozen=True, slots=True)
class Score:
    """One number.

    Attributes:
        asset_id: of the picture.
        take: which of the asset's pictures; 0 where only one was made.
        sha256: of the picture's file, which tells whether it is still the one that was looked at.
        metric: what was measured, such as ``clip_identity``.
        version: of the metric.
        value: finite; None where the metric has nothing to say, such as of a subject's only picture.
        context: of what it was compared with, see :func:`consistory_ray.quality.scoring.context_of`; empty where it was
            compared with nothing that may change.
        other: asset id of the picture that it was found to resemble, for scores that are about one other picture.
        scored_at: when it was written, UTC; stamped by one clock, the coordinator's.
    """

    asset_id: str
    take: int
    sha256: str
    metric: str
    version: str
    value: float | None
    context: str = ""
    other: str | None = None
    scored_at: datetime | None = None

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"asset {self.asset_id}: {self.metric} must be finite or None, got {self.value}")


def scores_to_table(scores: Iterable[Score]) -> pa.Table:
    """Scores as an Arrow table of :data:`SCHEMA`."""
    rows = list(scores)
    columns = [pa.array([getattr(row, item.name) for row in rows], item.type) for item in SCHEMA]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def table_to_scores(table: pa.Table) -> list[Score]:
    """The inverse of :func:`scores_to_table`."""
    values: list[dict[str, Any]] = table.select(SCHEMA.names).to_pylist()
    return [Score(**row) for row in values]


def newest_scores(table: pa.Table) -> pa.Table:
    """Of each :data:`KEY` the newest row, in the order of the keys; of two of one time, the larger value."""
    order = [*((name, "ascending") for name in KEY), ("scored_at", "ascending"), ("value", "ascending")]
    table = table.take(pc.sort_indices(table, sort_keys=order))
    if len(table) < 2:
        return table
    is_last = np.ones(len(table), bool)
    is_last[:-1] = False
    for name in KEY:
        column = table[name]
        is_last[:-1] |= pc.not_equal(column.slice(0, len(table) - 1), column.slice(1)).to_numpy()
    return table.filter(pa.array(is_last))
