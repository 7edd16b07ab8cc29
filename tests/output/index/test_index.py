"""The index: what a row promises, which rows count, and parts that come, merge and break."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consistory_ray.errors import InputError, RunError, StorageError
from consistory_ray.output.index import parts as index_parts
from consistory_ray.output.index import writer as index_writer
from consistory_ray.output.index.index import compact, current_index, read_index
from consistory_ray.output.index.parts import CorruptIndexError, list_parts, write_part
from consistory_ray.output.index.rows import SCHEMA, IndexRow, latest_rows, rows_to_table, table_to_rows
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.storage import OutputStore

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def row(asset: int = 0, *, ok: bool = True, time: int = 0, attempt: int = 1, path: int | None = None) -> IndexRow:
    """A row with the facts that the merge looks at."""
    facts: dict[str, Any] = {"status": "failed", "error": f"error at {time}"}
    if ok:
        facts = {"path": f"images/{asset if path is None else path}.png", "size": 1, "sha256": f"{asset:064x}"}
        facts |= {"width": 8, "height": 8}
    return IndexRow(
        f"asset-{asset}", "scene", "cat", f"scene-{asset}", "a cat", asset, (1, 2), "s", "m", "f",
        attempt=attempt, created_at=START + timedelta(seconds=time), **facts,
    )  # fmt: skip


def done(store: OutputStore) -> set[str]:
    """Ids of the assets whose pictures are there."""
    table = read_index(store)
    return set(table.filter(pc.equal(table["status"], "ok"))["asset_id"].to_pylist())


def slow_latest(rows: Sequence[IndexRow]) -> list[IndexRow]:
    """The rule of :func:`latest_rows`, word by word."""
    known: dict[str, IndexRow] = {}
    for one in sorted(rows, key=lambda one: (one.created_at, one.attempt, one.asset_id, one.status, one.path or "")):
        before = known.get(one.asset_id)
        if one.status == "ok":
            known = {key: other for key, other in known.items() if other.path != one.path}
            known[one.asset_id] = one
        elif before is None or before.status == "failed":
            known[one.asset_id] = one
    return sorted(known.values(), key=lambda one: (one.subject, one.kind, one.scene, one.asset_id))


ROWS = st.builds(
    row,
    asset=st.integers(0, 3),
    ok=st.booleans(),
    time=st.integers(0, 4),
    attempt=st.integers(1, 3),
    path=st.integers(0, 2),
)


@settings(deadline=None)
@given(st.lists(ROWS, max_size=14), st.randoms(use_true_random=False))
def test_latest_rows_follow_the_rule_in_any_order(rows: list[IndexRow], shuffler: random.Random) -> None:
    expected = slow_latest(rows)
    shuffler.shuffle(rows)
    merged = latest_rows(rows_to_table(rows))
    assert table_to_rows(merged) == expected
    assert latest_rows(merged).equals(merged)
    assert merged.schema.equals(SCHEMA, check_metadata=True)


@settings(deadline=None, max_examples=300)
@given(st.lists(ROWS, max_size=14), st.integers(0, 14))
def test_merging_old_rows_first_changes_nothing(rows: list[IndexRow], cut: int) -> None:
    rows.sort(key=lambda one: one.created_at)
    rows = [dataclasses.replace(one, created_at=START + timedelta(minutes=place)) for place, one in enumerate(rows)]
    old = latest_rows(rows_to_table(rows[:cut]))
    both = pa.concat_tables([old, rows_to_table(rows[cut:])])
    assert latest_rows(both).equals(latest_rows(rows_to_table(rows)))


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=14))
def test_no_picture_is_lost_and_none_is_claimed_twice(rows: list[IndexRow]) -> None:
    merged = table_to_rows(latest_rows(rows_to_table(rows)))
    assert len({one.asset_id for one in merged}) == len(merged)
    paths = [one.path for one in merged if one.status == "ok"]
    assert len(set(paths)) == len(paths)
    newest_ok = max((one for one in rows if one.status == "ok"), default=None, key=lambda one: one.created_at)
    if newest_ok is not None:
        assert any(one.created_at == newest_ok.created_at and one.status == "ok" for one in merged)


def test_ok_beats_a_later_failure_and_a_retry_beats_a_failure() -> None:
    rows = [row(1, time=1), row(1, ok=False, time=9, attempt=3), row(2, ok=False, time=1), row(2, time=2)]
    table = rows_to_table(rows)
    assert [one.status for one in table_to_rows(latest_rows(table))] == ["ok", "ok"]


def test_a_picture_that_was_overwritten_by_another_asset_is_gone() -> None:
    rows = [row(1, ok=False, time=0), row(1, time=1, path=7), row(2, time=2, path=7)]
    assert table_to_rows(latest_rows(rows_to_table(rows))) == rows[2:]
    rows.append(row(1, ok=False, time=3))
    assert table_to_rows(latest_rows(rows_to_table(rows))) == [rows[3], rows[2]], "and may fail the next time"


def test_rows_refuse_what_they_cannot_mean() -> None:
    good = row()
    for change, message in [
        ({"path": None}, "an? ok|ok needs"),
        ({"sha256": None}, "ok needs"),
        ({"status": "failed"}, "needs an error"),
        ({"status": "failed", "error": "it broke"}, "has no path"),
        ({"status": "rejected"}, "needs an error"),
        ({"status": "maybe"}, "must be ok, failed or rejected"),
        ({"seed": 2**63}, "64 bits"),
        ({"created_at": datetime(2026, 1, 1)}, "time zone"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(good, **change)


def test_long_errors_and_broken_text_fit_a_row(store: OutputStore, parameters: Any) -> None:
    with IndexWriter(store) as writer:
        writer.add(IndexRow.failed(parameters(1, prompt="lone \ud800 surrogate"), "x" * 5000))
        writer.add(IndexRow.failed(parameters(2), "  "))
    first, second = sorted(table_to_rows(read_index(store)), key=lambda one: one.scene)
    assert first.prompt == "lone ? surrogate"
    assert first.error is not None
    assert len(first.error) == 2000
    assert second.error == "unknown error"


def test_nothing_there_yet(store: OutputStore) -> None:
    assert read_index(store).schema.equals(SCHEMA, check_metadata=True)
    assert len(read_index(store)) == 0
    assert done(store) == set()
    assert compact(store) is None
    with IndexWriter(store):
        pass
    assert store.list_files() == []


def test_write_and_read(store: OutputStore, render: Any, parameters: Any) -> None:
    rows = [render(store, number) for number in range(3)]
    with IndexWriter(store) as writer:
        writer.extend(rows)
        writer.add(IndexRow.failed(parameters(9), "it broke", attempt=2))
    table = read_index(store)
    assert table_to_rows(table)[:3] == rows
    assert done(store) == {one.asset_id for one in rows}
    wanted = {rows[1].asset_id, parameters(9)["asset_id"], "unknown"}
    assert set(current_index(store, wanted)["asset_id"].to_pylist()) == wanted - {"unknown"}


def test_parts_are_committed_by_count_and_time(store: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = IndexWriter(store, rows_per_part=3, seconds_per_part=5.0)
    clock = 100.0
    monkeypatch.setattr(index_writer.time, "monotonic", lambda: clock)
    writer.add(row(1))
    writer.add(row(2))
    assert (writer.pending, len(list_parts(store))) == (2, 0)
    writer.add(row(3))
    assert (writer.pending, len(list_parts(store))) == (0, 1)
    writer.add(row(4))
    clock = 104.0
    writer.tick()
    assert writer.pending == 1
    clock = 105.5
    writer.tick()
    assert (writer.pending, len(list_parts(store))) == (0, 2)
    writer.add(row(5))
    writer.close()
    assert len(list_parts(store)) == 1
    assert len(read_index(store)) == 5


def test_many_parts_are_merged_on_the_way(local: OutputStore) -> None:
    write_part(local, rows_to_table([row(1000)]))
    with IndexWriter(local, rows_per_part=1, parts_before_compaction=5) as writer:
        for number in range(130):
            writer.add(row(number % 60, time=number))
            assert len(list_parts(local)) <= 1 + 3 * 5
        assert read_index(local)["created_at"].to_pylist().count(START) == 1, "the part that was there before"
        assert len(list_parts(local)) == 1 + 2, "125 and 5 rows"
    assert len(read_index(local)) == 61 and len(list_parts(local)) == 1


def test_rows_are_merged_seldom(local: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is merged on the way does not grow with what is there, or a long run would merge more than it renders."""
    merged: list[int] = []
    encode = index_parts.encode_part

    def counting(table: pa.Table) -> bytes:
        merged.append(len(table))
        return encode(table)

    monkeypatch.setattr(index_parts, "encode_part", counting)
    writer = IndexWriter(local, rows_per_part=2, parts_before_compaction=10)
    for number in range(300):
        writer.add(row(number, time=number))
    assert sum(merged) <= 4 * 300


