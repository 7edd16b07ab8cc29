"""Killed at any point of the writes beside a run's own: a resume's repairs, the lease, anchor caches and their end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from consistory_ray.engine.workers.anchor_store import load_cache, load_source
from consistory_ray.errors import JobError
from consistory_ray.jobs.job import parse_job
from consistory_ray.output.assets import read_metadata
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.parts import list_parts, read_parts
from consistory_ray.output.index.rows import latest_rows
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.lease.record import generations, look
from consistory_ray.output.resume import resume
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.output.verify import verify
from consistory_ray.plan.plan import make_plan

Killer = Callable[[str], list[str]]


@pytest.fixture(autouse=True)
def _no_syncing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill, unlike a power cut, undoes nothing; and this is quicker."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def rows_of(store: OutputStore, skip: list[str] | None = None) -> dict[str, Any]:
    """The rows that count, by asset id."""
    return {row["asset_id"]: row for row in latest_rows(read_parts(store, skip=skip or [])[0]).to_pylist()}


def holds(store: OutputStore, row: dict[str, Any]) -> bool:
    """Whether a row's file is there as the row says."""
    return store.exists(row["path"]) and hashlib.sha256(store.read(row["path"])).hexdigest() == row["sha256"]


def test_resuming_after_an_edit(scenario: ModuleType, kill_at_every_step: Killer) -> None:
    """Of two rows, one's file is gone, and another asset is about to take the other one's place. At each crash point
    both rows are there or neither; the one whose place is taken is gone before that happens, so that no row ever speaks
    of a file that holds something else; and the row of the picture that is sound is there. After recovery each planned
    asset has one row and its own picture, and nothing else has."""
    crashes = kill_at_every_step("settle")
    assert len(crashes) > 40, "the scenario no longer passes its crash points"
    gone, replaced, kept = (scenario.parameters(number)["asset_id"] for number in (1, 0, 2))
    seen = set()
    for crash in crashes:
        store = open_output(crash)
        rows = rows_of(store)
        assert (gone in rows) == (replaced in rows)
        assert all(holds(store, row) for asset_id, row in rows.items() if asset_id != gone)
        assert kept in rows
        seen.add((gone in rows, scenario.EDITED["asset_id"] in rows))

        scenario.settle(crash)
        rows = rows_of(store)
        assert set(rows) == {scenario.EDITED["asset_id"], kept}
        assert all(holds(store, row) for row in rows.values())
        assert verify(store).is_sound
    assert seen == {(True, False), (False, False), (False, True)}


def test_moving_pictures_that_have_other_names(scenario: ModuleType, kill_at_every_step: Killer) -> None:
    """At each crash point every asset has one row, whose file is there, is its own, and says the same names as the row:
    nothing is lost and nothing has to be rendered again. After recovery each is in its new place; a kill may leave the
    file of an old place behind, without a row."""
    crashes = kill_at_every_step("move")
    assert len(crashes) > 20, "the scenario no longer passes its crash points"
    plan, before = scenario.renamed_plan(), scenario.plan()
    places = set()
    for crash in crashes:
        store = open_output(crash)
        rows = rows_of(store)
        assert set(rows) == set(plan) and all(is_its_own(store, row) for row in rows.values())
        places.add(tuple(row["path"] == plan[asset_id] for asset_id, row in rows.items()))

        assert resume(store, plan).done == set(plan)
        rows = rows_of(store)
        assert {asset_id: row["path"] for asset_id, row in rows.items()} == plan
        assert all(is_its_own(store, row) for row in rows.values())
        left = {file.path for file in store.list_files("images")} - set(plan.values())
        assert left <= set(before.values())
    assert len(places) == 3, "none, the last of the row, and the one that takes its place"


def is_its_own(store: OutputStore, row: dict[str, Any]) -> bool:
    """Whether a row's file is as the row says, and says so itself."""
    known = read_metadata(store.read(row["path"])) or {}
    names = ("asset_id", "subject", "scene", "prompt", "seed")
    return holds(store, row) and all(known[name] == row[name] for name in names)


