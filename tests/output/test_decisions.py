"""Decisions: nothing is lost whoever writes, merges or dies beside, and everybody reads the same from the same rows."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistory_ray.output.decisions import (
    Decision,
    DecisionReader,
    decided_rows,
    merge_decisions,
    next_take,
    read_decisions,
    standing,
    write_decisions,
)
from consistory_ray.output.index.takes import chosen_rows
from consistory_ray.output.storage import OutputStore, open_output

START = datetime(2026, 1, 1, tzinfo=timezone.utc)
SCHEMA = pa.schema(
    {
        "asset_id": pa.string(),
        "status": pa.string(),
        "take": pa.int32(),
        "take_of": pa.string(),
        "score": pa.float64(),
    }
)


def decide(picture: str, action: Any, looked_at: int = 1, *, at: int = 0, **more: Any) -> Decision:
    """What somebody decided about a take of a picture ``at`` so many seconds after the start."""
    if action == "reroll":
        more.setdefault("take", looked_at + 1)
    if action == "note":
        more.setdefault("note", "look at the ears")
    asset = picture if looked_at == 1 else f"{picture}.{looked_at}"
    when = START + timedelta(seconds=at)
    return Decision(picture, asset, "cat", "beach", action, more.pop("who", "ada"), at=when, **more)


decisions = st.builds(
    decide,
    st.sampled_from("abc"),
    st.sampled_from(["pick", "reject", "reroll", "note"]),
    st.integers(1, 4),
    at=st.integers(0, 6),  # often at once
    who=st.sampled_from(["ada", "bob"]),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Decision]:
    """Decisions, and some that take others back."""
    made = draw(st.lists(decisions, max_size=12))
    for _ in range(draw(st.integers(0, 4)) if made else 0):
        target = draw(st.sampled_from(made))
        made.append(decide(target.picture_id, "undo", at=draw(st.integers(0, 6)), undoes=target.decision_id))
    return made


def test_the_last_one_counts() -> None:
    pick, other, reject = decide("a", "pick", at=1), decide("a", "pick", 2, at=2), decide("a", "reject", 2, at=3)
    assert standing([pick])["a"].picked == "a"
    assert standing([other, pick])["a"].picked == "a.2", "by time, not by place"
    found = standing([pick, other, reject])["a"]
    assert found.picked is None and found.rejected == {"a.2"} and found.last == reject
    assert standing([reject, decide("a", "pick", 2, at=4)])["a"].rejected == frozenset()


def test_rerolls_and_notes_add_up() -> None:
    found = standing([decide("a", "reroll", at=1), decide("a", "reroll", 2, at=2), decide("a", "note", at=0)])["a"]
    assert found.wanted_takes == {2, 3} and [one.note for one in found.notes] == ["look at the ears"]
    assert next_take([1, 2], found) == 4 and next_take([1, 7], found) == 8 and next_take([], None) == 2


def test_two_people_who_ask_at_once_get_one_take() -> None:
    ada, bob = (decide("a", "reroll", take=next_take([1], None), who=who) for who in ("ada", "bob"))
    assert ada.decision_id != bob.decision_id and standing([ada, bob])["a"].wanted_takes == {2}


@given(histories(), st.randoms())
def test_order_and_repetition_mean_nothing(made: list[Decision], chance: random.Random) -> None:
    other = made + chance.sample(made, len(made) // 2)
    chance.shuffle(other)
    assert standing(other) == standing(made)


@given(histories(), decisions, st.integers(0, 6))
def test_what_was_taken_back_never_was(made: list[Decision], one: Decision, at: int) -> None:
    made = [other for other in made if one.decision_id not in (other.decision_id, other.undoes)]
    undo = decide(one.picture_id, "undo", at=at, undoes=one.decision_id)
    assert standing([*made, one, undo]) == standing(made)


def test_only_what_belongs_to_the_picture_is_taken_back() -> None:
    pick = decide("a", "pick", at=1)
    undo = decide("a", "undo", at=2, undoes=pick.decision_id)
    assert standing([pick, decide("b", "undo", undoes=pick.decision_id)])["a"].picked == "a"
    assert standing([pick, undo, decide("a", "undo", at=3, undoes=undo.decision_id)]) == {}, "an undo is final"


rows = st.lists(
    st.builds(
        lambda picture, take, score, status: {
            "asset_id": picture if take == 1 else f"{picture}.{take}",
            "take": take if take > 1 else None,
            "take_of": picture if take > 1 else None,
            "score": score,
            "status": status,
        },
        st.sampled_from("abc"),
        st.integers(1, 4),
        st.none() | st.sampled_from([0.0, 0.5, 1.0]),
        st.sampled_from(["ok", "ok", "failed"]),
    ),
    unique_by=lambda one: one["asset_id"],
    max_size=12,
)


@given(rows, histories())
def test_pictures_after_decisions(given_rows: list[dict[str, Any]], made: list[Decision]) -> None:
    table, stands = pa.Table.from_pylist(given_rows, SCHEMA), standing(made)
    found = {row["take_of"] or row["asset_id"]: row for row in decided_rows(table, stands).to_pylist()}
    kept: dict[str, set[str]] = {}
    for row in given_rows:
        picture = row["take_of"] or row["asset_id"]
        if picture not in stands or row["asset_id"] not in stands[picture].rejected:
            kept.setdefault(picture, set()).add(row["asset_id"])
    assert found.keys() == kept.keys(), "a scene has a picture unless all of its takes were rejected"
    assert all(row["asset_id"] in kept[picture] for picture, row in found.items())
    picked = {one.picked for one in stands.values()}
    for row in given_rows:
        if row["asset_id"] in picked and row["status"] == "ok":
            assert found[row["take_of"] or row["asset_id"]]["asset_id"] == row["asset_id"]


@given(rows)
def test_without_decisions_scores_choose(given_rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(given_rows, SCHEMA)
    assert decided_rows(table, {}).equals(chosen_rows(table))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": "burn"}, "action"),
        ({"action": "reroll", "take": 1}, "reroll"),
        ({"action": "pick", "take": 2}, "reroll"),
        ({"action": "note", "note": " "}, "note"),
        ({"action": "note", "note": "x" * 2001}, "note"),
        ({"action": "note", "note": "\ud800"}, "surrogates"),
        ({"action": "undo"}, "undo"),
        ({"who": "ada\nbob"}, "who"),
        ({"who": " "}, "who"),
        ({"picture_id": ""}, "picture"),
        ({"at": datetime(2026, 1, 1)}, "time zone"),
    ],
)
def test_what_is_no_decision(changes: dict[str, Any], message: str) -> None:
    whole: dict[str, Any] = {
        **{"picture_id": "a", "asset_id": "a", "subject": "cat", "scene": "beach"},
        **{"action": "pick", "who": "ada", "at": START},
    }
    with pytest.raises(ValueError, match=message):
        Decision(**whole | changes)


def test_what_is_written_is_read(store: OutputStore) -> None:
    assert read_decisions(store) == ([], {}) and write_decisions(store, []) == ""
    made = [decide("a", "note", at=1, note="schön\n✓"), decide("a", "reroll", at=2), decide("b", "pick", at=3)]
    made.append(decide("b", "undo", at=4, undoes=made[2].decision_id))
    assert write_decisions(store, made[:2]) == write_decisions(store, made[:2])
    write_decisions(store, made[1:])
    assert read_decisions(store) == (made, {})
    assert merge_decisions(store, at_least=3) is None
    assert merge_decisions(store, at_least=2) and len(store.list_files("decisions")) == 1
    assert read_decisions(store) == (made, {})
    assert not store.list_files("index") and not store.list_files("lease")


def write_and_merge_at_once(store: OutputStore, at_once: Callable[..., None]) -> None:
    def write(number: int) -> None:
        for second in range(3):
            write_decisions(store, [decide("a", "note", at=second, who=f"person {number}")])
            merge_decisions(store, at_least=6)

    at_once(write)
    found, broken = read_decisions(store)
    assert len(found) == 24 and not broken


def test_eight_people_at_once_lose_nothing(local: OutputStore, at_once: Callable[..., None]) -> None:
    write_and_merge_at_once(local, at_once)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_eight_people_at_once_lose_nothing_on_s3(store: OutputStore, at_once: Callable[..., None]) -> None:
    write_and_merge_at_once(store, at_once)


def test_a_part_that_is_not_what_it_was_is_told_and_not_used(local: OutputStore) -> None:
    kept = write_decisions(local, [decide("a", "pick")])
    cut = write_decisions(local, [decide("b", "pick")])
    local.write_atomic(cut, local.read(cut)[:-9])
    local.write_atomic("decisions/part-nonsense.parquet", b"nothing")
    local.write_atomic("decisions/README.txt", b"not a part")
    found, broken = read_decisions(local)
    assert [one.picture_id for one in found] == ["a"] and broken.keys() == {cut, "decisions/part-nonsense.parquet"}
    assert "its content" in broken[cut]
    assert merge_decisions(local, at_least=1) is None, "there is one part that can be used"
    write_decisions(local, [decide("c", "pick")])
    assert merge_decisions(local, at_least=1) and not local.exists(kept) and local.exists(cut)


def forged(store: OutputStore, change: Callable[[dict[str, Any]], Any], version: bytes = b"1") -> None:
    """A part with the right name whose one row was changed."""
    path = write_decisions(store, [decide("a", "pick")])
    table = pq.read_table(pa.BufferReader(store.read(path)))
    rows = table.to_pylist()
    store.delete(path)
    change(rows[0])
    sink = pa.BufferOutputStream()
    nullable = pa.schema([item.with_nullable(True) for item in table.schema])
    made = pa.Table.from_pylist(rows, nullable.with_metadata({b"consistory_decisions_version": version}))
    pq.write_table(made, sink)
    data = sink.getvalue().to_pybytes()
    store.write_atomic(f"decisions/part-{hashlib.sha256(data).hexdigest()[:32]}.parquet", data)


@pytest.mark.parametrize(
    ("change", "version", "reason"),
    [
        (lambda row: row.update(who="bob"), b"1", "id"),
        (lambda row: row.update(action="burn"), b"1", "action"),
        (lambda row: row.update(note="n" * 9999), b"1", "note"),
        (lambda row: row.update(who=None), b"1", "null|who"),
        (lambda row: None, b"2", "version 2"),
    ],
)
def test_a_part_that_somebody_made_up(local: OutputStore, change: Any, version: bytes, reason: str) -> None:
    forged(local, change, version)
    found, broken = read_decisions(local)
    assert not found
    (told,) = broken.values()
    assert any(word in told for word in reason.split("|")), told


def test_a_reader_fetches_parts_once(local: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    inner = OutputStore.read
    monkeypatch.setattr(OutputStore, "read", lambda self, path: reads.append(path) or inner(self, path))
    reader = DecisionReader(local)
    for number in range(3):
        write_decisions(local, [decide("a", "note", at=number)])
        assert len(reader.read()[0]) == number + 1
    assert len(reads) == len(set(reads)) == 3


class Killed(BaseException):
    """What a process sees of its own end: nothing."""


@dataclasses.dataclass(frozen=True)
class Stepped(OutputStore):
    """A store that asks what happens before each of its steps."""

    before: Callable[[str], None] = dataclasses.field(default=lambda step: None, kw_only=True)

    def read(self, path: str) -> bytes:
        self.before("read")
        return super().read(path)

    def write_atomic(self, path: str, data: Any) -> None:
        self.before("write")
        super().write_atomic(path, data)

    def delete(self, path: str) -> None:
        self.before("delete")
        super().delete(path)


EVENTS = st.lists(st.sampled_from(["go on", "go on", "go on", "write", "merge", "die"]), min_size=40, max_size=40)


@given(EVENTS, st.integers(1, 4), st.uuids())
def test_nothing_is_lost_whoever_merges_and_dies_in_between(events: list[str], parts: int, place: Any) -> None:
    """Merges within merges, writers in between, and deaths at any step: every decision is read in the end."""
    plain = open_output(f"memory://decisions-{place}")
    written: set[str] = set()
    coming, numbers = itertools.chain(events, itertools.repeat("go on")), itertools.count()

    def write() -> None:
        one = decide("a", "note", at=next(numbers))
        write_decisions(plain, [one])
        written.add(one.decision_id)

    def merge(depth: int) -> None:
        def between(step: str) -> None:
            event = next(coming)
            if event == "die":
                raise Killed
            if event == "write":
                write()
            if event == "merge" and depth < 2:
                merge(depth + 1)

        with suppress(Killed):
            merge_decisions(Stepped(plain.fs, plain.root, before=between), at_least=2)

    for _ in range(parts):
        write()
    merge(0)
    found, broken = read_decisions(plain)
    assert {one.decision_id for one in found} == written and not broken
    plain.fs.rm(plain.root, recursive=True)
