"""Exports: exactly one file for each picture, repeatable, with a manifest; what is nobody's is left alone."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from consistory_ray.errors import InputError, OutputBusyError, RunInterrupted
from consistory_ray.export import exporting
from consistory_ray.export.exporting import Exported, export
from consistory_ray.export.making import Recipe
from consistory_ray.export.naming import ALL_TAKES, ONE_TAKE, named
from consistory_ray.export.options import PictureOptions
from consistory_ray.export.records import CONTROL, Record
from consistory_ray.export.selection import Wanted, select
from consistory_ray.output.assets import read_metadata
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.storage import OutputStore, open_output
from tests.output.conftest import s3_options  # noqa: F401, the session's S3 server

Add = Callable[..., Any]
ALL = Wanted()


@pytest.fixture
def run(output: OutputStore, add: Add) -> OutputStore:
    """An output of two subjects with two scenes each, and one that failed."""
    for subject in ("cat", "dragon"):
        for scene in ("beach", "snow"):
            add(output, subject, scene)
    add(output, "cat", "failed", status="failed")
    return output


def exported(run: OutputStore, to: Any, *, template: str = ONE_TAKE, wanted: Wanted = ALL, **more: Any) -> Exported:
    options = more.pop("options", PictureOptions())
    selection = select(run, wanted)
    names = named(selection.sources, template, options.ending)
    return export(run, to, selection, names, Recipe(options, **more.pop("recipe", {})), **more)


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification times and contents of what an export shows."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and CONTROL not in path.parts
    }


def test_every_picture_is_one_file_and_one_row_of_both_manifests(run: OutputStore, tmp_path: Path) -> None:
    result = exported(run, tmp_path / "to")
    assert result.written == 4 and result.left_out == {"failed": 1} and not result.failures
    there = files(tmp_path / "to")
    pictures = ["cat/beach.png", "cat/snow.png", "dragon/beach.png", "dragon/snow.png"]
    assert list(there) == [*pictures, "manifest.csv", "manifest.json"]
    told = json.loads(there["manifest.json"][1])
    rows = list(csv.DictReader(io.StringIO(there["manifest.csv"][1].decode())))
    assert [one["file"] for one in told["files"]] == [row["file"] for row in rows] == pictures
    for one, row in zip(told["files"], rows, strict=True):
        data = there[one["file"]][1]
        assert one["sha256"] == row["sha256"] == one["unsigned_sha256"] == hashlib.sha256(data).hexdigest()
        assert one["size"] == int(row["size"]) == len(data) and (one["width"], one["height"]) == (64, 64)
        assert one["source_sha256"] == run.sha256(one["source"]) and one["state"] == "ok"
        assert one["box"] == one["placed"] == [0, 0, 64, 64] and row["box_width"] == "64"
        assert read_metadata(data)["asset_id"] == one["asset_id"]  # type: ignore[index]


def test_an_export_that_is_repeated_writes_nothing(run: OutputStore, tmp_path: Path) -> None:
    options = PictureOptions(size=20)
    exported(run, tmp_path / "to", options=options)
    before = files(tmp_path / "to")
    assert exported(run, tmp_path / "to", options=options).written == 0
    assert files(tmp_path / "to") == before, "times and bytes, the manifest's too"


def test_only_what_has_changed_is_written_again(run: OutputStore, tmp_path: Path, add: Add) -> None:
    exported(run, tmp_path / "to")
    before = files(tmp_path / "to")
    add(run, "cat", "snow", image=Image.new("RGB", (64, 64), "white"))
    (tmp_path / "to" / "dragon" / "snow.png").write_bytes(before["dragon/snow.png"][1][:-1] + b"x")
    (tmp_path / "to" / "cat" / "beach.png").unlink()
    assert exported(run, tmp_path / "to").written == 3
    after = files(tmp_path / "to")
    assert after["dragon/beach.png"] == before["dragon/beach.png"]
    assert after["dragon/snow.png"][1] == before["dragon/snow.png"][1]
    assert after["cat/snow.png"][1] != before["cat/snow.png"][1]
    assert exported(run, tmp_path / "to", options=PictureOptions(size=20)).written == 4, "other options, other files"


def test_files_of_earlier_exports_are_listed_and_go_on_request(run: OutputStore, tmp_path: Path) -> None:
    exported(run, tmp_path / "to")
    (tmp_path / "to" / "notes.txt").write_text("mine")
    one_subject = Wanted(subjects=("cat",))
    for _ in range(2):
        result = exported(run, tmp_path / "to", wanted=one_subject)
        assert result.stale == ("dragon/beach.png", "dragon/snow.png") and result.written == 0
    result = exported(run, tmp_path / "to", wanted=one_subject, prune=True)
    assert result.pruned == ("dragon/beach.png", "dragon/snow.png") and not result.stale
    assert set(files(tmp_path / "to")) == {
        "cat/beach.png",
        "cat/snow.png",
        "manifest.csv",
        "manifest.json",
        "notes.txt",
    }
    assert exported(run, tmp_path / "to", wanted=one_subject).stale == ()


def test_what_no_export_has_made_is_not_overwritten(run: OutputStore, tmp_path: Path) -> None:
    (tmp_path / "to" / "cat").mkdir(parents=True)
    (tmp_path / "to" / "cat" / "snow.png").write_text("mine")
    with pytest.raises(InputError, match="would be overwritten") as caught:
        exported(run, tmp_path / "to")
    assert [problem.value for problem in caught.value.problems] == ["cat/snow.png"]
    assert list(files(tmp_path / "to")) == ["cat/snow.png"]


def test_the_folders_of_the_output_are_its_own(run: OutputStore) -> None:
    for folder in ("", "/images", "/anchors/cat"):
        with pytest.raises(InputError, match="cannot be written there"):
            exported(run, run.root + folder)
    assert exported(run, run.root + "/export").written == 4


def test_a_picture_that_cannot_be_made_is_listed_and_the_others_are_made(run: OutputStore, tmp_path: Path) -> None:
    exported(run, tmp_path / "to")
    Path(run.root, "images/cat/snow.png").write_bytes(b"damaged")
    Path(run.root, "images/cat/beach.png").unlink()
    result = exported(run, tmp_path / "to", options=PictureOptions(size=20))
    assert result.counts == {"failed": 2, "ok": 2} and result.written == 2
    assert [record.file for record in result.failures] == ["cat/beach.png", "cat/snow.png"]
    assert (
        "verify --repair" in result.failures[0].note and "not the picture that was indexed" in result.failures[1].note
    )
    assert result.stale == ("cat/beach.png", "cat/snow.png"), "of the earlier export"


def test_two_exports_at_once_into_one_folder(run: OutputStore, tmp_path: Path) -> None:
    with Lease.acquire(open_output(tmp_path / "to" / CONTROL), "export"), pytest.raises(OutputBusyError):
        exported(run, tmp_path / "to")
    assert exported(run, tmp_path / "to").written == 4


def test_a_stop_keeps_what_is_done(run: OutputStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "THREADS", 1)
    asked: list[int] = []
    with pytest.raises(RunInterrupted, match="2 of 4 pictures"):
        exported(run, tmp_path / "to", should_stop=lambda: bool(asked.append(1)) or len(asked) > 2)
    there = files(tmp_path / "to")
    assert len(there) == 2 and "manifest.json" not in there
    assert exported(run, tmp_path / "to").written == 2
    assert {name: one for name, one in files(tmp_path / "to").items() if name in there} == there


def test_products_are_made_of_the_pictures_and_written_once(run: OutputStore, tmp_path: Path) -> None:
    def counted(store: OutputStore, records: Sequence[Record]) -> Iterator[tuple[str, bytes]]:
        yield "sheet.txt", " ".join(f"{record.file}:{len(store.read(record.file))}" for record in records).encode()

    result = exported(run, tmp_path / "to", products=[counted])
    assert result.written == 5 and result.records[-1].file == "sheet.txt"
    before = files(tmp_path / "to")
    assert exported(run, tmp_path / "to", products=[counted]).written == 0 and files(tmp_path / "to") == before
    assert exported(run, tmp_path / "to").stale == ("sheet.txt",)

    def clashing(store: OutputStore, records: Sequence[Record]) -> Iterable[tuple[str, bytes]]:
        return [("CAT/snow.png", b"")]

    with pytest.raises(InputError, match="one name"):
        exported(run, tmp_path / "to", products=[clashing])


def test_a_product_never_takes_the_place_of_somebody_elses_file(run: OutputStore, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "sheet.txt").write_text("mine")
    with pytest.raises(InputError, match="would be overwritten") as caught:
        exported(run, tmp_path / "to", products=[lambda store, records: [("sheet.txt", b"theirs")]])
    assert [problem.value for problem in caught.value.problems] == ["sheet.txt"]
    assert (tmp_path / "to" / "sheet.txt").read_text() == "mine"


def test_names_of_products_are_looked_at_before_the_first_picture(run: OutputStore, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "sheet.txt").write_text("mine")
    with pytest.raises(InputError, match="would be overwritten"):
        exported(run, tmp_path / "to", product_names=["sheet.txt"])
    with pytest.raises(InputError, match="one name"):
        exported(run, tmp_path / "to", product_names=["CAT/snow.png"])
    assert list(files(tmp_path / "to")) == ["sheet.txt"]


@pytest.mark.parametrize("name", ["manifest.json", "manifest.csv"])
def test_a_manifest_of_somebody_else_stays(run: OutputStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / name).write_text("mine")
    for _ in range(2):
        with pytest.raises(InputError, match="would be overwritten") as caught:
            exported(run, tmp_path / "to")
        assert [problem.value for problem in caught.value.problems] == [name]
    assert {path: data for path, (_, data) in files(tmp_path / "to").items()} == {name: b"mine"}


def test_marks_and_signatures(run: OutputStore, tmp_path: Path) -> None:
    def inverted(picture: Any) -> Any:
        return picture.changed(picture.image.point(lambda value: 255 - value))

    result = exported(
        run,
        tmp_path / "to",
        recipe={"marks": (inverted,)},
        sign=lambda data, name, sources: data + sources[0].subject.encode(),
    )
    data = (tmp_path / "to" / "cat" / "snow.png").read_bytes()
    (record,) = [record for record in result.records if record.file == "cat/snow.png"]
    assert data.endswith(b"cat") and record.sha256 == hashlib.sha256(data).hexdigest()
    assert record.unsigned_sha256 == hashlib.sha256(data[:-3]).hexdigest()
    with Image.open(io.BytesIO(data)) as made, Image.open(Path(run.root, "images/cat/snow.png")) as source:
        assert made.getpixel((32, 32)) == tuple(255 - value for value in source.getpixel((32, 32)))


@pytest.mark.parametrize("kind", ["s3", "memory"])
def test_other_storages(run: OutputStore, kind: str, request: pytest.FixtureRequest) -> None:
    options: Mapping[str, Any] = request.getfixturevalue("s3_options") if kind == "s3" else {}
    to = open_output("s3://runs/export" if kind == "s3" else "memory://export", **options)
    assert exported(run, to, options=PictureOptions(ending="webp")).written == 4
    assert exported(run, to, options=PictureOptions(ending="webp")).written == 0
    names = [file.path for file in to.list_files() if not file.path.startswith(CONTROL)]
    assert names == [f"{s}/{c}.webp" for s in ("cat", "dragon") for c in ("beach", "snow")] + [
        "manifest.csv",
        "manifest.json",
    ]
    result = exported(run, to, options=PictureOptions(ending="webp"), wanted=Wanted(subjects=("cat",)), prune=True)
    assert len(result.pruned) == 2


def test_takes(run: OutputStore, tmp_path: Path, add: Add) -> None:
    add(run, "cat", "snow", take=2, score=0.9, image=Image.new("RGB", (64, 64), "white"))
    result = exported(run, tmp_path / "to")
    (chosen,) = [record for record in result.records if record.file == "cat/snow.png"]
    assert chosen.take == 2 and chosen.source == "images/cat/snow.take-2.png"
    result = exported(run, tmp_path / "all", template=ALL_TAKES, wanted=Wanted(all_takes=True))
    assert [record.file for record in result.records][:3] == ["cat/beach_1.png", "cat/snow_1.png", "cat/snow_2.png"]


def test_a_journal_that_somebody_changed_says_what_to_do(run: OutputStore, tmp_path: Path) -> None:
    exported(run, tmp_path / "to")
    (part,) = (tmp_path / "to" / CONTROL / "journal").iterdir()
    part.write_text("{")
    with pytest.raises(Exception, match=r"delete .*\.export"):
        exported(run, tmp_path / "to")


def test_records_survive_a_manifest_of_another_version() -> None:
    record = Record("a.png", "ok", box=(1, 2, 3, 4))
    from consistory_ray.export.records import _record

    assert _record({**json.loads(json.dumps(record.to_dict())), "later": 1}) == record
    assert replace(record, state="planned").is_there is False
