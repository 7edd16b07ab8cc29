"""Pictures that got another name: moved with their pixels, their facts and their new names, and never over another."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from PIL import Image

from consistory_ray.errors import RunError
from consistory_ray.output.assets import encode_png, read_metadata
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.resume import resume
from consistory_ray.output.storage import OutputStore
from consistory_ray.output.verify import verify


@pytest.fixture
def rows(store: OutputStore, render: Any) -> list[IndexRow]:
    """Five indexed pictures."""
    return fill(store, render)


def fill(store: OutputStore, render: Any, *, made_at: datetime | None = None) -> list[IndexRow]:
    import dataclasses

    made = [dataclasses.replace(render(store, number), cache_sha256=f"{number:064x}", attempt=2) for number in range(5)]
    if made_at is not None:
        made = [dataclasses.replace(row, created_at=made_at) for row in made]
    with IndexWriter(store) as writer:
        writer.extend(made)
    return made


def plan_of(rows: list[IndexRow], names: Mapping[int, str]) -> dict[str, str]:
    """The plan, with some pictures in other places."""
    return {row.asset_id: f"images/{names.get(row.seed, f'cat/scene-{row.seed}')}.png" for row in rows}


def pixels(store: OutputStore, path: str) -> bytes:
    with Image.open(io.BytesIO(store.read(path))) as image:
        return bytes(image.tobytes())


def files(store: OutputStore) -> list[str]:
    return [file.path for file in store.list_files("images")]


def check(store: OutputStore, plan: Mapping[str, str], picture: Any) -> None:
    """Every asset has its row, its picture in its place, and the file is as if it had been rendered there."""
    found = {row["asset_id"]: row for row in read_index(store).to_pylist()}
    assert {asset_id: row["path"] for asset_id, row in found.items()} == plan
    for row in found.values():
        _, subject, name = row["path"].split("/")
        assert (row["subject"], f"{row['scene']}.png") == (subject, name)
        known = dict(read_metadata(store.read(row["path"])) or {})
        assert (known["subject"], known["scene"], known["asset_id"]) == (subject, row["scene"], row["asset_id"])
        del known["version"]
        assert store.read(row["path"]) == encode_png(picture(row["seed"]), known)
    assert verify(store).is_sound


def test_other_names(store: OutputStore, rows: list[IndexRow], picture: Any) -> None:
    """A scene and a whole subject; what is known of the pictures stays."""
    plan = plan_of(rows, {0: "cat/snow", 1: "dog/scene-1", 2: "dog/scene-2"})
    resumed = resume(store, plan)
    assert (resumed.done, resumed.moved, resumed.recovered, resumed.dropped) == (set(plan), 3, 0, 0)
    check(store, plan, picture)
    assert files(store) == sorted(plan.values()), "the old files are gone"
    for row in read_index(store).to_pylist():
        facts = (row["cache_sha256"], row["attempt"], row["worker"], row["seconds"])
        assert facts == (f"{row['seed']:064x}", 2, "worker-0", 1.5)
    again = resume(store, plan)
    assert (again.done, again.moved, again.dropped) == (set(plan), 0, 0)


def test_places_that_are_passed_on(store: OutputStore, rows: list[IndexRow], picture: Any) -> None:
    """Every picture takes the place of the next one."""
    plan = plan_of(rows, {number: f"cat/scene-{number + 1}" for number in range(5)})
    resumed = resume(store, plan)
    assert (resumed.done, resumed.moved) == (set(plan), 5)
    check(store, plan, picture)
    assert files(store) == sorted(plan.values())


def test_swapped_places_are_rendered_again(store: OutputStore, rows: list[IndexRow]) -> None:
    plan = plan_of(rows, {0: "cat/scene-1", 1: "cat/scene-0", 2: "cat/snow"})
    resumed = resume(store, plan)
    assert resumed.done == {row.asset_id for row in rows[2:]}
    assert (resumed.moved, resumed.dropped) == (1, 2)
    assert {row["asset_id"] for row in read_index(store).to_pylist()} == resumed.done
    assert verify(store).is_sound


def test_an_old_place_that_another_asset_wants(store: OutputStore, rows: list[IndexRow], picture: Any) -> None:
    """Its file stays until it is overwritten; in between no row speaks of it."""
    plan = plan_of(rows, {0: "cat/snow"})
    resumed = resume(store, plan | {"e" * 32: "images/cat/scene-0.png"})
    assert (resumed.done, resumed.moved) == (set(plan), 1)
    check(store, plan, picture)
    assert store.exists("images/cat/scene-0.png")


def test_a_new_place_that_another_asset_had(store: OutputStore, rows: list[IndexRow], picture: Any) -> None:
    """One that is no longer in the job loses its row before its file is overwritten."""
    plan = plan_of(rows[:4], {0: "cat/scene-4"})
    resumed = resume(store, plan)
    assert (resumed.done, resumed.moved, resumed.dropped) == (set(plan), 1, 1)
    check(store, plan, picture)


def test_capitals_alone_make_no_other_place(store: OutputStore, rows: list[IndexRow]) -> None:
    """Where they make no difference to the storage, deleting the old file would delete the new one."""
    resumed = resume(store, plan_of(rows, {0: "cat/Scene-0"}))
    assert (len(resumed.done), resumed.moved, resumed.dropped) == (4, 0, 1)


def test_a_file_that_is_not_what_was_indexed_is_not_moved(
    store: OutputStore, rows: list[IndexRow], parameters: Any, picture: Any
) -> None:
    whole = store.read("images/cat/scene-0.png")
    store.write_atomic("images/cat/scene-0.png", whole[:-30] + b"x" + whole[-29:])
    other = encode_png(picture(7), parameters(1))
    store.write_atomic("images/cat/scene-2.png", other.ljust(rows[2].size or 0)[: rows[2].size])
    plan = plan_of(rows, {0: "cat/snow", 1: "cat/scene-0", 2: "cat/moon"})
    resumed = resume(store, plan)
    assert resumed.done == {rows[number].asset_id for number in (1, 3, 4)}
    assert (resumed.moved, resumed.dropped) == (1, 2), "the place that a damaged file leaves is taken all the same"
    assert verify(store).is_sound


def test_clocks_that_go_wrong(local: OutputStore, render: Any, picture: Any) -> None:
    """The new rows count although the old ones claim to be of tomorrow."""
    made = fill(local, render, made_at=datetime.now(timezone.utc) + timedelta(days=1))
    plan = plan_of(made, {number: f"cat/scene-{number + 1}" for number in range(5)})
    assert resume(local, plan).moved == 5
    check(local, plan, picture)


def test_nothing_moves_once_the_output_is_lost(
    local: OutputStore, render: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write it is lost before; nothing is lost by that."""
    made = fill(local, render)
    plan = plan_of(made, {0: "cat/scene-1", 1: "cat/snow"})
    before = {file.path: local.read(file.path) for file in local.list_files()}
    for allowed in range(20):
        changes: list[str] = []
        with monkeypatch.context() as patch:
            for name in ("write_atomic", "create_exclusive", "delete"):
                _count(patch, name, changes)
            try:
                resume(local, plan, lost=Budget(changes, allowed))
                break
            except RunError:
                assert len(changes) == allowed
        assert verify(local).is_sound and len(read_index(local)) == 5
        for path in [file.path for file in local.list_files()]:
            local.delete(path)
        for path, data in before.items():
            local.write_atomic(path, data)
    assert allowed == 5, "two pictures, two rows, one deletion"


class Budget:
    """An output that is lost after so many changes."""

    def __init__(self, changes: list[str], allowed: int) -> None:
        self._changes, self._allowed = changes, allowed

    def __call__(self) -> str:
        return "another run" if len(self._changes) >= self._allowed else ""


def _count(patch: pytest.MonkeyPatch, name: str, changes: list[str]) -> None:
    call = getattr(OutputStore, name)

    def counted(self: OutputStore, path: str, *arguments: Any) -> Any:
        changes.append(path)
        return call(self, path, *arguments)

    patch.setattr(OutputStore, name, counted)
