"""Tables as spreadsheets, pandas and Spark write them."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consistory_ray.errors import JobError
from consistory_ray.jobs.job import load_job

TABLE = 'Prompt,CONCEPT,subject,seed\nat home,cat,a cat,1.0\n"outside, today",cat,a cat,\n"at\nsea",cat,a cat,3.0\n'
SCENES = [("at sea", 3)]


def scenes(path: Path) -> list[tuple[str, int | None]]:
    (subject,) = load_job(str(path)).subjects
    return [(scene.prompt, scene.seed) for scene in subject.scenes]


def around(before: str, after: str) -> bytes:
    """The table with something put around each of its lines."""
    lines = other(",").replace("at\nsea", "at sea").splitlines()
    return "".join(f"{before}{line}{after}\n" for line in lines).encode()


def other(delimiter: str) -> str:
    return TABLE.replace('"outside, today"', "outside").replace(",", delimiter)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", TABLE.encode()),
        ("a.csv", other(";").encode()),
        ("a.csv", other("\t").encode()),
        ("a.csv", other("|").encode()),
        ("a.tsv", other("\t").encode()),
        ("a.csv", ("sep=;\r\n" + other(";").replace("\n", "\r\n")).encode("utf-8-sig")),
        ("a.csv", other("\t").encode("utf-16")),
        ("a.csv", around("", ",,")),
        ("a.csv", around(",", "")),
        ("a.csv", around("", ",").replace(b"seed,", b"seed,Unnamed: 0")),
        ("a.csv", around("x,", "").replace(b"x,Prompt", b"Notes,Prompt")),
        ("a.csv.gz", gzip.compress(TABLE[:40].encode()) + gzip.compress(TABLE[40:].encode())),
    ],
)  # fmt: skip
def test_a_table_is_read_as_it_was_saved(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert scenes(tmp_path / name) == SCENES


def test_parquet_is_read_as_pandas_and_spark_write_it(tmp_path: Path) -> None:
    columns = {"Prompt": ["at home", "outside", "at sea"], "concept": ["cat"] * 3, "Subject": ["a cat"] * 3}
    columns |= {"seed": [1.0, None, 3.0], "__index_level_0__": [0, 1, 2], "notes": ["x"] * 3}
    table = pa.table(columns).append_column("when", pa.array([2**62] * 3, pa.timestamp("us")))
    pq.write_table(table, tmp_path / "a.parquet")
    assert scenes(tmp_path / "a.parquet") == SCENES
    (folder := tmp_path / "spark.parquet").mkdir()
    pq.write_table(table.slice(0, 2), folder / "part-0.snappy.parquet")
    pq.write_table(table.slice(2), folder / "part-1.snappy.parquet")
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-0.parquet.crc"):
        (folder / name).write_bytes(b"")
    assert scenes(folder) == SCENES


@pytest.mark.parametrize(
    "kind", [pa.timestamp("us"), pa.date64(), pa.duration("ns"), pa.time64("us"), pa.decimal128(9)]
)
def test_columns_of_odd_types_are_told(tmp_path: Path, kind: pa.DataType) -> None:
    odd = (
        pa.array([None, None, None], kind)
        if kind == pa.decimal128(9)
        else pa.array([2**53] * 3).cast(pa.int64()).view(kind)
    )
    pq.write_table(pa.table({"prompt": ["a cat"] * 3, "concept": ["cat"] * 3, "seed": odd}), tmp_path / "a.parquet")
    with pytest.raises(JobError, match='column "seed"'):
        load_job(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["prompts", "sed", "Subject ID", "subject-id", "kinds"])
def test_a_column_that_may_be_misspelt_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_text(TABLE.replace("Prompt,", f"{name},Prompt,").replace("\n", "\nx,"))
    with pytest.raises(JobError, match="did you mean"):
        load_job(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("content", [gzip.compress(TABLE.encode()), b"{"], ids=["packed", "broken"])
def test_standard_input_is_a_job(content: bytes) -> None:
    command = [sys.executable, "-m", "consistory_ray.cli", "validate", "-"]
    ended = subprocess.run(command, input=content, capture_output=True, timeout=120, check=False)
    assert ended.returncode == (2 if len(content) < 20 else 0), ended.stderr
    assert b"Traceback" not in ended.stderr
