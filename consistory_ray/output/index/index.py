"""The index: one Parquet row per asset, in immutable parts named by their content.

Writers only ever add parts, and write a row after its picture, so a reader at any moment sees whole rows of existing
files. Several rows may speak of one asset (a retry, a second run); which one counts is decided by :func:`latest_rows`,
from the rows alone, whatever the number, names and order of the parts.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consistory_ray.errors import InputError, Problem, StorageError
from consistory_ray.output.index.rows import (
    COLUMNS,
    SCHEMA,
    SCHEMA_VERSION,
    VERSION_KEY,
    IndexRow,
    latest_rows,
    rows_to_table,
    unsound_rows,
)
from consistory_ray.output.lease.fencing import Lost, delete_all, refuse_if_lost
from consistory_ray.output.storage import MissingFileError, OutputStore, UnfitFileError, as_store

__all__ = [
    "SCHEMA",
    "CorruptIndexError",
    "IndexRow",
    "IndexWriter",
    "compact",
    "current_index",
    "done_assets",
    "read_index",
]

INDEX_FOLDER = "index"
ROW_GROUP_ROWS = 50_000
_FEW_ROWS, _LEAST_ROW_BYTES = 200_000, 16
"""Every row has an id of its own, which no compression makes smaller than that."""
_MAX_GROUP_ROWS = 4 * ROW_GROUP_ROWS
_MAX_GROUP_BYTES = 512 << 20
_TEXTS = tuple(item.name for item in SCHEMA if pa.types.is_string(item.type))
_NULLABLE_SCHEMA = pa.schema([item.with_nullable(True) for item in SCHEMA], SCHEMA.metadata)
_READ_THREADS = 8
_READ_TRIES = 5

Output = str | os.PathLike[str] | OutputStore


class CorruptIndexError(StorageError):
    """Index parts that cannot be read.

    Attributes:
        reasons: what is wrong with each of them, by their paths relative to the output.
    """

    lasting = True

    def __init__(self, message: str, reasons: Mapping[str, str]) -> None:
        super().__init__(message)
        self.message = message
        self.reasons = dict(reasons)

    @property
    def parts(self) -> tuple[str, ...]:
        """The paths of all such parts, relative to the output."""
        return tuple(self.reasons)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.reasons))


def encode_part(table: pa.Table) -> bytes:
    """A table of :data:`SCHEMA` (or with more columns) as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=ROW_GROUP_ROWS, write_statistics=True)
    return buffer.getvalue()


def part_name(data: bytes) -> str:
    """The path of an index part, from its content: writing it twice is writing it once."""
    return f"{INDEX_FOLDER}/part-{hashlib.sha256(data).hexdigest()[:32]}.parquet"


def list_parts(store: OutputStore) -> list[str]:
    """Paths of the index's parts."""
    folder = f"{INDEX_FOLDER}/part-"
    paths = (file.path for file in store.list_files(INDEX_FOLDER))
    return [path for path in paths if path.startswith(folder) and path.endswith(".parquet")]


def read_parts(
    store: OutputStore, columns: Collection[str] = COLUMNS, *, skip: Collection[str] = ()
) -> tuple[pa.Table, list[str]]:
    """All rows of all parts but those to ``skip``, as written, and the paths of those parts.

    Raises:
        CorruptIndexError: a part is truncated, changed or not of this format; the message names every such part.
        InputError: a part was written by a newer version.
        StorageError: the storage failed.
    """
    for _ in range(_READ_TRIES):
        parts = [path for path in list_parts(store) if path not in skip]
        try:
            with ThreadPoolExecutor(_READ_THREADS) as pool:
                tables = list(pool.map(lambda path: _read_part(store, path, columns), parts))
        except MissingFileError:
            continue  # merged into another part since it was listed: list again
        corrupt = {path: table for path, table in zip(parts, tables, strict=True) if isinstance(table, str)}
        if corrupt:
            names = "; ".join(f"{store.url}/{path} ({reason})" for path, reason in corrupt.items())
            raise CorruptIndexError(
                f"cannot read {len(corrupt)} part(s) of the index: {names}. Rendering again moves them away and finds "
                "the pictures they spoke of without making them again",
                corrupt,
            )
        schema = pa.schema([SCHEMA.field(name) for name in columns], SCHEMA.metadata)
        return pa.concat_tables(tables or [schema.empty_table()]), parts
    raise StorageError(f"the index at {store.url}/{INDEX_FOLDER} keeps changing while it is read")


