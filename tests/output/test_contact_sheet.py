"""Contact sheets: pictures where they belong, failures left empty, sizes bounded."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from consistory_ray.errors import InputError
from consistory_ray.output.contact_sheet import CONTACT_SHEET, SheetRow, contact_sheet, draw_contact_sheet
from consistory_ray.output.index.index import IndexWriter
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.storage import OutputStore
from consistory_ray.plan.plan import Asset


def test_pictures_are_where_they_belong() -> None:
    red, wide = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (64, 32), "blue")
    sheet = draw_contact_sheet([SheetRow("", [("a", red), ("b", wide)]), SheetRow("", [("c", None)])], cell=64, gap=4)
    assert sheet.getpixel((4 + 32, 4 + 32)) == (255, 0, 0), "small pictures are enlarged to the cell"
    assert sheet.getpixel((72 + 32, 4 + 32)) == (0, 0, 255)
    assert sheet.getpixel((72 + 32, 4 + 4)) == (255, 255, 255), "and keep their proportions"
    assert sheet.width == 4 + 2 * (64 + 4)


def test_labels_and_captions_take_room_and_leave_ink() -> None:
    cell = Image.new("RGB", (32, 32), "white")
    bare = draw_contact_sheet([SheetRow("", [("", cell)])], cell=64, captions=False)
    label = draw_contact_sheet([SheetRow("a moss dragon " * 20, [("a very long caption " * 9, cell)], "note")], cell=64)
    assert label.width > bare.width
    assert label.height > bare.height
    assert min(label.convert("L").getextrema()) < 100
    assert max(bare.convert("L").getextrema()) == min(bare.convert("L").getextrema()) == 255


def test_sizes_are_bounded() -> None:
    picture = Image.new("RGB", (8, 8))
    with pytest.raises(InputError, match="too large"):
        draw_contact_sheet([SheetRow("", [("", picture)] * 100)] * 100, cell=160)
    with pytest.raises(InputError, match="needs pictures"):
        draw_contact_sheet([])


def test_a_sheet_of_an_output(store: OutputStore, render: Any, parameters: Any, picture: Any) -> None:
    with pytest.raises(InputError, match="render something first"):
        contact_sheet(store)
    with IndexWriter(store) as writer:
        writer.extend(render(store, number, subject=f"s{number % 2}") for number in range(8))
        writer.add(IndexRow.failed(parameters(9, subject="s1", scene="a-failure"), "it broke"))
        writer.add(render(store, 11, subject="s1", scene="broken"))
    store.write_atomic("images/s1/broken.png", b"no picture")
    assert contact_sheet(store, max_columns=3, cell=48) == CONTACT_SHEET
    with Image.open(io.BytesIO(store.read(CONTACT_SHEET))) as image:
        image.load()
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
    assert picture(0).getpixel((0, 0)) in colours
    assert picture(6).getpixel((0, 0)) not in colours, "the fourth column is left out"

    ids = {number: parameters(number)["asset_id"] for number in (3, 1)}
    assets = [Asset(ids[number], "scene", "s1", f"scene-{number}", "", number, "") for number in ids]
    contact_sheet(store, assets, cell=48, path="sheet.png")
    with Image.open(io.BytesIO(store.read("sheet.png"))) as image:
        middles = (image.width - 2 * 56 + 24, image.width - 56 + 24)
        middle = [image.convert("RGB").getpixel((x, 8 + 24)) for x in middles]
    assert middle == [picture(3).getpixel((0, 0)), picture(1).getpixel((0, 0))]