def test_setting_a_broken_part_aside(scenario: ModuleType, kill_at_every_step: Killer) -> None:
    """At each crash point the broken part is in its place or in ``damaged``, or in both, as it was; the rows of the
    others are there. After recovery every picture has its row, and the index can be read."""
    crashes = kill_at_every_step("set-aside")
    assert len(crashes) > 15, "the scenario no longer passes its crash points"
    broken = next(path for path in list_parts(open_output(crashes[0])) if not _is_whole(crashes[0], path))
    data = open_output(crashes[0]).read(broken)
    for crash in crashes:
        store = open_output(crash)
        places = [path for path in (broken, f"damaged/{broken}") if store.exists(path)]
        assert places and all(store.read(path) == data for path in places)
        rows = rows_of(store, [broken])
        assert len(rows) >= scenario.ASSETS - 1 and all(holds(store, row) for row in rows.values())

        scenario.take_up(crash)
        assert store.read(f"damaged/{broken}") == data
        assert len(read_index(store)) == scenario.ASSETS
        assert verify(store).is_sound


def _is_whole(folder: str, path: str) -> bool:
    return open_output(folder).read(path).endswith(b"PAR1")


def test_the_lease(scenario: ModuleType, kill_at_every_step: Killer) -> None:
    """At each crash point there is a lease file that counts, it can be understood, and it is the released one of before
    or that of the killed holder; the number never goes back. Another run takes over at once, since the process is gone,
    and tidies up whatever is left."""

    def waits(message: str) -> None:
        raise AssertionError(message)

    crashes = kill_at_every_step("lease")
    assert len(crashes) > 25, "the scenario no longer passes its crash points"
    owners = []
    for crash in crashes:
        store = open_output(crash)
        seen = look(store)
        assert seen.record is not None
        assert (seen.generation, seen.record.owner) in {(2, "the second"), (3, "the third")}
        assert seen.generation == 3 or seen.record.released
        owners.append(seen.record.owner)

        lease = Lease.acquire(store, "the next", on_wait=waits)
        assert generations(store) == [seen.generation + 1]
        assert lease.renew()
        lease.release()
    assert owners == sorted(owners), "the second, then the third"


@pytest.mark.parametrize("again", [False, True])
def test_an_anchor_cache(scenario: ModuleType, kill_at_every_step: Killer, again: bool) -> None:
    """At each crash point the cache loads whole or not at all, be it the first one or the one that replaces it: never
    one without its checksum, never one that differs from it. A job that takes the subject up again gets the cache that
    ``subject.json`` names by its checksum, or is refused. Saved again, it can be used in both ways."""
    wanted = scenario.CACHES[again]
    crashes = kill_at_every_step("cache-again" if again else "cache")
    assert len(crashes) > 20, "the scenario no longer passes its crash points"
    path = scenario.anchored_plan().subjects[0].cache_path
    for crash in crashes:
        store = open_output(crash)
        found = load_cache(store, path)
        if found.buffer is not None:
            assert found.buffer.tobytes() in scenario.CACHES
            assert store.exists(f"{path}.sha256")
        used = taken_up(crash)
        assert used is None or used in scenario.CACHES

        scenario.save(crash, wanted)
        loaded = load_cache(store, path)
        assert loaded.buffer is not None and loaded.buffer.tobytes() == wanted
        assert taken_up(crash) == wanted


def taken_up(folder: str) -> bytes | None:
    """What a later job gets of the stored subject, as a worker decides it; None where it is refused."""
    job = {"name": "later", "model": "fake", "subjects": [{"from": f"{folder}/anchors/cat", "scenes": ["elsewhere"]}]}
    try:
        source = make_plan(parse_job(job)).subjects[0].sources[0]
    except JobError:
        return None
    assert source is not None
    found = load_source(source.url)
    return found.buffer.tobytes() if found.buffer is not None and found.sha256 == source.sha256 else None


def test_clearing_anchors(scenario: ModuleType, kill_at_every_step: Killer) -> None:
    """At each crash point no row speaks of a file that is gone, the scene has its row, and the cache loads whole or not
    at all. Cleared again, no anchor, no row of one and no cache is left, and the scene is as it was."""
    crashes = kill_at_every_step("clear")
    assert len(crashes) > 15, "the scenario no longer passes its crash points"
    plan = scenario.anchored_plan()
    scenes = {asset.asset_id for asset in plan.subjects[0].scenes}
    for crash in crashes:
        store = open_output(crash)
        rows = rows_of(store)
        assert scenes <= set(rows) and all(holds(store, row) for row in rows.values())
        loaded = load_cache(store, plan.subjects[0].cache_path)
        assert loaded.buffer is None or loaded.buffer.tobytes() == scenario.CACHES[0]

        scenario.clear(crash)
        rows = rows_of(store)
        assert set(rows) == scenes and all(holds(store, row) for row in rows.values())
        store.sweep_temporaries(older_than_seconds=0)
        assert [file.path for file in store.list_files("anchors")] == ["anchors/cat/subject.json"]
        assert verify(store).is_sound
