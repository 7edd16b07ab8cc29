"""Which pictures of an output are exported: for each scene the one that counts, or every take; anchors if wanted.

What counts follows from the output alone. Of a scene's takes it is the best one by score
(:mod:`consistory_ray.output.index.takes`), unless a reviewer has decided; failed and rejected assets are never
exported, and are counted, so that whoever asks for 400 sprites and gets 398 is told where two have gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.errors import InputError, Problem
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.takes import chosen_rows
from consistory_ray.output.storage import OutputStore


@dataclass(frozen=True, slots=True)
class Source:
    """A picture of an output, as its index row tells.

    Attributes:
        asset_id, kind, subject, scene, prompt, seed, model, model_fingerprint, profile: see
            :class:`consistory_ray.output.index.rows.IndexRow`.
        take: from 1.
        path, size, sha256, width, height: its file, relative to the output, in bytes and pixels.
        mask: where its subjects are, a PNG of one bit per token; None where nobody knows.
    """

    asset_id: str
    kind: str
    subject: str
    scene: str
    take: int
    prompt: str
    seed: int
    model: str
    model_fingerprint: str
    profile: str | None
    path: str
    size: int
    sha256: str
    width: int
    height: int
    mask: bytes | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for.

    Attributes:
        subjects, scenes: ids, or patterns with ``*`` and ``?``; empty for all.
        all_takes: every take of a scene instead of the one that counts.
        picked: only what a reviewer has picked.
        anchors: the pictures that define subjects, too.
    """

    subjects: tuple[str, ...] = ()
    scenes: tuple[str, ...] = ()
    all_takes: bool = False
    picked: bool = False
    anchors: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """What an export takes.

    Attributes:
        sources: the pictures, by subject, kind, scene and take.
        left_out: how many assets among those asked for have no picture that may be exported, by their index status.
    """

    sources: tuple[Source, ...]
    left_out: dict[str, int]


_COLUMNS = tuple(Source.__dataclass_fields__)


def select(store: OutputStore, wanted: Wanted) -> Selection:
    """Choose the pictures of an output.

    Raises:
        InputError: there is no index, or nothing in it is asked for.
        StorageError: the index cannot be read.
    """
    table = read_index(store)
    if not len(table):
        raise InputError("nothing was rendered there", [Problem("URL", store.url, "give the folder of a render")])
    table = table if wanted.all_takes else chosen_rows(table)
    if not wanted.anchors:
        table = table.filter(pc.equal(table["kind"], "scene"))
    table = _matching(_matching(table, "subject", wanted.subjects), "scene", wanted.scenes)
    counts = pc.value_counts(table["status"].combine_chunks()).to_pylist() if len(table) else []
    left_out = {count["values"]: count["counts"] for count in counts if count["values"] != "ok"}
    table = table.filter(pc.equal(table["status"], "ok"))
    if not len(table):
        told = ", ".join(f"{count} {status}" for status, count in left_out.items()) or "no picture matches"
        fix = "choose other pictures, or render something first"
        raise InputError("there is nothing to export", [Problem("--subject, --scene", told, fix)])
    table = table.set_column(table.column_names.index("take"), "take", pc.fill_null(table["take"], 1))
    order = [(name, "ascending") for name in ("subject", "kind", "scene", "take", "asset_id")]
    rows = table.select(list(_COLUMNS)).sort_by(order).to_pylist()
    return Selection(tuple(Source(**row) for row in rows), left_out)


def _matching(table: pa.Table, column: str, patterns: Sequence[str]) -> pa.Table:
    """The rows whose value is one of these ids or fits one of these patterns.

    Raises:
        InputError: a pattern fits nothing.
    """
    if not patterns:
        return table
    there = sorted(set(table[column].to_pylist()))
    fitting = {pattern: [value for value in there if fnmatchcase(value, pattern)] for pattern in patterns}
    shown = ", ".join(there[:8]) + (", …" if len(there) > 8 else "")
    problems = [
        Problem(f"--{column}", pattern, f"use ids that the output has: {shown}")
        for pattern, found in fitting.items()
        if not found
    ]
    if problems:
        raise InputError("there is nothing to export", problems)
    kept = pa.array(sorted({value for found in fitting.values() for value in found}), pa.string())
    return table.filter(pc.is_in(table[column], value_set=kept))
