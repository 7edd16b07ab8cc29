"""What is exported: the take that counts, what reviewers have decided, what filters leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from consistory_ray.errors import InputError
from consistory_ray.export.selection import Selection, Wanted, select
from consistory_ray.output.decisions import Decision, write_decisions
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.storage import OutputStore

Add = Callable[..., IndexRow]


def chosen(selection: Selection) -> list[tuple[str, str, int]]:
    return [(source.subject, source.scene, source.take) for source in selection.sources]


def decide(store: OutputStore, row: IndexRow, *actions: str) -> None:
    told: Sequence[Any] = actions
    write_decisions(
        store,
        [Decision(row.take_of or row.asset_id, row.asset_id, row.subject, row.scene, action, "ada") for action in told],
    )


@pytest.fixture
def takes(output: OutputStore, add: Add) -> dict[str, IndexRow]:
    """Two scenes; of the first, three takes of which the second is the best."""
    made = {
        f"snow {take}": add(output, "cat", "snow", take=take, score=score)
        for take, score in ((1, 0.5), (2, 0.9), (3, 0.7))
    }
    return made | {"beach 1": add(output, "cat", "beach")}


def test_the_take_that_counts(output: OutputStore, takes: dict[str, IndexRow]) -> None:
    assert chosen(select(output, Wanted())) == [("cat", "beach", 1), ("cat", "snow", 2)]
    assert chosen(select(output, Wanted(all_takes=True)))[1:] == [("cat", "snow", take) for take in (1, 2, 3)]


def test_what_was_picked_wins_and_what_was_rejected_stays_away(output: OutputStore, takes: dict[str, IndexRow]) -> None:
    decide(output, takes["snow 3"], "pick")
    assert chosen(select(output, Wanted())) == [("cat", "beach", 1), ("cat", "snow", 3)]
    assert chosen(select(output, Wanted(picked=True))) == [("cat", "snow", 3)]
    decide(output, takes["snow 3"], "reject")
    decide(output, takes["beach 1"], "reject")
    found = select(output, Wanted())
    assert chosen(found) == [("cat", "snow", 2)] and found.left_out == {"rejected by a reviewer": 1}
    assert chosen(select(output, Wanted(all_takes=True))) == [("cat", "snow", 1), ("cat", "snow", 2)]
    with pytest.raises(InputError, match="--picked"):
        select(output, Wanted(picked=True))


def test_decisions_that_cannot_be_read_stop_an_export(output: OutputStore, takes: dict[str, IndexRow]) -> None:
    decide(output, takes["beach 1"], "reject")
    (part,) = output.list_files("decisions")
    output.write_atomic(part.path, b"damaged")
    with pytest.raises(InputError, match=r"cannot be read\n.*decisions/"):
        select(output, Wanted())


def test_filters(output: OutputStore, add: Add) -> None:
    for subject in ("cat-1", "cat-2", "dragon"):
        for scene in ("beach", "snow"):
            add(output, subject, scene)
    add(output, "dragon", "anchor-0", kind="anchor", masked=False)
    add(output, "dragon", "rain", status="rejected")
    assert chosen(select(output, Wanted(subjects=("cat-*",), scenes=("snow",)))) == [
        ("cat-1", "snow", 1),
        ("cat-2", "snow", 1),
    ]
    found = select(output, Wanted(subjects=("dragon",), anchors=True))
    assert [source.kind for source in found.sources] == ["anchor", "scene", "scene"]
    assert found.left_out == {"rejected": 1}
    with pytest.raises(InputError, match="--subject") as caught:
        select(output, Wanted(subjects=("dragon", "dog")))
    assert [problem.value for problem in caught.value.problems] == ["dog"] and "cat-1" in caught.value.problems[0].fix
    with pytest.raises(InputError, match="nothing to export"):
        select(output, Wanted(scenes=("rain",)))


def test_an_empty_output(output: OutputStore) -> None:
    with pytest.raises(InputError, match="nothing was rendered there"):
        select(output, Wanted())