def part_problem(store: OutputStore, path: str) -> str:
    """Why a part cannot be read; empty when it can, or is gone.

    Raises:
        InputError: it was written by a newer version.
        StorageError: the storage failed.
    """
    try:
        found = _read_part(store, path, COLUMNS)
    except MissingFileError:
        return ""
    return found if isinstance(found, str) else ""


def sound_rows(store: OutputStore, path: str) -> pa.Table:
    """The rows of a part that can be used, whatever is wrong with others of it; none where it cannot be read at all.

    Raises:
        InputError: it was written by a newer version.
        StorageError: the storage failed.
    """
    try:
        found = _decoded(store.read(path), path, COLUMNS, only_sound=True)
    except UnfitFileError:
        return SCHEMA.empty_table()
    return SCHEMA.empty_table() if isinstance(found, str) else found


def _read_part(store: OutputStore, path: str, columns: Collection[str]) -> pa.Table | str:
    """The part's rows, or why they cannot be read."""
    try:
        data = store.read(path)
    except UnfitFileError as error:
        return str(error)
    return _decoded(data, path, columns)


def _decoded(data: bytes, path: str, columns: Collection[str], *, only_sound: bool = False) -> pa.Table | str:
    """A part's rows, or why they cannot be used.

    A part is named by its content, so that every change is noticed. Whoever may write to the output can name one, too:
    so row groups are decoded one at a time, the columns that are not asked for are checked as well, and what would grow
    beyond all measure is refused before it does.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        version = int((file.schema_arrow.metadata or {}).get(VERSION_KEY, b"0"))
        if version > SCHEMA_VERSION:
            fix = f"upgrade consistory_ray: this version reads index versions up to {SCHEMA_VERSION}"
            raise InputError("the index was written by a newer version", [Problem(path, f"version {version}", fix)])
        if version < 1:
            return "not a part of this index"
        if part_name(data) != path:
            return "its content is not what its name says"
        if file.metadata.num_rows > max(_FEW_ROWS, len(data) // _LEAST_ROW_BYTES):
            return f"it claims {file.metadata.num_rows} rows in {len(data)} bytes"
        present = [name for name in COLUMNS if name in file.schema_arrow.names]
        texts = [name for name in present if name in _TEXTS]
        file = pq.ParquetFile(pa.BufferReader(data), metadata=file.metadata, read_dictionary=texts)
        tables = []
        for group in range(file.num_row_groups):
            if size := _beyond(file.metadata.row_group(group)):
                return size
            table = file.read_row_group(group, columns=present)
            grown = sum(_text_bytes(table[name]) for name in present)
            if grown > _MAX_GROUP_BYTES:
                return f"its texts would grow to {grown} bytes"
            table = _completed(table, COLUMNS).cast(_NULLABLE_SCHEMA)
            bad, reason = unsound_rows(table)
            if reason and not only_sound:
                return reason
            if reason:
                table = table.filter(pa.array(~bad))
            tables.append(table.select(list(columns)))
        schema = pa.schema([SCHEMA.field(name) for name in columns], SCHEMA.metadata)
        return pa.concat_tables(tables).cast(schema) if tables else schema.empty_table()
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'unreadable'}"


def _beyond(group: pq.RowGroupMetaData) -> str:
    """Why a row group is not even decoded; empty when it can be."""
    if group.num_rows > _MAX_GROUP_ROWS:
        return f"it has {group.num_rows} rows in one group"
    sizes = sum(group.column(number).total_uncompressed_size for number in range(group.num_columns))
    return f"it has {sizes} bytes in one group" if sizes > _MAX_GROUP_BYTES else ""


def _text_bytes(column: pa.ChunkedArray) -> int:
    """How many bytes a column of text has once every value is written out."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    total = 0
    for chunk in column.chunks:
        lengths = pc.binary_length(chunk.dictionary)
        total += pc.sum(pc.cast(lengths.take(chunk.indices), pa.int64())).as_py() or 0
    return total


