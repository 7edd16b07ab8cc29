"""A table of prompts as a job: one row is one anchor or scene.

Only ``concept`` and ``prompt`` of the :data:`COLUMNS` are needed; an empty cell is the same as none.

Rows with one ``subject_id`` are one subject, and need the subject's columns only once. Without it, rows with equal
``concept``, ``style`` and ``subject`` are one.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from consistory_ray.errors import Problem
from consistory_ray.guards.problems import MAX_PROBLEMS, Loc, did_you_mean, path, shown
from consistory_ray.jobs.checks import MAX_PICTURES

COLUMNS = {
    "prompt": "The scene of an anchor or picture, in words; style and subject come before it.",
    "concept": "The word or words that name the subject, several separated by `;`; in Parquet it may be a list.",
    "subject_id": "A subject's id: rows with the same one are one subject.",
    "style": "First part of every prompt of the subject.",
    "subject": "Second part of every prompt of the subject.",
    "kind": "`anchor` or `scene`; a subject of which no row says that takes its first two rows as anchors.",
    "id": "File name of the picture, as in a job file; empty for anchors.",
    "seed": "Seed of the anchor or picture, as in a job file.",
    "count": "How many pictures, as in a job file; empty for anchors.",
    "negative_prompt": "What the picture should not show, in place of the settings' one.",
    "prompt_2": "What the second text encoder reads instead of the prompt.",
}
"""What each column of a table holds."""
MAX_TABLE_BYTES = 192 << 20
_BATCH = 512
_DELIMITERS = (",", ";", "\t", "|")
_HEADER_LOOKED_AT = 64 << 10
_LONGEST_NAME = 40
_SEP_LINE = re.compile(r"\ufeff?\"?sep=(.)\"?[,;\t|]*\r?\n", re.IGNORECASE)
_WHOLE = re.compile(r"([0-9]{1,19})(?:[.,]0*)?", re.ASCII)
_SUBJECT_COLUMNS = ("concept", "style", "subject")
_NUMBERS = ("seed", "count")
_NAMES = ("subject_id", "id")
_ENTRY_COLUMNS = ("prompt", "id", "seed", "count", "negative_prompt", "prompt_2")
_KNOWN_COLUMNS = frozenset(COLUMNS)
_DEFAULT_ANCHORS = 2

Row = Mapping[str, Any]
Table = tuple[Any, list[Problem], Callable[[Loc], str]]


def read_csv(text: str, delimiter: str | None = None) -> Table:
    """The data of a job, its problems, and where each part of it stands, from CSV with a header line.

    Args:
        text: cells separated by commas, semicolons, tabs or bars, whichever the header has.
        delimiter: what separates cells, if that is known.
    """
    first, skipped = 1, ""
    match = _SEP_LINE.match(text)  # written by Excel, for Excel
    if match:
        delimiter, skipped, first = match.group(1), match.group(0), 2
    stream = io.StringIO(text, newline="")
    stream.seek(len(skipped))
    try:
        header_cells, delimiter = _header(text[len(skipped) : len(skipped) + _HEADER_LOOKED_AT], delimiter)
        reader = csv.reader(stream, delimiter=delimiter)
        next(reader, None)
        header = _header_names(header_cells)
        problems = _header_problems(header)
        if problems:
            return None, problems, path
        return _Grouping("line", first + 1).run(_csv_rows(reader, header))
    except csv.Error as error:
        return None, [Problem(f"line {first}", "", f"the CSV is broken from here on: {error}")], path


def _header(text: str, delimiter: str | None) -> tuple[list[str], str]:
    """The first line's cells, and what separates them: that with which most of them are known columns."""
    found = [
        (next(csv.reader(io.StringIO(text, newline=""), delimiter=each), []), each)
        for each in ([delimiter] if delimiter else _DELIMITERS)
    ]
    return max(found, key=lambda item: sum(name in _KNOWN_COLUMNS for name in _header_names(item[0])))


def _header_names(names: Iterable[str]) -> list[str]:
    """Column names as they are compared: capitals, blanks and a byte order mark at their ends make no difference."""
    return [str(name).strip().strip("\ufeff").lower() for name in names]


def read_parquet(contents: Iterable[bytes]) -> Table:
    """The data of a job, its problems, and where each part of it stands, from one Parquet file or several parts."""
    import pyarrow as pa

    grouping = _Grouping("row", 0)
    problems: list[Problem] = []
    try:
        return grouping.run(_parquet_rows(contents, problems))
    except _Refused as error:
        return None, error.problems, path
    except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError, RecursionError) as error:
        return None, [Problem("the file", shown(str(error)), "this Parquet file is broken, write it again")], path