def test_older_parts_lack_columns_that_came_later(local: OutputStore) -> None:
    table = rows_to_table([row(1), row(2, ok=False)])
    old = table.drop_columns([name for name in ("fault", "cache_sha256", "worker") if name in table.column_names])
    write_part(local, old)
    assert read_index(local).schema.equals(SCHEMA)
    assert read_index(local)["worker"].to_pylist() == [None, None]
    compact(local)
    assert len(read_index(local)) == 2


def test_a_failed_commit_keeps_its_rows(local: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = IndexWriter(local, rows_per_part=2)
    writer.add(row(1))
    with monkeypatch.context() as patch:

        def fail(path: str, data: bytes) -> bool:
            raise StorageError("503 slow down")

        patch.setattr(OutputStore, "create_exclusive", lambda self, path, data: fail(path, data))
        with pytest.raises(StorageError):
            writer.add(row(2))
        assert writer.pending == 2
    writer.close()
    assert done(local) == {"asset-1", "asset-2"}


class Holder:
    """Holds an output until something that is watched happens to its store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, until: str = "") -> None:
        self.reason = ""
        self.calls: list[tuple[str, str]] = []
        for name in ("create_exclusive", "write_atomic", "delete"):
            monkeypatch.setattr(OutputStore, name, self._watched(name, getattr(OutputStore, name), name == until))

    def _watched(self, name: str, call: Any, loses: bool) -> Any:
        def watched(store: OutputStore, path: str, *arguments: Any) -> Any:
            self.calls.append((name, path))
            result = call(store, path, *arguments)
            if loses:
                self.reason = "another run has taken over"
            return result

        return watched

    def lost(self) -> str:
        return self.reason


def test_a_writer_that_lost_the_output_touches_nothing(store: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Holder(monkeypatch)
    writer = IndexWriter(store, rows_per_part=2, parts_before_compaction=3, lost=holder.lost)
    for number in range(4):
        writer.add(row(number))
    writer.add(row(4))
    parts = list_parts(store)
    holder.reason, holder.calls = "another run has taken over", []
    with pytest.raises(RunError, match=r"2 rows were not committed .*: another run has taken over"):
        writer.add(row(5))
    for action in (writer.flush, writer.tick, writer.close):
        with pytest.raises(RunError, match="another run has taken over"):
            action()
        assert writer.pending == 2, "rows stay in memory"
    assert (holder.calls, list_parts(store)) == ([], parts)
    with pytest.raises(RunError, match="not merged: another run"):
        compact(store, drop=["asset-1"], lost=holder.lost)
    assert (holder.calls, list_parts(store)) == ([], parts)
    holder.reason = ""
    writer.close()
    assert len(read_index(store)) == 6


def test_a_lease_lost_between_a_merged_part_and_the_deletions(
    local: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = IndexWriter(local, rows_per_part=1)
    for number in range(3):
        writer.add(row(number))
    parts = set(list_parts(local))
    holder = Holder(monkeypatch, until="create_exclusive")
    with pytest.raises(RunError, match="was not deleted: another run"):
        compact(local, lost=holder.lost)
    assert [name for name, _ in holder.calls] == ["create_exclusive"]
    assert parts < set(list_parts(local)) and len(read_index(local)) == 3


def test_a_lease_lost_while_a_full_level_is_merged(local: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Holder(monkeypatch, until="create_exclusive")
    writer = IndexWriter(local, rows_per_part=1, parts_before_compaction=1, lost=holder.lost)
    with pytest.raises(RunError, match="not merged: another run"):
        writer.add(row(1))
    assert [name for name, _ in holder.calls] == ["create_exclusive"]
    assert done(local) == {"asset-1"}


def test_merged_parts_are_deleted_side_by_side(local: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred requests one after the other would hold up whoever merges."""
    writer = IndexWriter(local, rows_per_part=1, parts_before_compaction=1000)
    for number in range(40):
        writer.add(row(number))
    together = threading.Barrier(8, timeout=200)
    delete = OutputStore.delete

    def slow(self: OutputStore, path: str) -> None:
        together.wait()  # breaks unless eight deletions are under way at the same time
        delete(self, path)

    monkeypatch.setattr(OutputStore, "delete", slow)
    writer.close()
    assert len(list_parts(local)) == 1 and len(read_index(local)) == 40


def test_several_threads_share_a_writer(local: OutputStore) -> None:
    with IndexWriter(local, rows_per_part=7, parts_before_compaction=5) as writer:
        threads = [
            threading.Thread(target=lambda first=first: writer.extend(row(first + n) for n in range(50)))
            for first in (0, 100, 200)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(read_index(local)) == 150


def test_the_same_rows_make_the_same_part(store: OutputStore) -> None:
    table = rows_to_table([row(1), row(2)])
    assert write_part(store, table) == write_part(store, table)
    assert len(list_parts(store)) == 1
    merged = compact(store)
    assert compact(store) == merged, "merging a single merged part must not delete it"
    assert len(read_index(store)) == 2


def test_dropped_rows_are_gone_and_the_rest_stays(store: OutputStore) -> None:
    write_part(store, rows_to_table([row(1), row(2)]))
    write_part(store, rows_to_table([row(3)]))
    compact(store, drop={"asset-2", "asset-unknown"})
    assert done(store) == {"asset-1", "asset-3"}
    assert compact(store, drop={"asset-1", "asset-3"}) is None
    assert list_parts(store) == []


def test_parts_are_compressed_sorted_and_described(local: OutputStore) -> None:
    with IndexWriter(local) as writer:
        writer.extend(row(number) for number in (3, 1, 2))
    file = pq.ParquetFile(Path(local.root, list_parts(local)[0]))
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.read()["scene"].to_pylist() == ["scene-1", "scene-2", "scene-3"]
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == SCHEMA.names
    assert features["seed"] == {"_type": "Value", "dtype": "int64"}
    assert features["anchor_seeds"] == {"_type": "List", "feature": {"_type": "Value", "dtype": "int64"}}
    assert features["created_at"]["dtype"] == "timestamp[us, tz=UTC]"
    assert file.schema_arrow.metadata[b"consistory_index_version"] == b"1"


def test_one_line_in_three_libraries(local: OutputStore) -> None:
    with IndexWriter(local) as writer:
        writer.extend([row(1), row(2), row(3, ok=False)])
    folder = f"{local.root}/index"
    Path(folder, ".part-x.parquet.0123456789abcdef0123456789abcdef.tmp").write_bytes(b"half a part")
    assert len(pq.read_table(folder)) == 3
    assert list(pd.read_parquet(folder)["status"]) == ["ok", "ok", "failed"]
    assert duckdb.sql(f"select count(*) from '{folder}/*.parquet' where status = 'ok'").fetchall() == [(2,)]


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -20])
def test_a_truncated_part_is_named(store: OutputStore, keep: int) -> None:
    good = write_part(store, rows_to_table([row(1)]))
    broken = write_part(store, rows_to_table([row(2)]))
    store.write_atomic(broken, store.read(broken)[:keep])
    for action in (read_index, compact):
        with pytest.raises(CorruptIndexError, match=broken) as caught:
            action(store)
        assert caught.value.parts == (broken,)
        assert good not in str(caught.value)
    assert list_parts(store) == sorted([good, broken]), "nothing was deleted"


def test_foreign_and_newer_parts_are_refused(local: OutputStore) -> None:
    path = Path(local.root, "index/part-foreign.parquet")
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"asset_id": ["x"]}), path)
    with pytest.raises(CorruptIndexError, match=r"part-foreign.parquet \(not a part of this index\)"):
        read_index(local)
    newer = rows_to_table([row(1)]).replace_schema_metadata({b"consistory_index_version": b"2"})
    pq.write_table(newer, path)
    with pytest.raises(InputError, match="newer version"):
        read_index(local)


def test_a_reader_outlives_a_merge(store: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        write_part(store, rows_to_table([row(number)]))
    read = OutputStore.read
    merged = []

    def merge_first(self: OutputStore, path: str) -> bytes:
        if not merged:
            merged.append(True)
            merged.append(compact(store))
        return read(self, path)

    monkeypatch.setattr(OutputStore, "read", merge_first)
    assert len(read_index(store)) == 4
    assert merged[1] in list_parts(store)
