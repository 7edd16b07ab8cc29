"""Which takes are asked for: whatever order they come in, and however often a run ends in between."""

from __future__ import annotations

import statistics
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistory_ray.quality.gate import Bar, Gate, Verdict, Wanted

SUBJECTS = {"cat": ("a", "b", "c"), "dog": ("d", "e")}
PICTURES = [picture for pictures in SUBJECTS.values() for picture in pictures]


def test_a_threshold_asks_one_take_at_a_time_until_one_passes() -> None:
    gate = Gate(Bar(threshold=0.5, max_takes=3), SUBJECTS)
    assert gate.begin() == []
    assert gate.came("a", 1, 0.6) == [] and gate.verdict("a") is Verdict.PASSED
    assert gate.came("b", 1, 0.2) == [Wanted("b", 2)], "without waiting for the others of its subject"
    assert gate.came("b", 2, 0.1) == [Wanted("b", 3)] and gate.verdict("b") is Verdict.OPEN
    assert gate.came("b", 3, 0.5) == [] and gate.verdict("b") is Verdict.PASSED and gate.best("b") == (3, 0.5)


def test_what_never_passes_is_short_and_its_best_take_stays() -> None:
    gate = Gate(Bar(threshold=0.9, max_takes=2), {"cat": ("a",)})
    gate.came("a", 1, 0.4)
    assert list(gate.short()) == []
    assert gate.came("a", 2, 0.4) == [] and gate.best("a") == (1, 0.4), "of equals the earlier one"
    assert list(gate.short()) == ["a"] and gate.takes("a") == 2


def test_a_median_waits_for_all_first_takes_of_the_subject() -> None:
    gate = Gate(Bar(within=0.1, max_takes=2), SUBJECTS)
    assert gate.came("a", 1, 0.3) == [] and gate.bar_of("a") is None
    assert gate.came("b", 1, 0.8) == []
    assert gate.came("c", 1, 0.9) == [Wanted("a", 2)] and gate.bar_of("b") == pytest.approx(0.7)
    assert gate.came("a", 2, 0.1) == [] and gate.best("a") == (1, 0.3), "further takes do not move the bar"
    assert gate.bar_of("b") == pytest.approx(0.7) and list(gate.short()) == ["a"]


def test_a_take_that_was_given_up_holds_its_picture_and_not_the_others() -> None:
    gate = Gate(Bar(within=0.0, max_takes=3), {"cat": ("a", "b", "c")})
    gate.came("a", 1, 0.1)
    gate.came("b", 1, 0.5)
    assert gate.failed("c", 1) == [Wanted("a", 2)], "the median is of those that came"
    assert gate.failed("a", 2) == [] and gate.verdict("a") is Verdict.OPEN and gate.best("a") == (1, 0.1)
    assert list(gate.short()) == []


def test_takes_that_are_made_anyway_are_waited_for() -> None:
    gate = Gate(Bar(threshold=0.5, max_takes=4), {"cat": ("a", "b")}, due={"a": [2], "b": [2, 7]})
    assert gate.came("a", 1, 0.1) == [] and gate.verdict("a") is Verdict.OPEN
    assert gate.came("a", 2, 0.2) == [Wanted("a", 3)]
    assert gate.came("b", 7, 0.1) == gate.came("b", 2, 0.6) == gate.came("b", 1, 0.2) == []
    assert gate.verdict("b") is Verdict.PASSED and gate.best("b") == (2, 0.6)
    nearly = Gate(Bar(threshold=0.5, max_takes=1), {"cat": ("a",)}, due={"a": [2]})
    nearly.came("a", 1, 0.1)
    assert list(nearly.short()) == [], "not before all of them have come"
    nearly.came("a", 2, 0.1)
    assert list(nearly.short()) == ["a"]


def test_takes_that_will_be_looked_at_again_are_waited_for() -> None:
    gate = Gate(Bar(threshold=0.5, max_takes=3), {"cat": ("a",)})
    gate.coming("a", 1)
    gate.coming("a", 2)
    assert gate.begin() == [] and gate.came("a", 1, 0.1) == [], "the second one is there"
    assert gate.came("a", 2, 0.1) == [Wanted("a", 3)]


def test_what_people_have_settled_is_asked_for_no_more_and_still_counts_for_others() -> None:
    gate = Gate(Bar(within=0.0, max_takes=3), {"cat": ("a", "b", "c")}, settled={"a"})
    gate.came("a", 1, 0.1)
    gate.came("b", 1, 0.2)
    assert gate.came("c", 1, 0.3) == [] and gate.bar_of("b") == pytest.approx(0.2)
    assert gate.verdict("a") is Verdict.SETTLED and list(gate.short()) == []