class _Refused(Exception):
    """Reading stops here."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__()
        self.problems = list(problems)


def _parquet_rows(contents: Iterable[bytes], problems: list[Problem]) -> Iterator[Row]:
    """Rows with the known columns only. Texts are read as dictionaries, so that one that repeats is there once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    decoded = rows = encoded = 0
    for content in contents:
        source = pa.BufferReader(content)
        meta = pq.read_metadata(source)
        encoded += sum(meta.row_group(index).total_byte_size for index in range(meta.num_row_groups))
        rows += meta.num_rows
        if rows > MAX_PICTURES or encoded > MAX_TABLE_BYTES:
            raise _too_large(f"{rows} rows, {encoded >> 20} MiB")
        schema = meta.schema.to_arrow_schema()
        header = _header_names(schema.names)
        if found := _header_problems(header):
            raise _Refused(*found)
        wanted = {name: written for name, written in zip(header, schema.names, strict=True) if name in _KNOWN_COLUMNS}
        odd = [
            Problem(f"column {shown(name)}", str(schema.field(name).type)[:60], "make it text or whole numbers")
            for name in wanted.values()
            if not _readable(schema.field(name).type)
        ]
        if odd:
            raise _Refused(*odd)
        texts = [name for name in wanted.values() if _is_text(schema.field(name).type)]
        source.seek(0)
        file = pq.ParquetFile(source, read_dictionary=texts)
        for batch in file.iter_batches(batch_size=_BATCH, columns=list(wanted.values()), use_threads=False):
            if batch.nbytes > MAX_TABLE_BYTES:
                raise _too_large(f"{batch.nbytes >> 20} MiB in {batch.num_rows} rows")
            columns: dict[str, list[Any]] = {}
            for name, written in wanted.items():
                columns[name], size = _values(batch.column(written))
                decoded += size
                if decoded > MAX_TABLE_BYTES:
                    raise _too_large(f"more than {MAX_TABLE_BYTES >> 20} MiB once it is unpacked")
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))


