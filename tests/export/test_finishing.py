"""Exports that look at pictures, mark them and sign them, from the command line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from consistory_ray.cli.app import app
from consistory_ray.export.exporting import export
from consistory_ray.export.finishing import finish
from consistory_ray.export.making import Recipe
from consistory_ray.export.naming import ONE_TAKE, named
from consistory_ray.export.options import PictureOptions
from consistory_ray.export.records import Record
from consistory_ray.export.selection import Wanted, select
from consistory_ray.export.signing import validate
from consistory_ray.guards.named_code import VARIABLE
from consistory_ray.output.assets import relabelled, write_asset
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.storage import OutputStore
from consistory_ray.pictures.provenance import TRAINED, packet_chunk, source_type
from tests.export.authority import DAY, NOW, Authority, pem

c2pa = pytest.importorskip("c2pa")
Ran = Callable[..., Result]
HOUSE = """
import numpy as np
from PIL import Image

def lowest_bit(image):
    pixels = np.asarray(image).copy()
    pixels[..., 0] |= 1
    return Image.fromarray(pixels, image.mode)

def no_snow(image):
    assert image.mode == "RGB" and image.size == (64, 64), "as it was rendered"
    return "snow is not wanted" if image.getpixel((0, 0)) == (255, 255, 255) else None

def smaller(image):
    return image.resize((8, 8))

def grey(image):
    return image.convert("L")

def in_place(image):
    image.putpixel((0, 0), (0, 0, 0))

def broken(image):
    raise KeyError("lost")

NUMBER = 7
"""


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's own, with a name of its own in each test: modules are imported once."""
    name = f"house_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    path = tmp_path / f"{name}.py"
    path.write_text(HOUSE)
    return path


@pytest.fixture
def run(output: OutputStore, tmp_path: Path, add: Any) -> Ran:
    add(output, "cat", "beach")
    add(output, "cat", "snow", image=Image.new("RGB", (64, 64), "white"))

    def call(*args: object, to: str = "shipped") -> Result:
        return CliRunner().invoke(app, ["export", output.root, "--to", str(tmp_path / to), *(str(arg) for arg in args)])

    return call


def files(tmp_path: Path, to: str = "shipped") -> dict[str, dict[str, Any]]:
    manifest = json.loads((tmp_path / to / "manifest.json").read_text())
    return {one["file"]: one for one in manifest["files"]}


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_every_export_says_that_a_model_made_it(ending: str, run: Ran, tmp_path: Path) -> None:
    for options in (["--no-metadata"], ["--sprites", "--matting", "none", "--workers", "0"], []):
        assert run("--format", ending, *options, to="-".join(["x", *options])).exit_code == 0
    written = list(tmp_path.glob(f"x*/cat/*.{ending}"))
    assert len(written) == 6 and {source_type(path) for path in written} == {TRAINED}


def test_pictures_of_earlier_versions_say_it_too_and_given_ones_do_not(
    output: OutputStore, run: Ran, add: Any, tmp_path: Path
) -> None:
    add(output, "cat", "anchor-0", kind="anchor")
    rows = {row["scene"]: row for row in read_index(output).to_pylist()}
    later = []
    for scene, changes in {"beach": {}, "anchor-0": {"given": {"sha256": "a"}}}.items():
        row = rows[scene]
        data = relabelled(output.read(row["path"]).replace(packet_chunk(), b""), changes)
        assert data is not None and source_type(data) is None
        written = write_asset(output, row["path"], data)
        known = {name: row[name] for name in IndexRow.__dataclass_fields__} | {"anchor_seeds": (1,)}
        changed = {"sha256": written.sha256, "size": written.size, "created_at": NOW + DAY}
        later.append(IndexRow(**(known | changed)))
    with IndexWriter(output) as writer:
        writer.extend(later)
    certificate, key = Authority().files(tmp_path)
    assert run("--anchors", "--c2pa", certificate, key).exit_code == 0
    told = files(tmp_path)
    old, given = told["cat/beach.png"], told["cat/anchor-0.png"]
    said = {name: source_type(tmp_path / "shipped" / name) for name in told}
    assert said == {"cat/beach.png": TRAINED, "cat/snow.png": TRAINED, "cat/anchor-0.png": None}
    assert old["sha256"] != old["unsigned_sha256"] != old["source_sha256"], "what it lacked was added"
    assert given["sha256"] == given["unsigned_sha256"] == given["source_sha256"]
    assert (given["state"], given["note"]) == ("ok", "not signed: it was given, not made by the run")


