"""Outputs that mean harm: whatever stands in a file of theirs, there is an answer, and the next render mends it."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from consistory_ray.cli.app import app
from consistory_ray.errors import ConsistoryError, JobError
from consistory_ray.guards.redaction import visible
from consistory_ray.guards.terminal import SafeConsole
from consistory_ray.jobs.job import RenderJob, parse_job
from consistory_ray.output.assets import asset_parameters, encode_png, picture_size, read_metadata, write_asset
from consistory_ray.output.gallery.pages import build_gallery
from consistory_ray.output.index.index import read_index
from consistory_ray.output.index.parts import encode_part, list_parts, part_name
from consistory_ray.output.index.rows import SCHEMA, IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.resume import resume
from consistory_ray.output.run_record import RunRecord, write_run_record
from consistory_ray.output.shards import write_dataset
from consistory_ray.output.storage import LinkedFolderError, OutputStore, UnfitFileError, open_output
from consistory_ray.output.verify import verify
from consistory_ray.plan.plan import make_plan
from consistory_ray.watch.status import read_status

JOB = {
    "name": "hostile",
    "subjects": [{"id": "cat", "concept": "cat", "subject": "a cat", "anchors": ["at home"], "scenes": ["a", "b"]}],
}
PLAN = make_plan(parse_job(JOB))
PATHS = {asset.asset_id: asset.path for asset in PLAN.assets()}


def render(store: OutputStore) -> None:
    """What a run does to an output, without workers."""
    with Lease.acquire(store, "run", ttl_seconds=0.2):
        found = resume(store, PATHS)
        write_run_record(store, RunRecord("hostile", "miniature", JOB))
        (subject,) = PLAN.subjects
        with IndexWriter(store) as writer:
            for asset in PLAN.assets():
                if asset.asset_id not in found.done:
                    values = asset_parameters(asset, subject, model="miniature", model_fingerprint="f")
                    image = Image.new("RGB", (8, 8), "red")
                    written = write_asset(store, asset.path, encode_png(image, values))
                    writer.add(IndexRow.rendered(values, written, image.size))
        write_run_record(store, RunRecord("hostile", "miniature", JOB).update(state="complete"))


def use(store: OutputStore) -> None:
    """Everything that reads an output; only our own errors may come of it."""
    actions: list[Callable[[], object]] = [
        lambda: read_status(PLAN, store),
        lambda: verify(store),
        lambda: build_gallery(store),
        lambda: write_dataset(store),
    ]
    for action in actions:
        try:
            action()
        except ConsistoryError as error:
            assert str(error)


def png_with(text: bytes, size: tuple[int, int] = (8, 8), kind: bytes = b"tEXt") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(24) for _ in range(8)))
    whole = chunk(b"IHDR", header) + chunk(kind, text) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + whole


def picture_bombs() -> dict[str, bytes]:
    deep = b"consistory\0" + b"[" * 100_000
    wrong = [[1], None, 3, True, {"a": 1}, 1e300]
    first = next(iter(PATHS))
    base = {"asset_id": first, "subject": "cat", "kind": "scene", "scene": "a", "prompt": "x", "seed": 1}
    base |= {"anchor_seeds": [1], "settings_hash": "s", "model": "m", "model_fingerprint": "f"}
    typed = {
        f"{key} is {value!r}": png_with(b"consistory\0" + json.dumps({**base, key: value}).encode())
        for key in base
        for value in wrong
    }
    return typed | {
        "deep": png_with(deep),
        "deep object": png_with(b"consistory\0" + b'{"a":' * 50_000),
        "NaN": png_with(b"consistory\0" + json.dumps({**base, "seed": float("nan")}).encode()),
        "huge header": png_with(b"x\0y", (60_000, 60_000)),
        "no size": png_with(b"x\0y", (0, 0)),
        "zTXt bomb": png_with(b"consistory\0\0" + zlib.compress(b"x" * 80_000_000), kind=b"zTXt"),
        "iCCP bomb": png_with(b"icc\0\0" + zlib.compress(b"x" * 80_000_000), kind=b"iCCP"),
        "animated": png_with(struct.pack(">II", 2, 0), kind=b"acTL"),
        "empty": b"",
        "no picture": b"GIF89a" + bytes(100),
        "cut": encode_png(Image.new("RGB", (8, 8)), base)[:-30],
    }


@pytest.fixture
def output(tmp_path: Path) -> OutputStore:
    store = open_output(tmp_path / "out")
    render(store)
    return store


def mended(store: OutputStore) -> None:
    """A render, a repair and a render are enough, and then all is sound."""
    render(store)
    verify(store, repair=True)
    render(store)
    found = verify(store)
    assert found.is_sound and found.rows == len(PATHS), found.lines()


def test_no_picture_ends_anything(output: OutputStore) -> None:
    path = next(iter(PATHS.values()))
    for number, (name, data) in enumerate(picture_bombs().items()):
        read_metadata(data), picture_size(data)
        if " is " in name and number % 7:
            continue
        output.write_atomic(path, data)
        assert not verify(output).is_sound, name
        render(output)
    use(output)
    mended(output)


ROWS: dict[str, dict[str, Any]] = {
    "null path": {"path": None}, "null size": {"size": None}, "null width": {"width": None}, "size": {"size": -1},
    "status": {"status": "maybe"}, "width": {"width": -5}, "height": {"height": 2**31 - 1},
    "null id": {"asset_id": None},
    "far date": {"created_at": 10**18}, "early date": {"created_at": -(10**18)}, "seconds": {"seconds": float("nan")},
    "null seeds": {"anchor_seeds": None}, "null in seeds": {"anchor_seeds": [None]}, "long": {"subject": "x" * 100_000},
    "failed without error": {"status": "failed", "path": None}, "null prompt": {"prompt": None},
    "path": {"path": "../../etc/passwd"}, "absolute": {"path": "/etc/passwd"},
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [name if number % 3 == 0 else pytest.param(name, marks=pytest.mark.slow) for number, name in enumerate(ROWS)],
)
def test_no_index_row_ends_anything(output: OutputStore, name: str) -> None:
    row = {key: values[0] for key, values in read_index(output).slice(0, 1).to_pydict().items()}
    row |= {"asset_id": "f" * 32, "path": "images/dog/x.png"} | ROWS[name]
    schema = pa.schema([item.with_nullable(True) for item in SCHEMA], SCHEMA.metadata)
    table = pa.Table.from_arrays([pa.array([row[item.name]], item.type) for item in schema], schema=schema)
    data = encode_part(table)
    output.write_atomic(part_name(data), data)
    use(output)
    mended(output)


def test_a_small_index_part_does_not_grow_beyond_measure(output: OutputStore) -> None:
    row = {key: values[0] for key, values in read_index(output).slice(0, 1).to_pydict().items()}
    rows = 40_000
    arrays = [pa.array([row[item.name]] * rows, item.type) for item in SCHEMA]
    index = SCHEMA.get_field_index("prompt")
    arrays[index] = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 500_000]))
    schema = SCHEMA.set(index, pa.field("prompt", arrays[index].type))
    data = encode_part(pa.Table.from_arrays(arrays, schema=schema))
    assert len(data) < 1_000_000
    output.write_atomic(part_name(data), data)
    found = verify(output)
    assert found.damage == {"index-part": 1} and "would grow to" in found.listed[0].detail
    mended(output)


RECORDS = [
    b"", b"[]", b"null", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe\0", b'{"name": NaN}', b"9" * 100_000,
    json.dumps({"name": 1, "model": [], "job": {}, "started_at": 3}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("place", ["run.json", "lease/000000000009.json"])
@pytest.mark.parametrize("data", [*RECORDS[1:6:2], *(pytest.param(data, marks=pytest.mark.slow) for data in RECORDS)])
def test_no_record_or_lease_ends_anything(output: OutputStore, place: str, data: bytes) -> None:
    output.write_atomic(place, data)
    use(output)
    mended(output)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "something").write_text("of somebody")


@pytest.mark.parametrize("make", [_pipe, _device_link, _folder])
@pytest.mark.parametrize("place", ["run.json", "picture", "part", "lease"])
def test_what_is_no_file_is_never_opened(output: OutputStore, make: Callable[[Path], None], place: str) -> None:
    names = {"run.json": "run.json", "picture": next(iter(PATHS.values())), "part": list_parts(output)[0]}
    names["lease"] = output.list_files("lease")[0].path
    path = Path(output.root, names[place])
    path.unlink()
    make(path)
    with pytest.raises(UnfitFileError, match=r"it is a (pipe|link|folder)"):
        output.read(names[place])
    use(output)
    mended(output)


@pytest.mark.parametrize("folder", ["index", "images", "anchors", "lease"])
def test_a_folder_that_leads_out_is_refused(output: OutputStore, tmp_path: Path, folder: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    Path(output.root, folder).rename(elsewhere)
    Path(output.root, folder).symlink_to(elsewhere)
    before = sorted(str(path) for path in elsewhere.rglob("*"))
    with pytest.raises(LinkedFolderError, match="leads out of the output"):
        output.read(f"{folder}/x/y.png")
    with pytest.raises(LinkedFolderError, match="leads out of the output"):
        render(output)
    with pytest.raises(LinkedFolderError):
        output.write_atomic(f"{folder}/x", b"")
    assert sorted(str(path) for path in elsewhere.rglob("*")) == before


def test_an_output_may_be_a_link_itself(output: OutputStore, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(output.root)
    assert verify(open_output(tmp_path / "link")).is_sound
    render(open_output(tmp_path / "link"))


@given(st.integers(0, 2**32), st.integers(1, 6))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_damage_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    store = open_output(tmp_path_factory.mktemp("random") / "out")
    render(store)
    draw = random.Random(seed)
    for _ in range(count):
        file = draw.choice(store.list_files())
        data = bytearray(store.read(file.path))
        for _ in range(draw.choice([1, 1, 5])):
            if data:
                data[draw.randrange(len(data))] = draw.choice([0, 0x22, 0x5B, 0x7B, 0xFF, draw.randrange(256)])
        store.write_atomic(file.path, bytes(data[: draw.choice([len(data), len(data), len(data) // 2, 0])]))
    use(store)
    mended(store)


def test_nothing_stored_moves_the_terminal(output: OutputStore) -> None:
    evil = "\x1b]0;owned\x07\x9b31m\u202e\nfake line"
    record = RunRecord("hostile", f"m{evil}", JOB, error=f"broke {evil}").update(state="failed")
    write_run_record(output, record)
    failing = dict(zip(("asset_id", "kind", "subject", "scene"), (list(PATHS)[1], "scene", "cat", "a"), strict=True))
    failing |= {"prompt": "x", "seed": 1, "anchor_seeds": [1], "settings_hash": "s", "model": "m"}
    read_index(output)
    for path in list_parts(output):
        output.delete(path)
    with IndexWriter(output) as writer:
        writer.add(IndexRow.failed({**failing, "model_fingerprint": "f"}, f"no {evil}", fault=f"kind{evil}"))
    for more in ([], ["--json"]):
        ended = CliRunner().invoke(app, ["status", output.url, *more])
        assert ended.exit_code == 0, ended.output
        assert not any(mark in ended.output for mark in "\x1b\x07\x9b\u202e")
        assert "\nfake line" not in ended.output
        if more:
            assert json.loads(ended.stdout)["error"].startswith("broke \x1b]0;owned")


def test_the_door_to_the_terminal_itself_is_shut() -> None:
    """Whatever a caller hands over uncleaned: texts, tables, styles of its own still work."""
    shown = io.StringIO()
    console = SafeConsole(file=shown, force_terminal=True, width=60)
    table = Table("name")
    table.add_row("a\x1b]0;owned\x07b")
    console.print(Text("c\x9b31m\u202ed", style="bold"))
    console.print(table)
    assert not any(mark in shown.getvalue() for mark in ("\x1b]", "\x07", "\x9b", "\u202e"))
    assert "\x1b[1m" in shown.getvalue() and r"a\x1b]0;" in shown.getvalue()


def test_visible() -> None:
    assert visible("\x1b[31m\u202ea\nb") == r"\x1b[31m\u202ea\nb"
    assert visible("été 東京 🐉") == "été 東京 🐉"


WRONG = {
    "num_inference_steps": 10**12,
    "height": -8,
    "guidance_scale": float("nan"),
    "steps": 5,
    "seed": 3,
    "sdsa": None,
}


@pytest.mark.parametrize("name", WRONG)
def test_stored_settings_have_the_ranges_of_a_jobs(name: str) -> None:
    stored = {
        "url": "s3://b/x.safetensors",
        "sha256": "0" * 64,
        "bytes": 1,
        "settings": {"map_steps": 5, name: WRONG[name]},
    }
    subject = {"from": stored, "id": "cat", "concept": "cat", "subject": "a cat", "anchors": ["a"], "scenes": ["b"]}
    with pytest.raises(JobError) as refused:
        parse_job({"name": "x", "subjects": [subject]})
    assert len(refused.value.problems) == 1, str(refused.value)
    assert name in str(refused.value)


def test_sound_stored_settings_stay_as_they_are() -> None:
    made = PLAN.subjects[0].settings.to_dict()
    stored = {"url": "s3://b/x.safetensors", "sha256": "0" * 64, "bytes": 1, "settings": made}
    subject = {"from": stored, "id": "cat", "concept": "cat", "subject": "a cat", "anchors": ["a"], "scenes": ["b"]}
    job = parse_job({"name": "x", "subjects": [subject]})
    assert make_plan(job).subjects[0].settings == PLAN.subjects[0].settings
    dumped = json.loads(json.dumps(job.model_dump(mode="json", exclude_unset=True)))
    assert make_plan(RenderJob.model_validate(dumped)) == make_plan(job)