def _too_large(value: str) -> _Refused:
    fix = f"split the table, it may have {MAX_PICTURES} rows and {MAX_TABLE_BYTES >> 20} MiB at most"
    return _Refused(Problem("the file", value, fix))


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _readable(kind: Any) -> bool:
    """Whether cells of a type can be what a table holds: texts, numbers, nothing, and lists of texts."""
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        return _readable(kind.value_type) and not types.is_list(kind.value_type)
    return bool(
        _is_text(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_null(kind)
        or types.is_boolean(kind)
        or str(kind) == "string_view"
    )


def _values(column: Any) -> tuple[list[Any], int]:
    """A column's cells, and how many bytes they are, written out."""
    import pyarrow.types as types

    if types.is_dictionary(column.type) and _is_text(column.type.value_type):
        words = column.dictionary.to_pylist()
        sizes = [len(word or "") for word in words]
        places = column.indices.to_pylist()
        return (
            [None if place is None else words[place] for place in places],
            sum(sizes[place] for place in places if place is not None),
        )
    if column.nbytes > MAX_TABLE_BYTES:
        return [], column.nbytes
    return column.to_pylist(), column.nbytes


def _header_problems(names: list[str]) -> list[Problem]:
    """Of names in small letters. Columns of no meaning here are passed over unless they may be misspelt ones."""
    problems = [
        Problem(f"column {shown(name)}", "", f"remove or rename this column{hint}")
        for name in dict.fromkeys(names)
        if name not in _KNOWN_COLUMNS and name and (hint := _misspelt(name))
    ]
    problems += [
        Problem(f"column {shown(name)}", "", "this column occurs twice, keep one")
        for name in COLUMNS
        if names.count(name) > 1
    ]
    problems += [
        Problem(f'column "{name}"', "", f"this column is missing{_KNOWN}")
        for name in ("prompt", "concept")
        if name not in names
    ]
    return problems[:MAX_PROBLEMS]


def _misspelt(name: str) -> str:
    """A hint, if a column's name is nearly a known one: ``prompts``, ``Subject ID``, ``sed``."""
    squeezed = name.replace(" ", "_").replace("-", "_")
    if squeezed in _KNOWN_COLUMNS:
        return f', did you mean "{squeezed}"?'
    return did_you_mean(squeezed, COLUMNS) if len(name) <= _LONGEST_NAME else ""


_KNOWN = f", known are {', '.join(COLUMNS)}"


def _csv_rows(reader: Iterable[list[str]], header: list[str]) -> Iterator[Row]:
    known = [(index, name) for index, name in enumerate(header) if name in _KNOWN_COLUMNS]
    width = len(header)
    for cells in reader:
        row: dict[str, Any] = {name: cells[index] for index, name in known if index < len(cells)}
        if len(cells) > width and any(cell.strip() for cell in cells[width:]):
            row["too many cells"] = len(cells)
        for name in _NUMBERS:
            text = row.get(name, "").strip()
            match = _WHOLE.fullmatch(text)  # spreadsheets and pandas write 1.0 beside empty cells
            row[name] = int(match.group(1)) if match else text
        yield row


class _Grouping:
    """Collects rows into subjects and remembers which row each entry came from."""

    def __init__(self, unit: str, first: int) -> None:
        self._unit = unit
        self._first = first
        self._problems: list[Problem] = []
        self._subjects: dict[Any, dict[str, Any]] = {}
        self._rows: dict[Any, dict[str, list[int]]] = {}
        self._explicit: set[Any] = set()

    def run(self, rows: Iterable[Row]) -> Table:
        for number, row in enumerate(rows, self._first):
            if not any(value not in (None, "", []) for value in row.values()):
                continue
            if number - self._first >= MAX_PICTURES:
                self._problem(number, "", "", f"split the table, it may have {MAX_PICTURES} rows at most")
                break
            self._row(number, row)
        for key in self._subjects:
            if key not in self._explicit:
                self._split(key)
        places = [(self._rows[key]["anchors"], self._rows[key]["scenes"]) for key in self._subjects]

        def locate(loc: Loc) -> str:
            if len(loc) < 2 or loc[0] != "subjects" or not isinstance(loc[1], int):
                return path(loc)
            anchors, scenes = places[loc[1]]
            if len(loc) < 4 or not isinstance(loc[3], int) or loc[2] == "concept":
                column = {"id": "subject_id"}.get(str(loc[2]), str(loc[2])) if len(loc) > 2 else ""
                return self._where(min(anchors[:1] + scenes[:1]), column)
            return self._where(
                (anchors if loc[2] == "anchors" else scenes)[loc[3]], path(loc[4:]) if len(loc) > 4 else ""
            )

        return {"subjects": list(self._subjects.values())}, self._problems, locate

    def _row(self, number: int, row: Row) -> None:
        cells = {name: value for name in row if (value := _cell(name, row[name])) is not None}
        for unknown in sorted(cells.keys() - _KNOWN_COLUMNS):
            self._problem(number, "", shown(row[unknown]), f"{unknown}, put quotes around a cell with commas")
        name = cells.get("subject_id")
        key = ("", str(name)) if name is not None else tuple(str(cells.get(column)) for column in _SUBJECT_COLUMNS)
        if key not in self._subjects:
            self._subjects[key] = {"anchors": [], "scenes": []} | ({} if name is None else {"id": name})
            self._rows[key] = {"anchors": [], "scenes": []}
        subject = self._subjects[key]
        for column in sorted(cells.keys() & _SUBJECT_COLUMNS):
            if subject.setdefault(column, cells[column]) != cells[column]:
                fix = f"write the same in all rows of a subject, an earlier one has {shown(subject[column])}"
                self._problem(number, column, shown(cells[column]), fix)
        kind = cells.get("kind")
        if kind is not None:
            self._explicit.add(key)
        if kind not in (None, "anchor", "scene"):
            self._problem(number, "kind", shown(kind), 'write "anchor" or "scene"')
        for column in sorted(cells.keys() & {"id", "count"}) if kind == "anchor" else ():
            self._problem(number, column, shown(cells.pop(column)), "leave this empty for an anchor")
        part = "anchors" if kind == "anchor" else "scenes"
        subject[part].append({column: cells[column] for column in _ENTRY_COLUMNS if column in cells})
        self._rows[key][part].append(number)

    def _split(self, key: Any) -> None:
        """The first two rows become the anchors of a subject whose rows say nothing of kinds."""
        subject, places = self._subjects[key], self._rows[key]
        first = subject["scenes"][:_DEFAULT_ANCHORS]
        for entry, number in zip(first, places["scenes"], strict=False):
            for name in sorted(entry.keys() & {"id", "count"}):
                fix = (
                    "leave this empty, a subject's first two rows are its anchors unless the column kind says otherwise"
                )
                self._problem(number, name, shown(entry.pop(name)), fix)
        for part in (subject, places):
            part["anchors"], part["scenes"] = part["scenes"][:_DEFAULT_ANCHORS], part["scenes"][_DEFAULT_ANCHORS:]

    def _problem(self, number: int, column: str, value: str, fix: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(Problem(self._where(number, column), value, fix))

    def _where(self, number: int, column: str) -> str:
        return f"{self._unit} {number}, {column}" if column else f"{self._unit} {number}"


def _cell(name: str, value: Any) -> Any:
    """A cell's value in the form a job has it; None if it is empty."""
    if isinstance(value, str):
        value = value.strip()
        if name == "concept" and value:
            return [part.strip() for part in value.split(";")]
    elif isinstance(value, float) and name in _NUMBERS:  # numbers beside empty cells become these in some tools
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    elif isinstance(value, int) and name in _NAMES:
        return str(value)
    return None if value in ("", []) else value