def test_edits_go_on_from_the_takes_that_are_there() -> None:
    def rerun(bar: Bar) -> list[Wanted]:
        gate = Gate(bar, {"cat": ("a",)})
        gate.known("a", 1, 0.2)
        gate.known("a", 2, 0.6)
        return gate.begin()

    assert rerun(Bar(threshold=0.6, max_takes=2)) == []
    assert rerun(Bar(threshold=0.7, max_takes=2)) == [], "the budget is spent"
    assert rerun(Bar(threshold=0.7, max_takes=4)) == [Wanted("a", 3)], "a larger one goes on"
    assert rerun(Bar(threshold=0.1, max_takes=1)) == [] == rerun(Bar(threshold=0.6, max_takes=1))


def test_a_retry_asks_for_nothing_else() -> None:
    gate = Gate(Bar(threshold=0.9), {"cat": ("a", "b")}, only={"b"})
    gate.known("a", 1, 0.1)
    gate.known("b", 1, 0.1)
    assert gate.begin() == [Wanted("b", 2)]


def test_a_lost_take_is_made_again_before_a_new_one() -> None:
    gate = Gate(Bar(threshold=0.9, max_takes=4), {"cat": ("a",)})
    gate.known("a", 1, 0.1)
    gate.known("a", 3, 0.2)
    assert gate.begin() == [Wanted("a", 2)] and gate.came("a", 2, 0.3) == [Wanted("a", 4)]


def scores(picture: str, take: int, seed: int) -> float:
    """A number from 0 to 1 that depends on these alone; few values, so that there are ties."""
    return zlib.crc32(f"{picture} {take} {seed}".encode()) % 11 / 10


def settled(bar: Bar, seed: int) -> dict[str, tuple[int, tuple[int, float]]]:
    """What an undisturbed run comes to, computed without the gate: takes made, and the best one, by picture."""
    found = {}
    for pictures in SUBJECTS.values():
        firsts = [scores(one, 1, seed) for one in pictures]
        level = bar.threshold if bar.threshold is not None else statistics.median(firsts) - (bar.within or 0)
        for one in pictures:
            made = [scores(one, 1, seed)]
            while max(made) < level and len(made) < bar.max_takes:
                made.append(scores(one, len(made) + 1, seed))
            best = max(range(len(made)), key=lambda number: (made[number], -number))
            found[one] = (len(made), (best + 1, made[best]))
    return found


bars = st.builds(
    lambda kind, value, takes: Bar(**{kind: value}, max_takes=takes),
    st.sampled_from(["threshold", "within"]),
    st.integers(0, 11).map(lambda number: number / 10),
    st.integers(1, 4),
)


@given(bars, st.integers(0, 500), st.data())
def test_every_take_is_made_once_whatever_comes_when_and_the_best_is_kept(
    bar: Bar, seed: int, data: st.DataObject
) -> None:
    """Completions in any order, runs that end anywhere, edits of the bar in between: what is stored counts."""
    stored: dict[tuple[str, int], float] = {}
    made: list[tuple[str, int]] = []
    plans = [*data.draw(st.lists(bars, max_size=2)), bar]
    for number, current in enumerate(plans):
        for last in (False, True):
            gate = Gate(current, SUBJECTS)
            for (picture, take), score in stored.items():
                gate.known(picture, take, score)
            open_takes = [(picture, 1) for picture in PICTURES if (picture, 1) not in stored]
            open_takes += [tuple(wanted) for wanted in gate.begin()]  # type: ignore[misc]
            steps = 10_000 if last and number == len(plans) - 1 else data.draw(st.integers(0, 12))
            while open_takes and steps:
                picture, take = open_takes.pop(data.draw(st.integers(0, len(open_takes) - 1)))
                assert (picture, take) not in stored, "a take that is there was asked for"
                stored[picture, take] = scores(picture, take, seed)
                made.append((picture, take))
                open_takes += [tuple(wanted) for wanted in gate.came(picture, take, stored[picture, take])]  # type: ignore[misc]
                assert len(set(open_takes)) == len(open_takes)
                steps -= 1
    assert len(set(made)) == len(made), "a take was made twice"
    for picture in PICTURES:
        count = sum(one == picture for one, _ in stored)
        assert {take for one, take in stored if one == picture} == set(range(1, count + 1))
        best = max((score, -take) for (one, take), score in stored.items() if one == picture)
        assert gate.best(picture) == (-best[1], best[0])
        assert gate.verdict(picture) is not Verdict.OPEN
    if len(plans) == 1:
        assert {one: (gate.takes(one), gate.best(one)) for one in PICTURES} == settled(bar, seed)