def _completed(table: pa.Table, columns: Collection[str]) -> pa.Table:
    """``table`` with these columns; one that came later to the format and may be null is null in older parts."""
    for name in columns:
        if name not in table.column_names and SCHEMA.field(name).nullable:
            table = table.append_column(SCHEMA.field(name), pa.nulls(len(table), SCHEMA.field(name).type))
    return table.select(list(columns))


def read_index(output: Output) -> pa.Table:
    """The index: one row per asset as :func:`latest_rows` decides; empty when there is none yet.

    Raises:
        CorruptIndexError, InputError, StorageError: see :func:`read_parts`.
    """
    return latest_rows(read_parts(as_store(output))[0])


def current_index(output: Output, asset_ids: Collection[str]) -> pa.Table:
    """The index's rows of these assets. Others, of earlier versions of the job, stay in the index as its history."""
    table = read_index(output)
    return table.filter(pc.is_in(table["asset_id"], value_set=pa.array(list(asset_ids), pa.string())))


def done_assets(output: Output) -> set[str]:
    """Ids of the assets whose pictures are there, going by the index alone; ``resume`` looks at the files as well."""
    columns = ("asset_id", "subject", "kind", "scene", "path", "status", "attempt", "created_at")
    table = latest_rows(read_parts(as_store(output), columns)[0])
    return set(table.filter(pc.equal(table["status"], "ok"))["asset_id"].to_pylist())


def write_part(store: OutputStore, table: pa.Table) -> str:
    """Add a part; returns its path. The same rows give the same part."""
    data = encode_part(table)
    path = part_name(data)
    if not store.create_exclusive(path, data):
        reason = "its content is not what its name says"
        raise CorruptIndexError(f"{store.url}/{path} is damaged ({reason}): render again", {path: reason})
    return path


def compact(
    output: Output, *, drop: Collection[str] = (), only: Collection[str] | None = None, lost: Lost = str
) -> str | None:
    """Merge all parts into one that holds only the rows that count, and delete the merged ones.

    The new part is written first: a kill in between leaves rows twice, which readers do not notice, and a reader that
    meets a deleted part lists again. Parts are deleted side by side, and whatever subset of them a kill leaves, it says
    nothing that the new part does not say better, since that holds the newest rows of all of them. Rows to drop are the
    exception, an older one could come back to life; so everything is merged before, and they go with one deletion.

    Only one process may compact at a time, the one that holds the output.

    Args:
        output: the output.
        drop: asset ids whose rows are to go, so that they are rendered again.
        only: paths of the parts to merge, instead of all. No part outside may have rows of a time between theirs.
        lost: why the output may no longer be written to; empty while it may.

    Returns:
        The path of the one part, or None when no row is left.

    Raises:
        CorruptIndexError, InputError, StorageError: see :func:`read_parts`; nothing was deleted.
        RunError: the output was lost; at most the merged part was written and some of the merged ones deleted.
    """
    store = as_store(output)
    others = () if only is None else set(list_parts(store)).difference(only)
    table, parts = read_parts(store, skip=others)
    table = latest_rows(table)
    merged = None
    if not drop or len(parts) > 1:
        merged = _replace_parts(store, parts, table, lost)
        parts = [] if merged is None else [merged]
    if drop:
        table = table.filter(pc.invert(pc.is_in(table["asset_id"], value_set=pa.array(list(drop), pa.string()))))
        merged = _replace_parts(store, parts, table, lost)
    return merged


