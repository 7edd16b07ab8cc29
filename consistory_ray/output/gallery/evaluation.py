"""The page of an evaluation: subjects on the plane of consistency and alignment, ranked; outliers first; copied scenes.

One static file without scripts; plots are SVG that the template draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.output.gallery.pages import page_environment
from consistory_ray.output.gallery.thumbnails import make_thumbnail, needs_thumbnail, thumbnail_path
from consistory_ray.output.lease.fencing import Lost, refuse_if_lost
from consistory_ray.output.run_record import read_run_record
from consistory_ray.output.scores import EVALUATION_PAGE

if TYPE_CHECKING:
    from consistory_ray.output.storage import OutputStore
    from consistory_ray.quality.summary import Number, SubjectSummary, Summary

MAX_SUBJECTS = 500
"""So many subjects are listed and drawn: the best half and the worst."""
WIDTH, HEIGHT, MARGIN = 640, 420, 56


@dataclass(frozen=True, slots=True)
class Mark:
    """A subject on the plane, in the plot's own units: its place, and the ends of its intervals."""

    subject: str
    x: float
    y: float
    left: float
    right: float
    bottom: float
    top: float


@dataclass(frozen=True, slots=True)
class Plane:
    """What is drawn: subjects' marks, and ticks as (place, label)."""

    marks: tuple[Mark, ...]
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]


def build_evaluation_page(
    store: OutputStore, summary: Summary, rows: pa.Table, failures: Mapping[str, str], lost: Lost = str
) -> str:
    """Write the page; returns its path below the output.

    Args:
        store: the output.
        summary: what it shows.
        rows: of the index.
        failures: path -> why a picture could not be scored.
        lost: why the output may no longer be written to; empty while it may.
    """
    record = read_run_record(store)
    paths = [one.path for one in summary.outliers]
    paths += [path for one in summary.copies for path in (one.path, one.other)]
    shown = listed(summary.subjects)
    html = page_environment().get_template("evaluation.html.j2").render(
        title=record.name if record else "Pictures",
        summary=summary,
        subjects=shown,
        hidden=len(summary.subjects) - len(shown),
        columns=[name for name in summary.run if not name.startswith("background_")],
        plane=plane_of(shown, summary.identity, summary.alignment),
        size=(WIDTH, HEIGHT, MARGIN),
        previews=_previews(store, rows, paths, lost),
        failures=failures,
    )  # fmt: skip
    refuse_if_lost(lost, "the page was not written")
    store.write_atomic(EVALUATION_PAGE, html.encode("utf-8", "replace"))
    return EVALUATION_PAGE


def listed(subjects: Sequence[SubjectSummary]) -> tuple[SubjectSummary, ...]:
    """Those that are shown of many: best and worst."""
    half = MAX_SUBJECTS // 2
    return tuple(subjects) if len(subjects) <= MAX_SUBJECTS else (*subjects[:half], *subjects[-half:])


def plane_of(subjects: Sequence[SubjectSummary], identity: str, alignment: str) -> Plane | None:
    """The plane; None where a subject has both numbers nowhere."""
    pairs = [
        (one.subject, one.numbers[alignment], one.numbers[identity])
        for one in subjects
        if identity in one.numbers and alignment in one.numbers
    ]
    if not pairs:
        return None
    across, up = _Axis([x for _, x, _ in pairs], WIDTH), _Axis([y for _, _, y in pairs], HEIGHT, turned=True)
    marks = tuple(
        Mark(name, across(x.mean), up(y.mean), across(x.low), across(x.high), up(y.low), up(y.high))
        for name, x, y in pairs
    )
    return Plane(marks, across.ticks, up.ticks)


class _Axis:
    """From numbers to places between the margins."""

    def __init__(self, numbers: Sequence[Number], length: int, *, turned: bool = False) -> None:
        low, high = min(number.low for number in numbers), max(number.high for number in numbers)
        room = max(0.02, 0.05 * (high - low))
        self._low, self._high, self._length, self._turned = low - room, high + room, length, turned

    def __call__(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return round(MARGIN + (self._length - 2 * MARGIN) * (1 - share if self._turned else share), 1)

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        values = [self._low + step / 4 * (self._high - self._low) for step in range(5)]
        return tuple((self(value), f"{value:.2f}") for value in values)


def _previews(store: OutputStore, rows: pa.Table, paths: Sequence[str], lost: Lost) -> dict[str, str]:
    """What stands for each picture: its thumbnail or itself, relative to the page; none where it cannot be shown."""
    wanted = rows.filter(pc.is_in(rows["path"], value_set=pa.array(sorted(set(paths)), pa.string())))
    found: dict[str, str] = {}
    columns: list[dict[str, Any]] = wanted.select(["path", "sha256", "width", "height", "size"]).to_pylist()
    for row in columns:
        if not needs_thumbnail(row):
            found[row["path"]] = f"../{quote(row['path'])}"
        elif store.exists(thumbnail_path(row["sha256"])) or not (lost() or make_thumbnail(store, row)):
            found[row["path"]] = f"../{thumbnail_path(row['sha256'])}"
    return found
