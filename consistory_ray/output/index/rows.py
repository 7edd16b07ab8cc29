"""Index rows: their columns, how they become Arrow tables, and which of several rows of one asset counts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from operator import attrgetter
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consistory_ray.guards.redaction import redacted
from consistory_ray.output.assets import WrittenAsset, stored_mask
from consistory_ray.pictures.masks import MAX_MASK_BYTES

SCHEMA_VERSION = 1
VERSION_KEY = b"consistory_index_version"
NOT_KEPT = ("failed", "rejected")
"""What the status of a row can be that has no picture."""
_MAX_ERROR = 2000
_MAX_LIST = 1 << 16
_WIDEST = 1 << 16

_Integers = np.ndarray[Any, np.dtype[np.int64]]
_Booleans = np.ndarray[Any, np.dtype[np.bool_]]


def _features(fields: Iterable[pa.Field]) -> dict[str, Any]:
    """The column descriptions that the ``datasets`` library looks for; a field named ``image`` holds pictures."""

    def feature(kind: pa.DataType) -> dict[str, Any]:
        if pa.types.is_list(kind):
            return {"_type": "List", "feature": feature(kind.value_type)}
        return {"_type": "Value", "dtype": {"double": "float64"}.get(str(kind), str(kind))}

    return {item.name: {"_type": "Image"} if item.name == "image" else feature(item.type) for item in fields}


def described(schema: pa.Schema) -> pa.Schema:
    """``schema`` with the index version and ``datasets`` column descriptions in its metadata."""
    info = json.dumps({"info": {"features": _features(schema)}})
    return schema.with_metadata({VERSION_KEY: str(SCHEMA_VERSION).encode(), b"huggingface": info.encode()})


SCHEMA: pa.Schema = described(
    pa.schema(
        [
            pa.field("asset_id", pa.string(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),
            pa.field("subject", pa.string(), nullable=False),
            pa.field("scene", pa.string(), nullable=False),
            pa.field("prompt", pa.string(), nullable=False),
            pa.field("seed", pa.int64(), nullable=False),
            pa.field("anchor_seeds", pa.list_(pa.int64()), nullable=False),
            pa.field("settings_hash", pa.string(), nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("model_fingerprint", pa.string(), nullable=False),
            pa.field("path", pa.string()),
            pa.field("size", pa.int64()),
            pa.field("sha256", pa.string()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("seconds", pa.float64()),
            pa.field("worker", pa.string()),
            pa.field("attempt", pa.int32(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("error", pa.string()),
            pa.field("fault", pa.string()),
            pa.field("cache_sha256", pa.string()),
            pa.field("control", pa.string()),
            pa.field("profile", pa.string()),
            pa.field("scheduler", pa.string()),
            pa.field("loras", pa.string()),
            pa.field("mask", pa.binary()),
            pa.field("take", pa.int32()),
            pa.field("take_of", pa.string()),
            pa.field("score", pa.float64()),
            pa.field("scored_by", pa.string()),
            pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False),
        ]
    )
)
"""The index's columns. ``path``, ``size``, ``sha256``, ``width`` and ``height`` are null in failed rows."""


def _now() -> datetime:
    return datetime.now(timezone.utc)