def test_signed_pictures_are_valid_and_stay_as_they_are(output: OutputStore, run: Ran, tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.files(tmp_path)
    assert run("--c2pa", certificate, key).exit_code == 0
    told, index = files(tmp_path), {row["asset_id"]: row["sha256"] for row in read_index(output).to_pylist()}
    for name, record in told.items():
        data = (tmp_path / "shipped" / name).read_bytes()
        settings = {"trust": {"trust_anchors": pem(authority.certificate).decode()}}
        with c2pa.Context.from_dict(settings) as context, (tmp_path / "shipped" / name).open("rb") as file:
            reader = c2pa.Reader("image/png", file, context=context)
            assert reader.get_validation_state() == "Trusted"
            assert reader.get_active_manifest()["title"] == name
            assert "a drawing of" not in reader.json()
        assert record["sha256"] == hashlib.sha256(data).hexdigest() and record["size"] == len(data)
        assert record["unsigned_sha256"] == index[record["asset_id"]] == record["source_sha256"]
    before = {name: (tmp_path / "shipped" / name).read_bytes() for name in told}
    again = run("--c2pa", certificate, key)
    assert again.exit_code == 0 and "0 files written" in again.output
    assert before == {name: (tmp_path / "shipped" / name).read_bytes() for name in told}
    assert "2 files written" in run("--c2pa", certificate, key, "--c2pa-prompt").output, "they say something else"
    assert {record["unsigned_sha256"] for record in files(tmp_path).values()} == set(index.values())
    secret = key.read_bytes().splitlines()[1]
    shipped = [path for path in (tmp_path / "shipped").rglob("*") if path.is_file()]
    assert len(shipped) > 4 and not any(secret in path.read_bytes() for path in shipped)
    assert "2 files written" in run().output and len(files(tmp_path)) == 2, "and without signatures"


def test_sheets_are_signed_once_too(output: OutputStore, run: Ran, tmp_path: Path) -> None:
    finished = finish(credentials=Authority().files(tmp_path), with_prompt=True)
    recipe = Recipe(PictureOptions(further=finished.further))
    wanted = select(output, Wanted())
    names = named(wanted.sources, ONE_TAKE, "png")
    sheet = output.read(wanted.sources[0].path)

    def product(_: OutputStore, records: Sequence[Record]) -> Iterator[tuple[str, bytes]]:
        yield "sheet.png", sheet
        yield "sheet.json", json.dumps([record.file for record in records]).encode()

    def once() -> tuple[int, bytes]:
        result = export(output, tmp_path / "shipped", wanted, names, recipe, sign=finished.sign, products=[product])
        return result.written, (tmp_path / "shipped/sheet.png").read_bytes()

    assert once()[0] == 4
    written, data = once()
    assert (written, once()[1]) == (0, data), "the same signature"
    found = validate(data, "png")
    assert found.state == "Valid" and "a drawing of" not in json.dumps(dict(found.manifest))
    record = files(tmp_path)["sheet.png"]
    assert record["unsigned_sha256"] == hashlib.sha256(sheet).hexdigest() != record["sha256"]
    (tmp_path / "shipped/sheet.png").unlink()
    assert once()[0] == 1, "signed anew where it is gone"
    sheet = output.read(wanted.sources[1].path)
    written, other = once()
    assert written == 1 and other != data and validate(other, "png").state == "Valid"


def test_sprites_are_made_in_other_processes_and_signed_in_this_one(run: Ran, house: Path, tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.files(tmp_path)
    mark = f"{house.stem}:lowest_bit"
    ran = run("--sprites", "--matting", "none", "--workers", 1, "--watermark", mark, "--c2pa", certificate, key)
    assert ran.exit_code == 0, ran.output
    for name in files(tmp_path):
        path = tmp_path / "shipped" / name
        with Image.open(path) as image, path.open("rb") as file:
            assert image.mode == "RGBA" and (np.asarray(image)[..., 0] % 2 == 1).all()
            assert c2pa.Reader("image/png", file).get_validation_state() == "Valid"


@pytest.mark.parametrize(
    ("options", "field", "fix"),
    [
        (["--c2pa-prompt"], "--c2pa-prompt", "--c2pa CERT KEY"),
        (["--c2pa-tsa", "http://stamps"], "--c2pa-tsa", "--c2pa CERT KEY"),
        (["--c2pa", "none.pem", "none.pem"], "--c2pa", "can be read"),
        (["--watermark", "house"], "--watermark", "package.module:function"),
        (["--watermark", "house_that_is_not:there"], "--watermark", "package.module:function"),
        (["--watermark", "HOUSE:NUMBER"], "--watermark", "package.module:function"),
        (["--check", "HOUSE:nothing"], "--check", "package.module:function"),
        (["--check", "HOUSE:NUMBER"], "--check", "package.module:function"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_written(
    options: list[str], field: str, fix: str, run: Ran, house: Path, tmp_path: Path
) -> None:
    result = run(*(option.replace("HOUSE", house.stem) for option in options))
    assert result.exit_code == 2 and not (tmp_path / "shipped").exists()
    told = " ".join(result.output.split())
    assert field in told and fix in told


def test_an_expired_certificate_and_a_locked_key_write_nothing(run: Ran, tmp_path: Path) -> None:
    result = run("--c2pa", *Authority().files(tmp_path, since=NOW - 9 * DAY, until=NOW - DAY))
    assert result.exit_code == 2 and "expired" in result.output and not (tmp_path / "shipped").exists()


def test_a_mark_changes_pixels_and_a_changed_function_makes_them_anew(run: Ran, house: Path, tmp_path: Path) -> None:
    mark = f"{house.stem}:lowest_bit"
    assert "2 files written" in run("--watermark", mark).output
    with Image.open(tmp_path / "shipped/cat/beach.png") as image:
        assert (np.asarray(image)[..., 0] % 2 == 1).all() and image.size == (64, 64)
        assert image.text["consistory"], "what the file says of itself stays"  # type: ignore[attr-defined]
    assert "0 files written" in run("--watermark", mark).output
    house.write_text(house.read_text() + "\n# another version\n")
    assert "2 files written" in run("--watermark", mark).output


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("smaller", "must return RGB of 64 x 64 pixels, got RGB of 8 x 8 pixels"),
        ("grey", "got L of 64 x 64 pixels"),
        ("in_place", "must return a picture, got NoneType"),
        ("broken", "failed: KeyError: 'lost'"),
    ],
)
def test_a_mark_that_goes_wrong_fails_its_pictures(
    function: str, told: str, run: Ran, house: Path, tmp_path: Path
) -> None:
    result = run("--watermark", f"{house.stem}:{function}")
    records = files(tmp_path).values()
    assert result.exit_code == 1 and {record["state"] for record in records} == {"failed"}
    assert all(told in record["note"] and house.stem in record["note"] for record in records)
    assert not list((tmp_path / "shipped").rglob("*.png"))


def test_a_finding_rejects_a_picture_and_says_why(run: Ran, house: Path, tmp_path: Path) -> None:
    assert run().exit_code == 0, "both are there before anybody looks"
    check = f"{house.stem}:no_snow"
    result = run("--check", check, "--sprites", "--matting", "none", "--workers", 0)
    told = files(tmp_path)
    assert result.exit_code == 1 and "snow is not wanted" in result.output and "cat/snow.png" in result.output
    assert told["cat/beach.png"]["state"] == "ok"
    assert (told["cat/snow.png"]["state"], told["cat/snow.png"]["sha256"]) == ("rejected", None)
    assert told["cat/snow.png"]["note"] == f"{check}: snow is not wanted"
    assert "not asked for any more: cat/snow.png" in result.output, "an earlier export had no such check"
    result = run("--check", check, "--sprites", "--matting", "none", "--workers", 0, "--prune")
    assert result.exit_code == 1 and not (tmp_path / "shipped/cat/snow.png").exists()
    assert "0 files written" in result.output, "what has passed is not looked at again"


def test_a_check_that_fails_lets_nothing_pass(run: Ran, house: Path, tmp_path: Path) -> None:
    assert run("--check", f"{house.stem}:no_snow", "--check", f"{house.stem}:broken").exit_code == 1
    told = files(tmp_path)
    assert told["cat/beach.png"]["state"] == "failed" and told["cat/snow.png"]["state"] == "rejected"
    assert "the check" in told["cat/beach.png"]["note"]


def test_where_code_is_allowed_by_name_it_has_to_be(run: Ran, house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for option, function in (("--watermark", "lowest_bit"), ("--check", "broken")):
        monkeypatch.setenv(VARIABLE, "other.module")
        result = run(option, f"{house.stem}:{function}", to=f"a{option}")
        assert result.exit_code == 2 and VARIABLE in result.output
        monkeypatch.setenv(VARIABLE, f"other.module, {house.stem}")
        assert run(option, f"{house.stem}:{function}", to=f"b{option}").exit_code != 2
    assert os.environ[VARIABLE]
