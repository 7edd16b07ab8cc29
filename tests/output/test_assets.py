"""Picture files: parameters that other tools read, any text, the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from consistory_ray.errors import AssetError
from consistory_ray.jobs.job import parse_job
from consistory_ray.output.assets import (
    WrittenAsset,
    asset_parameters,
    encode_png,
    picture_size,
    read_metadata,
    relabelled,
    write_asset,
)
from consistory_ray.output.index.rows import IndexRow, rows_to_table, table_to_rows
from consistory_ray.output.storage import OutputStore
from consistory_ray.pictures.provenance import TRAINED, packet_chunk, source_type
from consistory_ray.plan.plan import make_plan


def chunks(png: bytes) -> Iterator[tuple[str, bytes]]:
    """Types and contents of a PNG file's chunks."""
    place = 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        yield png[place + 4 : place + 8].decode(), png[place + 8 : place + 8 + length]
        place += 12 + length


def text_of(png: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(png)) as image:
        return {key: str(value) for key, value in image.text.items()}


def test_parameters_as_other_tools_read_them(parameters: Any, picture: Any) -> None:
    values = parameters(7, negative_prompt="blurry, dark", prompt="a drawing of a cat")
    text = text_of(encode_png(picture(7, (40, 24)), values))
    assert text["parameters"] == (
        "a drawing of a cat\n"
        "Negative prompt: blurry, dark\n"
        "Steps: 50, Sampler: DDIM, CFG scale: 5, Seed: 7, Size: 40x24, Model: miniature, Model hash: ffffffffff"
    )


def test_a_model_name_with_commas_does_not_break_the_fields(parameters: Any, picture: Any) -> None:
    text = text_of(encode_png(picture(1), parameters(1, model='models/a, b: "c"')))
    assert text["parameters"].endswith(r'Model: "models/a, b: \"c\"", Model hash: ffffffffff')


def test_metadata_survives_and_pixels_do_too(parameters: Any, picture: Any) -> None:
    data = encode_png(picture(3), parameters(3))
    assert read_metadata(data) == {"version": 1, **parameters(3)}
    assert picture_size(data) == (32, 24)
    with Image.open(io.BytesIO(data)) as image:
        assert image.tobytes() == picture(3).tobytes()


def test_a_scene_tells_its_anchor_cache_and_an_anchor_has_none(picture: Any) -> None:
    cat = {"concept": "cat", "subject": "a cat", "anchors": ["there"], "scenes": ["here"]}
    subject = make_plan(parse_job({"name": "x", "model": "miniature", "subjects": [cat]})).subjects[0]
    plain, told = (
        asset_parameters(subject.scenes[0], subject, model="miniature", model_fingerprint="f", cache_sha256=cache)
        for cache in (None, "c" * 64)
    )
    assert "cache_sha256" not in plain and told == plain | {"cache_sha256": "c" * 64}
    before, after = encode_png(picture(1), plain), encode_png(picture(1), told)
    assert (read_metadata(after) or {})["cache_sha256"] == "c" * 64
    assert text_of(after)["parameters"] == text_of(before)["parameters"]
    with Image.open(io.BytesIO(before)) as one, Image.open(io.BytesIO(after)) as other:
        assert one.tobytes() == other.tobytes(), "the pixels are the same"


def test_it_says_that_a_model_made_it_unless_it_was_given(parameters: Any, picture: Any) -> None:
    made, kept = (encode_png(picture(3), parameters(3, **more)) for more in ({}, {"given": {"sha256": "a" * 64}}))
    assert source_type(made) == TRAINED and source_type(kept) is None
    assert made == encode_png(picture(3), parameters(3)), "no time, no random identifier"
    assert text_of(made)["parameters"] == text_of(kept)["parameters"]
    assert read_metadata(made) == {"version": 1, **parameters(3)}
    moved = relabelled(made, {"path": "images/x/y.png"})
    assert moved is not None and source_type(moved) == TRAINED
    before = made.replace(packet_chunk(), b"")  # as versions wrote it that stated nothing
    assert len(made) - len(before) < 700 and read_metadata(before) == read_metadata(made)
    kinds = [kind for kind, _ in chunks(made)]
    assert kinds == ["IHDR", "tEXt", "tEXt", "iTXt", "IDAT", "IEND"]


@settings(deadline=None)
@given(prompt=st.text(st.characters(exclude_categories=())), scene=st.text(max_size=20))
def test_other_names_in_the_same_file(parameters: Any, picture: Any, prompt: str, scene: str) -> None:
    """As if it had been encoded with them in the first place."""
    before = parameters(3, prompt=prompt)
    changed = relabelled(encode_png(picture(3), before), {"scene": scene, "path": "images/x/y.png"})
    assert changed == encode_png(picture(3), before | {"scene": scene, "path": "images/x/y.png"})


