"""Atlases: what a reader of the format finds in them, and that they are written once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consistory_ray.errors import AssetError, InputError, RunInterrupted
from consistory_ray.export.atlas import Sprite, animations_of
from consistory_ray.export.atlas_files import AtlasRules
from consistory_ray.export.packing import PageRules
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.pictures.provenance import TRAINED, source_type
from tests.export.layouts import blob, keep, read_atlas, write_atlases


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return open_output(tmp_path / "export")


@pytest.fixture
def sprites(store: OutputStore) -> list[Sprite]:
    return [keep(store, f"scene-{n}", blob(n), ending="webp" if n % 3 == 0 else "png") for n in range(12)]


def picture(store: OutputStore, sprite: Sprite) -> Image.Image:
    return Image.open(io.BytesIO(store.read(sprite.path))).convert("RGBA")


def same(image: Image.Image, other: Image.Image) -> bool:
    return image.size == other.size and image.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    "rules",
    [
        AtlasRules(),
        AtlasRules(PageRules(size=64)),
        AtlasRules(PageRules(size=64, rotate=True), format="webp"),
        AtlasRules(PageRules(size=200, power_of_two=False, rotate=True, padding=0, extrude=0)),
        AtlasRules(PageRules("grid", 128)),
        AtlasRules(PageRules("grid", 1000, 5, 3, power_of_two=False)),
    ],
)
def test_a_reader_gets_every_sprite_back(store: OutputStore, sprites: list[Sprite], rules: AtlasRules) -> None:
    result = write_atlases(store, {"moss": sprites, "empty": []}, rules)
    found = read_atlas(store, "moss")
    assert found.keys() == {sprite.name for sprite in sprites}
    for sprite in sprites:
        assert same(found[sprite.name], picture(store, sprite)), sprite.name
    assert {file.path for file in store.list_files("atlas")} == set(result.files) == set(result.written)
    assert all(source_type(store.read(path)) == TRAINED for path in result.files if path not in result.pages)
    if rules.pages.size == 64:
        assert len(result.pages) > 1
    if rules.pages.rotate:
        texts = [json.loads(store.read(path)) for path in result.pages]
        assert any(frame["rotated"] for values in texts for frame in values["frames"].values())


def test_borders_are_repeated_around_a_frame(store: OutputStore) -> None:
    image = Image.fromarray(np.random.default_rng(3).integers(1, 256, (9, 7, 4), np.uint8))
    write_atlases(store, {"one": [keep(store, "a", image)]}, AtlasRules(PageRules(extrude=2, power_of_two=False)))
    page = np.asarray(Image.open(io.BytesIO(store.read("atlas/one.png"))))
    expected = np.pad(np.asarray(image), ((2, 2), (2, 2), (0, 0)), mode="edge")
    assert np.array_equal(page, expected)


def test_a_sprite_stands_where_it_was_in_its_picture(store: OutputStore) -> None:
    whole = blob(5, (60, 40))
    left, upper, right, lower = whole.getchannel("A").getbbox() or (0, 0, 0, 0)
    cut = whole.crop((left - 1, upper, right, lower))
    cut_out = keep(store, "cut", cut, source_size=(60, 40), offset=(left - 1, upper))
    outside = keep(store, "out", cut, source_size=(60, 40), offset=(50, upper))
    for arrangement in ("packed", "grid"):
        write_atlases(store, {"one": [cut_out, outside]}, AtlasRules(PageRules(arrangement)))  # type: ignore[arg-type]
        found = read_atlas(store, "one")
        assert same(found["cut"], whole), arrangement
        assert same(found["out"], cut), "what does not fit into the picture stands for itself"
    rounded = keep(store, "rounded", cut, source_size=(60, 40), offset=(60 - cut.width + 1, -1))
    write_atlases(store, {"two": [rounded]}, AtlasRules(PageRules("grid")))
    assert read_atlas(store, "two")["rounded"].getchannel("A").getbbox() == (60 - cut.width + 1, 0, 60, cut.height)
    frame = json.loads(store.read("atlas/one.json"))["frames"]["cut"]["frame"]
    assert (frame["w"], frame["h"]) == (60, 40), "cells of a grid are whole pictures"


def test_an_empty_sprite_is_one_pixel(store: OutputStore) -> None:
    write_atlases(store, {"one": [keep(store, "nothing", Image.new("RGBA", (32, 32)))]})
    assert not np.asarray(read_atlas(store, "one")["nothing"]).any()
    frame = json.loads(store.read("atlas/one.json"))["frames"]["nothing"]
    assert (frame["frame"]["w"], frame["sourceSize"]["w"]) == (1, 32)


def test_nothing_is_written_again(store: OutputStore, sprites: list[Sprite]) -> None:
    rules = AtlasRules(PageRules(size=64))
    first = write_atlases(store, {"moss": sprites}, rules)
    again = write_atlases(store, {"moss": sprites[::-1]}, rules)
    assert (again.files, again.written) == (first.files, ())

    elsewhere = open_output(Path(store.root).parent / "other")
    for sprite in sprites:
        elsewhere.write_atomic(sprite.path, store.read(sprite.path))
    write_atlases(elsewhere, {"moss": sprites}, rules)
    assert all(elsewhere.read(path) == store.read(path) for path in first.files), "byte for byte"


def test_only_pages_that_changed_are_drawn(
    store: OutputStore, sprites: list[Sprite], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atlases(store, {"moss": sprites[:6], "cat": sprites[6:]})
    changed = keep(store, "scene-7", blob(70))
    read: list[str] = []
    whole = OutputStore.read
    monkeypatch.setattr(OutputStore, "read", lambda self, path: read.append(path) or whole(self, path))
    write_atlases(store, {"moss": sprites[:6], "cat": sprites[6:]})
    assert not any(path.startswith("scene") for path in read), "sprites are not even measured"
    result = write_atlases(store, {"moss": sprites[:6], "cat": [*sprites[6:7], changed, *sprites[8:]]})
    assert result.written == ("atlas/cat.png", "atlas/cat.json")
    assert {path for path in read if path.startswith("scene")} == {sprite.path for sprite in sprites[6:]}
    assert same(read_atlas(store, "cat")["scene-7"], blob(70))
    result = write_atlases(store, {"moss": sprites[:6]}, AtlasRules(pivot=(0.5, 1.0)))
    assert result.written == ("atlas/moss.json",)
    assert json.loads(store.read("atlas/moss.json"))["frames"]["scene-1"]["pivot"] == {"x": 0.5, "y": 1.0}


@pytest.mark.parametrize("damage", ["cut", "gone", "other", "no json", "foreign json"])
def test_damage_is_made_good(store: OutputStore, sprites: list[Sprite], damage: str) -> None:
    result = write_atlases(store, {"moss": sprites})
    data = {path: store.read(path) for path in result.files}
    page = data["atlas/moss.png"]
    if damage == "gone":
        store.delete("atlas/moss.png")
    elif damage == "no json":
        store.delete("atlas/moss.json")
    elif damage == "foreign json":
        store.write_atomic(
            "atlas/moss.json",
            b'{"frames": {"a": 1, "b": {"source": {"seen": [1], "size": "x"}}}, '
            b'"meta": {"app": "consistory-ray", "image": "../../x"}}',
        )
    else:
        store.write_atomic("atlas/moss.png", page[:-9] if damage == "cut" else page[:-9] + b"123456789")
    write_atlases(store, {"moss": sprites})
    assert {path: store.read(path) for path in data} == data


def test_a_stop_between_pages_is_resumed(store: OutputStore, sprites: list[Sprite]) -> None:
    rules = AtlasRules(PageRules(size=64))
    answers = iter([False, True])
    with pytest.raises(RunInterrupted):
        write_atlases(store, {"moss": sprites}, rules, should_stop=lambda: next(answers))
    told: list[tuple[int, int]] = []
    result = write_atlases(store, {"moss": sprites}, rules, on_progress=lambda *numbers: told.append(numbers))
    assert len(result.written) == len(result.files) - 2, "the first page was there"
    assert told == [(n + 1, len(result.pages)) for n in range(len(result.pages))]
    assert read_atlas(store, "moss").keys() == {sprite.name for sprite in sprites}


def test_what_cannot_be_laid_out(store: OutputStore, sprites: list[Sprite]) -> None:
    large = keep(store, "large", blob(1, (200, 200)).resize((300, 300)))
    with pytest.raises(InputError, match="large does not fit on a page"):
        write_atlases(store, {"a": sprites, "b": [large]}, AtlasRules(PageRules("grid", 128)))
    store.write_atomic("broken.png", b"\x89PNG\r\n\x1a\n")
    with pytest.raises(AssetError, match=r"broken\.png cannot be decoded"):
        write_atlases(store, {"a": [*sprites, Sprite("broken", "broken.png", "0" * 64)]})
    assert not store.list_files("atlas"), "nothing was written"


def test_numbered_frames_are_animations() -> None:
    names = ["walk-10", "walk-2", "walk-1", "run", "jump-1", "7", "a/fly_01", "a/fly_02"]
    assert animations_of(names) == {"walk": ["walk-1", "walk-2", "walk-10"], "a/fly": ["a/fly_01", "a/fly_02"]}
