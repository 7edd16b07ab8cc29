"""Of several takes of a scene one is its picture, whatever order the rows are in."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from consistory_ray.output.index.takes import chosen_rows, picture_ids

SCHEMA = pa.schema(
    {
        "asset_id": pa.string(),
        "status": pa.string(),
        "take": pa.int32(),
        "take_of": pa.string(),
        "score": pa.float64(),
    }
)


def row(picture: str, take: int = 1, score: float | None = None, status: str = "ok") -> dict[str, Any]:
    further = {"asset_id": f"{picture}.{take}", "take": take, "take_of": picture}
    first = {"asset_id": picture, "take": None, "take_of": None}
    return {**(further if take > 1 else first), "score": score, "status": status}


def chosen(*rows: dict[str, Any]) -> list[str]:
    found: list[str] = chosen_rows(pa.Table.from_pylist(list(rows), SCHEMA))["asset_id"].to_pylist()
    return found


def test_the_best_score_counts_and_of_equals_the_earlier_take() -> None:
    assert chosen(row("a", 1, 0.2), row("b", 1, 0.5), row("a", 2, 0.7), row("a", 3, 0.7)) == ["b", "a.2"]
    assert chosen(row("a", 1, 0.7), row("a", 2, 0.7)) == ["a"]


def test_what_nobody_scored_or_could_make_counts_only_where_there_is_nothing_else() -> None:
    assert chosen(row("a"), row("a", 2, -3.0)) == ["a.2"]
    assert chosen(row("a", status="failed"), row("a", 2, 0.1)) == ["a.2"]
    assert chosen(row("a", status="failed"), row("a", 2, status="failed")) == ["a"]
    assert chosen(row("a", 1, 0.9, "rejected"), row("a", 2, 0.1)) == ["a.2"]


def test_without_further_takes_all_rows_stay() -> None:
    assert chosen(row("a", score=0.1), row("b", status="failed"), row("c")) == ["a", "b", "c"]


takes = st.lists(
    st.builds(
        row,
        st.sampled_from("abc"),
        st.integers(1, 4),
        st.none() | st.sampled_from([0.0, 0.5, 0.5, 1.0]),
        st.sampled_from(["ok", "ok", "failed", "rejected"]),
    ),
    unique_by=lambda one: one["asset_id"],
    min_size=1,
)


@given(takes, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows: list[dict[str, Any]], random: Any) -> None:
    found = chosen(*rows)
    shuffled = random.sample(rows, len(rows))
    assert sorted(found) == sorted(chosen(*shuffled))
    table = pa.Table.from_pylist(rows, SCHEMA)
    assert len(found) == len(set(picture_ids(table).to_pylist())), "one row for each picture"
    best: dict[str, tuple[bool, float, int]] = {}
    for one in rows:
        picture, take = one["take_of"] or one["asset_id"], one["take"] or 1
        score = float("-inf") if one["score"] is None else one["score"]
        best[picture] = max(best.get(picture, (False, float("-inf"), -99)), (one["status"] == "ok", score, -take))
    assert sorted(found) == sorted(name if -take == 1 else f"{name}.{-take}" for name, (_, _, take) in best.items())