@dataclass(frozen=True, slots=True)
class IndexRow:
    """What is known about one asset after one attempt.

    Attributes:
        asset_id, kind, subject, scene, prompt, seed, anchor_seeds, settings_hash, model, model_fingerprint: what the
            asset is; see :class:`consistory_ray.plan.plan.Asset`.
        path, size, sha256, width, height: its file, relative to the output, in bytes and pixels; None when it failed.
        seconds: its share of its batch's rendering time; None when unknown (a recovered picture).
        worker: who rendered it; None when unknown.
        attempt: 1 for the first try.
        status: ``ok``, ``failed``, or ``rejected``: a check of the job found something in it.
        error: why it failed, or what was found; None when it is ok.
        fault: the kind of failure, a value of :class:`consistory_ray.engine.faults.Fault`; None when it did not fail.
        cache_sha256: of the anchor cache that a scene was rendered from; None for anchors, failures and pictures that
            do not tell. Two scenes of one subject with different ones saw anchors that were made twice.
        control: what has led it: JSON, a list of hints, each with SHA-256, scale, start, end, preprocess and net; None
            for pictures that nothing has led.
        profile: what was saved on its subject's scenes; None where it is none of the profiles, and in rows of versions
            that had none, which are exact.
        scheduler: what its latents were sampled with; None in rows of versions that had DDIM alone.
        loras: what was fused into its model: JSON, a list with name, path, weight and content (SHA-256) of each; None
            for none.
        mask: where its subjects are: a PNG of one bit per token of the method's finest grid; None where nobody knows,
            as in rows of versions that did not tell.
        take: which of the pictures of its scene, from 1; None in rows of versions that made one of each.
        take_of: of a further take the asset_id of the first one; None for that one.
        score: what the job's metric has found, more is better; None where nobody has looked.
        scored_by: metric, measure and version that it is of.
        created_at: when the row was made, UTC. Rows of one run are to be stamped by one clock, the coordinator's.
    """

    asset_id: str
    kind: str
    subject: str
    scene: str
    prompt: str
    seed: int
    anchor_seeds: tuple[int, ...]
    settings_hash: str
    model: str
    model_fingerprint: str
    path: str | None = None
    size: int | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    seconds: float | None = None
    worker: str | None = None
    attempt: int = 1
    status: Literal["ok", "failed", "rejected"] = "ok"
    error: str | None = None
    fault: str | None = None
    cache_sha256: str | None = None
    control: str | None = None
    profile: str | None = None
    scheduler: str | None = None
    loras: str | None = None
    mask: bytes | None = None
    take: int | None = 1
    take_of: str | None = None
    score: float | None = None
    scored_by: str | None = None
    created_at: datetime = field(default_factory=_now)

    def __post_init__(self) -> None:
        facts = (self.path, self.size, self.sha256, self.width, self.height)
        if self.status == "ok" and any(fact is None for fact in facts):
            raise ValueError(f"asset {self.asset_id}: ok needs path, size, sha256, width and height, got {facts}")
        if self.status in NOT_KEPT and (not self.error or self.path is not None):
            raise ValueError(f"asset {self.asset_id}: a {self.status} row needs an error, has no path: {self.path}")
        if self.status not in ("ok", *NOT_KEPT):
            raise ValueError(f"asset {self.asset_id}: status must be ok, failed or rejected, got {self.status!r}")
        if not all(-(2**63) <= seed < 2**63 for seed in (self.seed, *self.anchor_seeds)):
            raise ValueError(f"asset {self.asset_id}: seeds must fit 64 bits, got {self.seed}, {self.anchor_seeds}")
        texts = (self.asset_id, self.kind, self.subject, self.scene, self.prompt, self.model, self.model_fingerprint)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"asset {self.asset_id}: what names it must be text, got {texts}")
        if self.created_at.tzinfo is None:
            raise ValueError(f"asset {self.asset_id}: created_at needs a time zone, got {self.created_at}")

    @classmethod
    def rendered(
        cls,
        parameters: Mapping[str, Any],
        written: WrittenAsset,
        size: tuple[int, int],
        *,
        seconds: float | None = None,
        worker: str | None = None,
        attempt: int = 1,
        cache_sha256: str | None = None,
        mask: bytes | None = None,
    ) -> IndexRow:
        """The row of a picture that is on storage.

        Args:
            parameters: as :func:`consistory_ray.output.assets.asset_parameters` makes them.
            written: what :func:`consistory_ray.output.assets.write_asset` returned.
            size: width and height in pixels.
            seconds, worker, attempt, cache_sha256, mask: see the class.
        """
        return cls(
            **_identity(parameters),
            path=written.path,
            size=written.size,
            sha256=written.sha256,
            width=size[0],
            height=size[1],
            seconds=seconds,
            worker=worker,
            attempt=attempt,
            cache_sha256=cache_sha256,
            mask=stored_mask(parameters) if mask is None else mask,
        )

    @classmethod
    def failed(
        cls,
        parameters: Mapping[str, Any],
        error: str,
        *,
        fault: str | None = None,
        seconds: float | None = None,
        worker: str | None = None,
        attempt: int = 1,
        status: Literal["failed", "rejected"] = "failed",
    ) -> IndexRow:
        """The row of an asset that was given up, or rejected; ``error`` is cut to 2,000 characters."""
        error = redacted(error.strip()) or "unknown error"
        error = error if len(error) <= _MAX_ERROR else error[: _MAX_ERROR - 1] + "…"
        identity = _identity(parameters)
        return cls(**identity, status=status, error=error, fault=fault, seconds=seconds, worker=worker, attempt=attempt)


