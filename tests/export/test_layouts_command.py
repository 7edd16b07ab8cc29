"""``export`` with atlases and character sheets, from an output to a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consistory_ray.cli.app import app
from consistory_ray.cli.layouts import Layouts
from consistory_ray.export.atlas_product import sprites_of
from consistory_ray.export.records import Record
from consistory_ray.output.storage import OutputStore, open_output
from tests.export.conftest import Add, disc, drawn, tokens
from tests.export.layouts import read_atlas

SPRITES = ("--sprites", "--matting", "none")


@pytest.fixture
def rendered(output: OutputStore, add: Add) -> OutputStore:
    add(output, "moss", "anchor-0", kind="anchor")
    for subject in ("moss", "cat"):
        for number, scene in enumerate(("snow", "beach", "walk-1", "walk-2")):
            where = disc((24 + 4 * number, 32), 12)
            add(output, subject, scene, image=drawn(where, (40, 60 * number, 200)), mask=tokens(where))
    return output


def exported(output: OutputStore, to: Any, *options: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["export", output.url, "--to", str(to), *options])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def files_of(folder: Path, below: str) -> list[str]:
    return sorted(path.name for path in (folder / below).iterdir())


def test_one_atlas_for_each_subject(rendered: OutputStore, tmp_path: Path) -> None:
    to = tmp_path / "to"
    told = exported(rendered, to, *SPRITES, "--atlas", "packed", "--scale", "0.75")
    assert f"{to}/atlas" in told
    assert files_of(to, "atlas") == ["cat.json", "cat.png", "moss.json", "moss.png"]
    frames = json.loads((to / "atlas/moss.json").read_text())["frames"]
    assert frames.keys() == {"snow", "beach", "walk-1", "walk-2"}
    assert {(frame["sourceSize"]["w"], frame["trimmed"]) for frame in frames.values()} == {(48, True)}, "64 times 0.75"
    heights = [frames[name]["spriteSourceSize"]["y"] for name in ("snow", "beach", "walk-1", "walk-2")]
    assert heights == sorted(set(heights)), "it stands where it stood in its picture"
    manifest = json.loads((to / "manifest.json").read_text())
    assert [file["file"] for file in manifest["files"]][-4:] == [f"atlas/{name}" for name in (
        "cat.png", "cat.json", "moss.png", "moss.json")]  # fmt: skip
    again = exported(rendered, to, *SPRITES, "--atlas", "packed", "--scale", "0.75")
    assert "0 files written" in again


@pytest.mark.parametrize("name", ["atlas/cat.png", "atlas/moss.json", "sheets/moss.pdf", "sheets/cat.png"])
def test_files_of_somebody_else_are_told_before_anything_is_written(
    rendered: OutputStore, tmp_path: Path, name: str
) -> None:
    to = tmp_path / "to"
    (to / name).parent.mkdir(parents=True)
    (to / name).write_text("mine")
    told = exported(rendered, to, *SPRITES, "--atlas", "packed", "--sheet", "a4", code=2)
    assert name in told and "no export has made this file" in told
    assert (to / name).read_text() == "mine"
    assert [path for path in to.rglob("*") if path.is_file() and ".export" not in path.parts] == [to / name]


def test_one_atlas_for_all(rendered: OutputStore, tmp_path: Path) -> None:
    to = tmp_path / "to"
    how = ("--atlas", "grid", "--atlas-per", "all", "--format", "webp", "--atlas-size", "128", "--atlas-any-size")
    exported(rendered, to, *SPRITES, *how, "--atlas-extrude", "0", "--atlas-padding", "0", "--atlas-pivot", "0.5", "1")
    assert files_of(to, "atlas") == ["all.json", "all.webp", "all~2.json", "all~2.webp"]
    found = read_atlas(open_output(to), "all")
    assert len(found) == 8 and {"moss/snow", "cat/walk-2"} < found.keys()
    assert {image.size for image in found.values()} == {(64, 64)}
    told = json.loads((to / "atlas/all.json").read_text())
    assert told["meta"]["size"] == {"w": 128, "h": 128} and told["animations"] == {
        "cat/walk": ["cat/walk-1", "cat/walk-2"]
    }
    assert told["frames"]["cat/snow"]["anchor"] == {"x": 0.5, "y": 1.0}
    fewer = exported(rendered, to, *SPRITES, *how[:-3], "--prune")
    assert files_of(to, "atlas") == ["all.json", "all.webp"] and "2 deleted" in fewer


def test_an_atlas_on_an_object_store(rendered: OutputStore) -> None:
    to = "memory://layouts/shipped"
    exported(rendered, to, *SPRITES, "--atlas", "packed")
    assert len(read_atlas(open_output(to), "moss")) == 4
    assert "0 files written" in exported(rendered, to, *SPRITES, "--atlas", "packed")


def test_takes_are_frames_of_their_own(rendered: OutputStore, add: Add, tmp_path: Path) -> None:
    add(rendered, "cat", "snow", take=2, score=0.9)
    exported(rendered, tmp_path / "best", *SPRITES, "--atlas", "packed")
    assert "snow" in json.loads((tmp_path / "best/atlas/cat.json").read_text())["frames"]
    exported(rendered, tmp_path / "all", *SPRITES, "--atlas", "packed", "--all-takes")
    frames = json.loads((tmp_path / "all/atlas/cat.json").read_text())["frames"]
    assert frames.keys() == {"snow_1", "snow_2", "beach_1", "walk-1_1", "walk-2_1"}


def test_an_output_without_anchors_and_masks(output: OutputStore, add: Add, tmp_path: Path) -> None:
    add(output, "cat", "snow", masked=False)
    exported(output, tmp_path / "to", "--atlas", "packed", "--sheet", "letter")
    assert json.loads((tmp_path / "to/atlas/cat.json").read_text())["frames"]["snow"]["trimmed"] is False
    assert files_of(tmp_path / "to", "sheets") == ["cat.pdf", "cat.png"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--atlas", "grid", "--atlas-size", "32"], "beach (and 3 more) does not fit on a page"),
        (["--atlas", "grid", "--atlas-size", "3000"], "--atlas-size: give a power of two"),
        (["--atlas", "grid", "--atlas-rotate"], "--atlas-rotate"),
        (["--atlas", "packed", "--atlas-pivot", "nan", "1"], "--atlas-pivot: give shares"),
        (["--atlas-padding", "3"], "add --atlas packed or --atlas grid"),
        (["--sheet-font", "x.ttf"], "add --sheet a4"),
        (["--sheet", "a4", "--sheet-font", __file__], "--sheet-font: give a TrueType font"),
    ],
)
def test_what_cannot_be_made(rendered: OutputStore, tmp_path: Path, options: list[str], told: str) -> None:
    found = exported(rendered, tmp_path / "to", *SPRITES, *options, code=2)
    assert told in found
    if "32" not in options:  # how large a sprite is shows when it is cut out
        assert not (tmp_path / "to").exists(), "nothing was written"


def test_two_pictures_for_one_frame_are_refused() -> None:
    records = [Record(f"{n}.png", "ok", asset_id=f"{n}", subject="cat", scene="snow", take=1, sha256="0") for n in "ab"]
    with pytest.raises(Exception, match=r"two pictures would be this frame, a\.png and b\.png.*\(got snow_1\)"):
        sprites_of(records, {}, "subject")


def test_nothing_is_made_unless_asked_for(output: OutputStore) -> None:
    assert Layouts().products(output, None, lambda *_: None, bool) == [] == Layouts().folders  # type: ignore[arg-type]