def _replace_parts(store: OutputStore, parts: list[str], table: pa.Table, lost: Lost) -> str | None:
    """Write the rows as one part, then delete those parts; the path of the new one, None without rows."""
    refuse_if_lost(lost, "the index was not merged")
    merged = write_part(store, table) if len(table) else None
    delete_all(store, [path for path in parts if path != merged], lost)
    return merged


class IndexWriter:
    """Collects rows and commits them as parts: every so many rows or seconds, and at the end.

    A row that was added is on storage after the next commit. When a commit fails its rows are kept and the next one
    tries again. It may be used from several threads.

    Args:
        output: the output.
        rows_per_part: commit when so many rows have been added.
        seconds_per_part: commit, at an ``add`` or ``tick``, when the oldest uncommitted row is that old.
        parts_before_compaction: merge parts into one when so many have been written, and so many of those again: no
            row is merged more often than the number of parts has digits, and there are never many parts.
        lost: why the output may no longer be written to; empty while it may. Once it is not, every commit and merge
            raises RunError before it writes or deletes anything, and rows stay in memory.
    """

    def __init__(
        self,
        output: Output,
        *,
        rows_per_part: int = 1000,
        seconds_per_part: float = 10.0,
        parts_before_compaction: int = 100,
        lost: Lost = str,
    ) -> None:
        self._store = as_store(output)
        self._rows_per_part = rows_per_part
        self._seconds_per_part = seconds_per_part
        self._parts_before_compaction = parts_before_compaction
        self._lost = lost
        self._rows: list[IndexRow] = []
        self._oldest = 0.0
        self._levels: list[list[str]] = []
        self._lock = threading.Lock()

    @property
    def pending(self) -> int:
        """How many rows are not committed yet."""
        return len(self._rows)

    def add(self, row: IndexRow) -> None:
        """Take a row whose picture, if it is ok, is on storage already; may commit.

        Raises:
            StorageError: a commit was due and failed; the row is kept.
            RunError: a commit was due and the output is lost; the row is kept.
        """
        with self._lock:
            if not self._rows:
                self._oldest = time.monotonic()
            self._rows.append(row)
        self.tick()

    def extend(self, rows: Iterable[IndexRow]) -> None:
        """:meth:`add` for each of ``rows``."""
        for row in rows:
            self.add(row)

    def tick(self) -> None:
        """Commit if it is time to."""
        old = bool(self._rows) and time.monotonic() - self._oldest >= self._seconds_per_part
        if old or len(self._rows) >= self._rows_per_part:
            self.flush()

    def flush(self) -> None:
        """Commit all added rows now.

        Raises:
            StorageError: it failed; the rows are kept for the next commit.
            RunError: the output is lost; the rows are kept.
        """
        with self._lock:
            if self._rows:
                refuse_if_lost(self._lost, f"{len(self._rows)} rows were not committed to the index")
                table = rows_to_table(self._rows)
                path = write_part(self._store, table.sort_by([("subject", "ascending"), ("scene", "ascending")]))
                self._rows = []
                self._file(path, 0)
            self._merge_full_levels()

    def close(self, *, merge: bool = True) -> None:
        """Commit, and merge all parts into one unless ``merge`` is False.

        Raises:
            StorageError, RunError: as :meth:`flush` does; what was not merged is merged by the next run.
        """
        self.flush()
        if merge:
            with self._lock:
                compact(self._store, lost=self._lost)
                self._levels = []

    def _file(self, path: str, level: int) -> None:
        if level == len(self._levels):
            self._levels.append([])
        if path not in self._levels[level]:
            self._levels[level].append(path)

    def _merge_full_levels(self) -> None:
        level = 0
        while level < len(self._levels):
            if len(self._levels[level]) >= self._parts_before_compaction:
                merged = compact(self._store, only=self._levels[level], lost=self._lost)
                self._levels[level] = []
                if merged is not None:
                    self._file(merged, level + 1)
            level += 1

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(merge=kind is None)  # after an error: only what must be done