def test_other_files_are_not_relabelled(picture: Any, parameters: Any) -> None:
    plain = io.BytesIO()
    picture(1).save(plain, "PNG")
    cut = encode_png(picture(1), parameters(1))[:40]
    for data in (plain.getvalue(), b"", b"\x89PNG\r\n\x1a\n", cut, b"not a picture" * 10):
        assert relabelled(data, {"scene": "x"}) is None


def test_same_picture_same_bytes(parameters: Any, picture: Any) -> None:
    first = encode_png(picture(3), parameters(3))
    reordered = dict(reversed(parameters(3).items()))
    assert encode_png(picture(3), reordered) == first


def test_ascii_is_plain_text_and_all_else_is_utf8(parameters: Any, picture: Any) -> None:
    kinds = [kind for kind, data in chunks(encode_png(picture(1), parameters(1))) if data.startswith(b"parameters\0")]
    assert kinds == ["tEXt"]
    data = encode_png(picture(1), parameters(1, prompt="un été 猫"))
    assert [kind for kind, body in chunks(data) if body.startswith(b"parameters\0")] == ["iTXt"]
    assert text_of(data)["parameters"].startswith("un été 猫\n")
    before_pixels = [kind for kind, _ in chunks(data)]
    assert before_pixels.index("iTXt") < before_pixels.index("IDAT"), "readable without reading the pixels"


@settings(deadline=None)
@given(prompt=st.text(st.characters(exclude_categories=())))
def test_any_prompt_can_be_embedded(parameters: Any, picture: Any, prompt: str) -> None:
    data = encode_png(picture(1), parameters(1, prompt=prompt))
    metadata = read_metadata(data)
    assert metadata is not None
    assert metadata["prompt"] == prompt, "also what is no valid Unicode"
    shown = prompt.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    assert text_of(data)["parameters"].startswith(shown + "\n")
    assert picture_size(data) == (32, 24)


def test_incomplete_or_unfit_parameters(parameters: Any, picture: Any) -> None:
    with pytest.raises(AssetError, match="lack prompt, seed"):
        encode_png(picture(1), {"asset_id": "x"})
    with pytest.raises(AssetError, match="cannot be encoded"):
        encode_png(picture(1), parameters(1, settings={"freeu": object()}))
    with pytest.raises(AssetError, match="cannot be encoded"):
        encode_png(Image.new("CMYK", (4, 4)), parameters(1))


def test_no_metadata_in_other_files(picture: Any) -> None:
    plain = io.BytesIO()
    picture(1).save(plain, "PNG")
    jpeg = io.BytesIO()
    picture(1).save(jpeg, "JPEG")
    for data in (plain.getvalue(), jpeg.getvalue(), b"", b"\x89PNG\r\n\x1a\n", b"not a picture"):
        assert read_metadata(data) is None


def test_a_damaged_picture_has_no_size(parameters: Any, picture: Any) -> None:
    data = encode_png(picture(1, (64, 64)), parameters(1))
    place = data.index(b"IDAT")
    for keep in (0, 7, 20, place + 20, len(data) - 20, len(data) - 12, len(data) - 1):
        assert picture_size(data[:keep]) is None
    assert picture_size(data[: place + 10] + bytes([data[place + 10] ^ 0xFF]) + data[place + 11 :]) is None
    assert read_metadata(data[: place + 20]) is not None, "which is why recovery decodes the pixels"


def test_write_asset(store: OutputStore, parameters: Any, picture: Any) -> None:
    data = encode_png(picture(1), parameters(1))
    written = write_asset(store, "images/cat/x.png", data)
    assert (written.path, written.size) == ("images/cat/x.png", len(data))
    assert written.sha256 == hashlib.sha256(data).hexdigest()
    assert store.read("images/cat/x.png") == data


@pytest.mark.parametrize(
    ("changes", "told", "column"),
    [
        ({}, "absent", "exact"),
        ({"profile": "fast"}, "fast", "fast"),
        ({"profile": "fast", "shared_every": 3}, None, None),
    ],
)
def test_a_picture_and_its_row_tell_the_profile(changes: dict[str, Any], told: str | None, column: str | None) -> None:
    """Pictures of exact say nothing, as before there were profiles."""
    subject = {"concept": "cat", "anchors": ["a cat here"], "scenes": ["a cat at sea"]}
    plan = make_plan(parse_job({"model": "acme/xl", "settings": changes, "subjects": [subject]})).subjects[0]
    parameters = asset_parameters(plan.scenes[0], plan, model="acme/xl", model_fingerprint="f")
    assert parameters.get("profile", "absent") == told
    data = encode_png(Image.new("RGB", (8, 8)), parameters)
    read = read_metadata(data)
    assert read is not None and read.get("profile", "absent") == told
    row = IndexRow.rendered(read, WrittenAsset("images/cat/a.png", len(data), "0" * 64), (8, 8))
    assert table_to_rows(rows_to_table([row]))[0].profile == column
