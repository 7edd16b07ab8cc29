"""Which pictures of an output are exported: for each scene the one that counts, or every take; anchors if wanted.

What counts follows from the output alone. Of a scene's takes it is the best one by score
(:mod:`consistory_ray.output.index.takes`), unless a reviewer has decided (:mod:`consistory_ray.output.decisions`): what
was picked wins, what was rejected is never exported. Assets without a picture are counted, so that whoever asks for 400
sprites and gets 398 is told where two have gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.errors import InputError, Problem
from consistory_ray.output.decisions import Standing, decided_rows, read_decisions, standing
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.takes import picture_ids
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
        left_out: how many assets among those asked for have no picture that may be exported, by their index status, or
            ``rejected by a reviewer``.
    """

    sources: tuple[Source, ...]
    left_out: dict[str, int]


_REJECTED = "rejected by a reviewer"
_COLUMNS = tuple(Source.__dataclass_fields__)


def select(store: OutputStore, wanted: Wanted) -> Selection:
    """Choose the pictures of an output.

    Raises:
        InputError: there is no index, nothing in it is asked for, or decisions cannot be read.
        StorageError: the index cannot be read.
    """
    table = read_index(store)
    if not len(table):
        raise InputError("nothing was rendered there", [Problem("URL", store.url, "give the folder of a render")])
    if not wanted.anchors:
        table = table.filter(pc.equal(table["kind"], "scene"))
    table = _matching(_matching(table, "subject", wanted.subjects), "scene", wanted.scenes)
    table, left_out = _counting(table, _stands(store), wanted)
    if not len(table):
        told = ", ".join(f"{count} {status}" for status, count in left_out.items()) or "no picture fits"
        fix = "pick pictures in a review first, or choose others" if wanted.picked else "choose other pictures"
        option = "--picked" if wanted.picked else "--subject, --scene"
        raise InputError("there is nothing to export", [Problem(option, told, fix)])
    table = table.set_column(table.column_names.index("take"), "take", pc.fill_null(table["take"], 1))
    order = [(name, "ascending") for name in ("subject", "kind", "scene", "take", "asset_id")]
    rows = table.select(list(_COLUMNS)).sort_by(order).to_pylist()
    return Selection(tuple(Source(**row) for row in rows), left_out)


def _stands(store: OutputStore) -> dict[str, Standing]:
    """What reviewers have decided.

    Raises:
        InputError: some of it cannot be read: what it rejects may not be shipped.
    """
    decisions, unreadable = read_decisions(store)
    if unreadable:
        fix = "put this part back, or delete it, and what it says with it"
        problems = [Problem(f"{store.url}/{path}", why, fix) for path, why in unreadable.items()]
        raise InputError("decisions of reviewers cannot be read", problems)
    return standing(decisions)


def _counting(table: pa.Table, stands: dict[str, Standing], wanted: Wanted) -> tuple[pa.Table, dict[str, int]]:
    """The rows that are exported, and how many assets have none, by reason."""
    everything = set(picture_ids(table).to_pylist())
    picked = pa.array([one.picked for one in stands.values() if one.picked], pa.string())
    if wanted.all_takes or wanted.picked:
        rejected = pa.array([asset_id for one in stands.values() for asset_id in one.rejected], pa.string())
        out = pc.is_in(table["asset_id"], value_set=rejected)
        refused = {_REJECTED: count} if (count := pc.sum(out).as_py()) else {}
        table = table.filter(pc.invert(out))
    else:
        table = decided_rows(table, stands)
        refused = {_REJECTED: count} if (count := len(everything) - len(table)) else {}
    if wanted.picked:
        table, refused = table.filter(pc.is_in(table["asset_id"], value_set=picked)), {}
    counts = pc.value_counts(table["status"].combine_chunks()).to_pylist() if len(table) else []
    left_out = {count["values"]: count["counts"] for count in counts if count["values"] != "ok"}
    return table.filter(pc.equal(table["status"], "ok")), left_out | refused


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
