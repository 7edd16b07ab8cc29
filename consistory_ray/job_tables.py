"""A table of prompts as a job: one row is one anchor or scene.

Columns (only ``concept`` and ``prompt`` are needed; an empty cell is the same as none):

* ``prompt``: the scene in words;
* ``concept``: of the subject, several separated by ``;``, or a list in Parquet;
* ``subject_id``, ``style``, ``subject``: of the subject, as in a job file;
* ``kind``: ``anchor`` or ``scene``. A subject that names none takes its first two rows as anchors;
* ``id``, ``seed``, ``count``: of the scene, as in a job file.

Rows with one ``subject_id`` are one subject, and need the subject's columns only once. Without it, rows with equal
``concept``, ``style`` and ``subject`` are one.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from consistory_ray.errors import Problem
from consistory_ray.job_checks import MAX_PICTURES
from consistory_ray.job_problems import MAX_PROBLEMS, Loc, did_you_mean, path, shown

COLUMNS = ("prompt", "concept", "subject_id", "style", "subject", "kind", "id", "seed", "count")
MAX_TABLE_BYTES = 1 << 30
_SUBJECT_COLUMNS = ("concept", "style", "subject")
_NUMBERS = ("seed", "count")
_NAMES = ("subject_id", "id")
_ENTRY_COLUMNS = ("prompt", "id", "seed", "count")
_KNOWN_COLUMNS = frozenset(COLUMNS)
_DEFAULT_ANCHORS = 2

Row = Mapping[str, Any]
Table = tuple[Any, list[Problem], Callable[[Loc], str]]


def read_csv(text: str) -> Table:
    """The data of a job, its problems, and where each part of it stands, from CSV with a header line."""
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        problems = _header_problems(header)
        if problems:
            return None, problems, path
        return _Grouping("line", 2).run(_csv_rows(reader, header))
    except csv.Error as error:
        return None, [Problem(f"line {reader.line_num}", "", f"the CSV is broken here: {error}")], path


def read_parquet(content: bytes) -> Table:
    """The data of a job, its problems, and where each part of it stands, from Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(content))
        problems = _header_problems(file.schema_arrow.names)
        meta = file.metadata
        size = sum(meta.row_group(index).total_byte_size for index in range(meta.num_row_groups))
        if meta.num_rows > MAX_PICTURES or size > MAX_TABLE_BYTES:
            value = f"{meta.num_rows} rows, {size >> 20} MiB"
            fix = f"split the table, it may have {MAX_PICTURES} rows and {MAX_TABLE_BYTES >> 20} MiB at most"
            problems.append(Problem("the file", value, fix))
        if problems:
            return None, problems, path
        batches = file.iter_batches(batch_size=8192)
        return _Grouping("row", 0).run(row for batch in batches for row in batch.to_pylist())
    except (pa.ArrowException, OSError, ValueError) as error:
        return None, [Problem("the file", shown(str(error)), "this Parquet file is broken, write it again")], path


def _header_problems(names: list[str]) -> list[Problem]:
    problems = [
        Problem(f"column {shown(name)}", "", f"remove this column{did_you_mean(name, COLUMNS) or _KNOWN}")
        for name in [name for name in names if name not in COLUMNS][:MAX_PROBLEMS]
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


_KNOWN = f", known are {', '.join(COLUMNS)}"


def _csv_rows(reader: Iterable[list[str]], header: list[str]) -> Iterator[Row]:
    for cells in reader:
        row: dict[str, Any] = dict(zip(header, cells, strict=False))
        if len(cells) > len(header):
            row["too many cells"] = len(cells)
        for name in _NUMBERS:
            text = row.get(name, "").strip()
            row[name] = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text
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