COLUMNS: tuple[str, ...] = tuple(SCHEMA.names)
_row_values = attrgetter(*COLUMNS)


def _identity(parameters: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("asset_id", "kind", "subject", "scene", "prompt", "seed", "settings_hash", "model", "model_fingerprint")
    given = {key: parameters[key] for key in keys} | {"anchor_seeds": tuple(parameters["anchor_seeds"])}
    settings = parameters.get("settings")
    scheduler = settings.get("scheduler", "ddim") if isinstance(settings, Mapping) else None
    return given | {
        "control": _listed(parameters.get("control")),
        "profile": parameters.get("profile", "exact"),
        "scheduler": scheduler if isinstance(scheduler, str) and len(scheduler) <= _LONG else None,
        "loras": _listed(parameters.get("loras")),
        "take": parameters.get("take", 1),
        **{key: parameters.get(key) for key in ("take_of", "score", "scored_by")},
    }


def _listed(given: Any) -> str | None:
    """A list as the text of a column; None where it is empty, or longer than any that a run writes."""
    told = json.dumps(given, sort_keys=True) if given else None
    return None if told is not None and len(told) > _MAX_LIST else told  # of a picture that somebody made up


def rows_to_table(rows: Iterable[IndexRow]) -> pa.Table:
    """Rows as an Arrow table of :data:`SCHEMA`; in text, a lone surrogate, which is no Unicode, becomes ``?``."""
    columns: list[Sequence[Any]] = list(zip(*map(_row_values, rows), strict=True)) or [()] * len(COLUMNS)
    arrays = []
    for item, values in zip(SCHEMA, columns, strict=True):
        is_text = pa.types.is_string(item.type)
        arrays.append(pa.array([_utf8(text) for text in values] if is_text else values, item.type))
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _utf8(text: str | None) -> str | None:
    return text if text is None or text.isascii() else text.encode("utf-8", "replace").decode()


_LONGEST = {"prompt": 1 << 20, "error": 1 << 16, "control": _MAX_LIST, "loras": _MAX_LIST}
_LONG = 4096
_EARLIEST, _LATEST = (datetime(year, 1, 1, tzinfo=timezone.utc) for year in (1970, 9999))
_FACTS = ("path", "size", "sha256", "width", "height")


def is_not_kept(table: pa.Table) -> pa.ChunkedArray:
    """Which rows have no picture: those that failed, and those that were rejected."""
    return pc.is_in(table["status"], value_set=pa.array(NOT_KEPT))


def unsound_rows(table: pa.Table) -> tuple[_Booleans, str]:
    """Which rows hold what no run has written, and the first thing that is wrong; empty when nothing is.

    Args:
        table: of :data:`SCHEMA`, read from an index that anybody may have written.
    """
    ok, failed = pc.equal(table["status"], "ok"), is_not_kept(table)
    checks = [(f"{item.name} is null", pc.is_null(table[item.name])) for item in SCHEMA if not item.nullable]
    for item in SCHEMA:
        if pa.types.is_string(item.type):
            long = pc.greater(pc.binary_length(table[item.name]), _LONGEST.get(item.name, _LONG))
            checks.append((f"{item.name} is too long", long))
    checks.append(("mask is too long", pc.greater(pc.binary_length(table["mask"]), MAX_MASK_BYTES)))
    for name in _FACTS:
        checks.append((f"status is ok and {name} is null", pc.and_(ok, pc.is_null(table[name]))))
    checks.append(("take is below 1", pc.less(table["take"], 1)))
    for name in ("size", "width", "height", "attempt", "seconds"):
        checks.append((f"{name} is negative", pc.less(table[name], 0)))
    for name in ("width", "height"):
        checks.append((f"{name} is beyond that of any picture", pc.greater(table[name], _WIDEST)))
    finite = pc.fill_null(pc.is_finite(table["seconds"]), True)
    scored = pc.fill_null(pc.is_finite(table["score"]), True)
    created = table["created_at"]
    in_time = pc.and_(
        pc.greater_equal(created, pa.scalar(_EARLIEST, created.type)),
        pc.less(created, pa.scalar(_LATEST, created.type)),
    )
    told = pc.and_(pc.is_valid(table["error"]), pc.is_null(table["path"]))
    seeds = table["anchor_seeds"].combine_chunks()
    checks += [
        ("status is neither ok nor failed nor rejected", pc.invert(pc.or_(ok, failed))),
        ("status is not ok and there is no error, or a path", pc.and_(failed, pc.invert(told))),
        ("seconds is no number", pc.invert(finite)),
        ("score is no number", pc.invert(scored)),
        ("created_at is no year in which there could be a run", pc.invert(in_time)),
    ]
    bad, reason = np.zeros(len(table), np.bool_), ""
    for name, mask in checks:
        found = pc.fill_null(mask, False).to_numpy(zero_copy_only=False)
        if found.any():
            reason = reason or f"{int(found.sum())} of {len(table)} rows cannot be right: {name}"
            bad |= found
    if pc.list_flatten(seeds).null_count:
        empty = pc.fill_null(pc.is_null(pc.list_flatten(seeds)), False).to_numpy(zero_copy_only=False)
        bad[pc.list_parent_indices(seeds).to_numpy()[empty]] = True
        reason = reason or "a row cannot be right: a seed in anchor_seeds is null"
    return bad, reason


def table_to_rows(table: pa.Table) -> list[IndexRow]:
    """The inverse of :func:`rows_to_table`."""
    rows = []
    for values in table.select(COLUMNS).to_pylist():
        values["anchor_seeds"] = tuple(values["anchor_seeds"])
        rows.append(IndexRow(**values))
    return rows


def latest_rows(table: pa.Table) -> pa.Table:
    """The rows that count, at most one per asset, sorted by subject, kind (anchors first), scene, asset id.

    Rows are taken from oldest to newest. An ok row replaces whatever was known of its asset, and of any other asset
    whose picture had the same path: that file is overwritten. A failed row counts only while its asset has no picture,
    so a picture that is there is never lost to a later failure.

    Age is by ``created_at``, then ``attempt``, then the other columns, so the outcome never depends on the order of the
    rows. Reducing older rows first and adding newer ones later gives the same rows as reducing all at once.

    Args:
        table: of :data:`SCHEMA`, or at least those columns that are compared and sorted by.
    """
    keys = ("created_at", "attempt", "asset_id", "status", "path", "sha256", "worker", "error", "seconds")
    age = pc.sort_indices(table, sort_keys=[(key, "ascending") for key in keys if key in table.column_names]).to_numpy()
    ok = pc.equal(table["status"], "ok").to_numpy()[age]
    asset, path = _codes(table["asset_id"])[age], _codes(table["path"])[age]
    # positions in ``age`` from here on
    newest_ok, newest_failed = _newest(asset, ok), _newest(asset, ~ok)
    overwritten = _next_on_path(path, ok)[newest_ok]  # for an asset without ok rows this is a don't-care
    kept = np.where((newest_ok >= 0) & (overwritten == len(age)), newest_ok, -1)
    failed_since = (newest_ok < 0) | (newest_failed > overwritten)
    kept = np.where((kept < 0) & failed_since, newest_failed, kept)
    chosen = pa.array(age[kept[kept >= 0]])
    order = ("subject", "kind", "scene", "asset_id")
    sorted_there = pc.sort_indices(table.select(order).take(chosen), sort_keys=[(key, "ascending") for key in order])
    return table.take(chosen.take(sorted_there))  # the wide columns are copied once, which counts at a million rows


def _codes(column: pa.ChunkedArray) -> _Integers:
    """A number for each distinct value, from 0; nulls are a value too."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    codes: _Integers = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _newest(asset: _Integers, among: _Booleans) -> _Integers:
    """For each asset the position of its last row among some, or -1."""
    last = np.full(int(asset.max(initial=-1)) + 1, -1, np.int64)
    positions = np.flatnonzero(among)
    last[asset[positions]] = positions  # of repeated indices the last assignment stays
    return last


def _next_on_path(path: _Integers, ok: _Booleans) -> _Integers:
    """For each ok row the position of the next ok row with its path; the number of rows where there is none."""
    following = np.full(len(path) + 1, len(path), np.int64)  # one more, so that an index of -1 is harmless
    positions = np.flatnonzero(ok)
    positions = positions[np.argsort(path[positions], kind="stable")]
    same = path[positions[:-1]] == path[positions[1:]]
    following[positions[:-1][same]] = positions[1:][same]
    return following
