"""Index parts: Parquet files named by their content, and how they are read when anybody may have written them.

Writers only ever add parts. A part that is cut off, changed or put there by hand is told, never used.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from consistory_ray.errors import InputError, Problem, StorageError
from consistory_ray.output.index.rows import COLUMNS, SCHEMA, SCHEMA_VERSION, VERSION_KEY, unsound_rows
from consistory_ray.output.storage import MissingFileError, OutputStore, UnfitFileError

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


def write_part(store: OutputStore, table: pa.Table) -> str:
    """Add a part; returns its path. The same rows give the same part."""
    data = encode_part(table)
    path = part_name(data)
    if not store.create_exclusive(path, data):
        reason = "its content is not what its name says"
        raise CorruptIndexError(f"{store.url}/{path} is damaged ({reason}): render again", {path: reason})
    return path
