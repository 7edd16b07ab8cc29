"""Character sheets: colours, lines, pages on which all has its place, files that are made once."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from consistory_ray.errors import AssetError, InputError
from consistory_ray.export.character_sheet.content import SheetContent, Shown, Swatch
from consistory_ray.export.character_sheet.drawing import as_pdf, as_png
from consistory_ray.export.character_sheet.fonts import Fonts, find_fonts
from consistory_ray.export.character_sheet.layout import MARGIN, lay_out
from consistory_ray.export.character_sheet.lines import wrapped
from consistory_ray.export.character_sheet.palette import palette
from consistory_ray.export.character_sheet.primitives import Box, Picture, Text, paper_named
from consistory_ray.export.character_sheet.product import CharacterSheets
from consistory_ray.export.character_sheet.reading import MOST_SCENES, materials, read_content
from consistory_ray.export.exporting import Exported, export
from consistory_ray.export.making import Recipe
from consistory_ray.export.naming import ALL_TAKES, named
from consistory_ray.export.options import PictureOptions
from consistory_ray.export.selection import Wanted, select
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.pictures.provenance import TRAINED, source_type
from tests.export.conftest import Add, disc, drawn

PAPERS = ("a4", "a4-landscape", "letter", "letter-landscape")
FONTS = find_fonts()


def patches(*colours: tuple[int, int, int, int], side: int = 16) -> Image.Image:
    return Image.fromarray(np.concatenate([np.full((side, side, 4), colour, np.uint8) for colour in colours], 1))


def test_the_palette_has_the_colours_in_their_shares() -> None:
    red, green, clear = (200, 30, 40, 255), (30, 160, 60, 255), (0, 0, 255, 0)
    found = palette([patches(red, red, red, green, clear)])
    assert [swatch.code for swatch in found] == ["#c81e28", "#1ea03c"]
    assert [swatch.share for swatch in found] == pytest.approx([0.75, 0.25], abs=0.01)
    near = (206, 34, 44, 255)
    assert len(palette([patches(red, near, green)])) == 2, "what the eye takes for one colour is one"
    large = patches(green, side=400)
    assert [one.share for one in palette([patches(red), large])] == pytest.approx([0.5, 0.5], abs=0.01)
    assert palette([patches(clear)]) == palette([]) == ()
    wheel = [(250 * (n & 1), 250 * (n >> 1 & 1), 250 * (n >> 2 & 1), 255) for n in range(8)]
    many = palette([patches(*wheel, *((round(r * 0.5), round(g * 0.5), b, a) for r, g, b, a in wheel))])
    assert len(many) == 8


@settings(max_examples=200, deadline=None)
@given(st.text("ab -/é…W", max_size=60), st.floats(8, 200), st.integers(1, 4), st.booleans())
def test_lines_are_no_wider_than_asked(text: str, width: float, lines: int, bold: bool) -> None:
    found = wrapped(text, width, 7.5, FONTS, lines=lines, bold=bold)
    assert len(found) <= lines
    for line in found:
        assert line == line.strip() and (FONTS.width(line, 7.5, bold=bold) <= width or len(line) <= 2)
    told, whole = "".join("".join(found).split()), "".join(text.split())
    assert told == whole or (told.endswith("…") and whole.startswith(told[:-1]))


def test_lines_end_where_words_do() -> None:
    width = FONTS.width("happy-sitting-in", 8)
    assert wrapped("happy-sitting-in-the-garden", width, 8, FONTS, lines=2) == ["happy-sitting-", "in-the-garden"]
    assert wrapped("one two three", FONTS.width("one two", 8), 8, FONTS, lines=2) == ["one two", "three"]
    assert wrapped("one two three", FONTS.width("one two…", 8), 8, FONTS, lines=1) == ["one two…"]


def content(anchors: int, scenes: int, words: int = 3, *, cut_out: bool = False, colours: int = 8) -> SheetContent:
    """A sheet whose pictures are all different."""

    def shown(count: int, first: int) -> tuple[Shown, ...]:
        pictures = [Image.new("RGBA" if cut_out else "RGB", (40 + n % 7, 44 - n % 5)) for n in range(count)]
        said = "words " * words
        return tuple(Shown(one, f"label-{first + n}-{said}", said, "seed 7") for n, one in enumerate(pictures))

    facts = tuple((f"Name {n}", f"value {'x' * 20 * words}") for n in range(10))
    palette_ = tuple(Swatch((n, n, n), 0.1) for n in range(colours))
    said = "told " * 9 * words
    return SheetContent(
        "title" * words, "run" * words, said, said, shown(anchors, 0), shown(scenes, 100), palette_, facts
    )


def extent(part: Text | Box | Picture, fonts: Fonts) -> tuple[float, float, float, float]:
    if isinstance(part, Text):
        width = fonts.width(part.words, part.size, bold=part.bold)
        left = part.x - width if part.right else part.x
        return left, part.y - part.size, left + width, part.y
    return part.x, part.y, part.x + part.width, part.y + part.height


@settings(max_examples=12, deadline=None)
@example(4, 0, "a4-landscape", 30, False)
@example(8, 60, "letter-landscape", 30, True)
@example(1, 60, "a4", 1, True)
@given(st.integers(0, 8), st.integers(0, 60), st.sampled_from(PAPERS), st.sampled_from([1, 4, 30]), st.booleans())
def test_everything_has_its_place(anchors: int, scenes: int, paper: str, words: int, cut_out: bool) -> None:
    made = content(anchors, scenes, words, cut_out=cut_out)
    pages = lay_out(made, paper_named(paper), FONTS)
    seen: list[int] = []
    for page in pages:
        for part in page.parts:
            left, upper, right, lower = extent(part, FONTS)
            assert left >= MARGIN - 0.1 and right <= page.width - MARGIN + 0.1, part
            assert upper >= MARGIN - 0.1 and lower <= page.height - MARGIN + 8, part
        pictures = [part for part in page.parts if isinstance(part, Picture)]
        seen += [id(picture.image) for picture in pictures]
        texts = [part for part in page.parts if isinstance(part, Text)]
        for one, other in combinations([*pictures, *texts], 2):
            a, b = extent(one, FONTS), extent(other, FONTS)
            apart = max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3])
            assert apart >= -0.3 * (isinstance(one, Text) and one.size) - 0.01, f"{one} lies over {other}"
    assert seen == [id(one.image) for one in (*made.anchors, *made.scenes)], "each once, in order"
    assert f"{len(pages)} / {len(pages)}" in pages[-1].words
    if scenes == 60:
        assert len(pages) > 1


@pytest.mark.parametrize("paper", PAPERS)
def test_files_for_print(paper: str) -> None:
    pages = lay_out(content(2, 3), paper_named(paper), FONTS)
    data = as_png(pages[0], FONTS)
    image = Image.open(io.BytesIO(data))
    inches = (8.27, 11.69) if paper.startswith("a4") else (8.5, 11.0)
    wanted = inches[::-1] if "landscape" in paper else inches
    assert [side / 300 for side in image.size] == pytest.approx(wanted, abs=0.01)
    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    assert source_type(data) == TRAINED
    assert np.asarray(image.convert("L"))[:100].min() == 255, "the margin is white"
    assert np.asarray(image.convert("L")).min() < 60
    pdf = as_pdf(pages, FONTS, "moss", "key")
    assert pdf == as_pdf(pages, FONTS, "moss", "key"), "byte for byte"
    assert len(re.findall(rb"/Type /Page\b", pdf)) == len(pages)
    box = re.search(rb"/MediaBox \[ 0 0 ([0-9.]+) ([0-9.]+) \]", pdf)
    assert box is not None and (float(box[1]) > float(box[2])) == ("landscape" in paper)


def test_fonts() -> None:
    assert FONTS.missing("Drache — żółć ñ") == ""
    assert FONTS.missing("a\U00013000b\U00013000 \n") == "\U00013000"
    given_font = find_fonts(str(FONTS.bold))
    assert given_font.width("wide", 10) == FONTS.width("wide", 10, bold=True) > FONTS.width("wide", 10)
    for wrong in (__file__, "/nowhere.ttf"):
        with pytest.raises(InputError, match="--sheet-font"):
            find_fonts(wrong)


@pytest.fixture
def rendered(output: OutputStore, add: Add) -> OutputStore:
    for subject in ("moss", "cat"):
        for number in range(2):
            add(output, subject, f"anchor-{number}", kind="anchor")
        for number, scene in enumerate(("snow", "beach", "walk-2", "walk-10")):
            where = disc((30 + number, 32))
            add(output, subject, scene, image=drawn(where, (40, 60 + 20 * number, 200)))
    words = {"style": "a drawing of", "subject": "a moss dragon", "details": "a spotted one\x07", "settings": {}}
    output.write_atomic("anchors/moss/subject.json", json.dumps(words).encode())
    output.write_atomic("anchors/cat/subject.json", b"[1")
    return output


def exported(output: OutputStore, to: Path, template: str = "{subject}/{scene}.png", **more: Any) -> Exported:
    selection = select(output, Wanted(all_takes=template == ALL_TAKES, anchors=more.pop("anchors", False)))
    sources = {source.asset_id: source for source in selection.sources}
    sheets = CharacterSheets(output, sources, more.pop("paper", "a4"), FONTS, dpi=30, **more)
    options = PictureOptions(sprites=True, matting="none")
    return export(
        output,
        open_output(to),
        selection,
        named(selection.sources, template, "png"),
        Recipe(options),
        products=[sheets],
    )


def sheet_files(result: Exported) -> list[str]:
    return [record.file for record in result.records if record.file.startswith("sheets/")]


def test_a_sheet_for_each_subject_once(rendered: OutputStore, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    first = exported(rendered, tmp_path / "to", on_progress=lambda *numbers: told.append(numbers))
    assert sheet_files(first) == ["sheets/cat.png", "sheets/cat.pdf", "sheets/moss.png", "sheets/moss.pdf"]
    assert told == [(1, 2), (2, 2)]
    again = exported(rendered, tmp_path / "to")
    assert (again.written, again.stale) == (0, ())
    other = exported(rendered, tmp_path / "other")
    data = {file: open_output(tmp_path / "to").read(file) for file in sheet_files(first)}
    assert data == {file: open_output(tmp_path / "other").read(file) for file in sheet_files(other)}


@pytest.mark.parametrize("damage", ["page", "pdf", "gone"])
def test_damage_is_made_good(rendered: OutputStore, tmp_path: Path, damage: str) -> None:
    exported(rendered, tmp_path / "to")
    store = open_output(tmp_path / "to")
    path = "sheets/moss.pdf" if damage == "pdf" else "sheets/moss.png"
    whole = store.read(path)
    store.delete(path) if damage == "gone" else store.write_atomic(path, whole[:-20])
    assert exported(rendered, tmp_path / "to").written == 1
    assert store.read(path) == whole


def test_what_a_sheet_depends_on(rendered: OutputStore, add: Add, tmp_path: Path) -> None:
    exported(rendered, tmp_path / "to")
    add(rendered, "cat", "snow", image=drawn(disc((20, 20)), (9, 90, 9)))
    assert exported(rendered, tmp_path / "to").written == 3, "the sprite and the cat's sheet"
    rendered.write_atomic("anchors/moss/subject.json", json.dumps({"subject": "another"}).encode())
    assert exported(rendered, tmp_path / "to").written == 2
    assert exported(rendered, tmp_path / "to", paper="letter").written == 4


def content_of(output: OutputStore, result: Exported, subject: str = "moss") -> SheetContent:
    selection = select(output, Wanted(all_takes=True, anchors=True))
    sources = {source.asset_id: source for source in selection.sources}
    found = materials(output, [record for record in result.records if record.is_there], sources)
    return read_content(next(one for one in found if one.subject == subject), output, open_output(result.url))


def test_what_stands_on_a_sheet(rendered: OutputStore, add: Add, tmp_path: Path) -> None:
    add(rendered, "moss", "snow", take=2)
    result = exported(rendered, tmp_path / "to", ALL_TAKES, anchors=True)
    sheet = content_of(rendered, result)
    assert (sheet.title, sheet.lead, sheet.details) == ("moss", "a drawing of a moss dragon", "a spotted one")
    assert [one.label for one in sheet.anchors] == ["Anchor 1", "Anchor 2"]
    assert [one.label for one in sheet.scenes] == ["beach", "snow, take 1", "snow, take 2", "walk-2", "walk-10"]
    assert {one.image.mode for one in sheet.scenes} == {"RGBA"} and {one.image.mode for one in sheet.anchors} == {"RGB"}
    assert all(max(one.image.size) < 40 for one in sheet.scenes), "sprites are shown without what is empty around them"
    assert {one.caption for one in sheet.scenes} == {""}, "words that say what the label says are left out"
    facts = dict(sheet.facts)
    assert (facts["Model"], facts["Steps"], facts["Seeds"]) == ("miniature", "8", "1")
    assert facts["Size"] == "64 x 64 px"
    assert max(swatch.share for swatch in sheet.palette) < 1 and len(sheet.palette) >= 2
    cat = content_of(rendered, result, "cat")
    assert cat.lead == "a drawing of a cat", "without subject.json, what its prompts have in common"


def test_whole_pictures_have_colours_behind_their_masks(rendered: OutputStore, tmp_path: Path) -> None:
    selection = select(rendered, Wanted())
    names = named(selection.sources, "{subject}/{scene}.png", "png")
    result = export(rendered, open_output(tmp_path / "to"), selection, names, Recipe(PictureOptions()))
    sheet = content_of(rendered, result)
    assert {one.image.mode for one in sheet.scenes} == {"RGB"}
    ground = np.array((200, 224, 240))
    assert sheet.palette and all(np.abs(np.array(one.colour) - ground).max() > 30 for one in sheet.palette)


def test_of_many_scenes_some_are_left_out(output: OutputStore, tmp_path: Path) -> None:
    made = content(0, 0)
    assert made.left_out == 0
    pages = lay_out(SheetContent("t", "r", "l", "", (), content(0, 60).scenes, (), (), 7), paper_named("a4"), FONTS)
    assert "60 of 67" in pages[0].words and MOST_SCENES >= 60


def test_a_broken_picture_is_named(rendered: OutputStore, tmp_path: Path) -> None:
    exported(rendered, tmp_path / "to")
    rendered.write_atomic("images/moss/anchor-0.png", b"-")
    open_output(tmp_path / "to").delete("sheets/moss.pdf")
    with pytest.raises(AssetError, match=r"anchor-0\.png cannot be decoded"):
        exported(rendered, tmp_path / "to")


def test_missing_letters_are_told(rendered: OutputStore, tmp_path: Path) -> None:
    words = {"subject": "a dragon \U00013000"}
    rendered.write_atomic("anchors/moss/subject.json", json.dumps(words).encode())
    told: list[Sequence[str]] = []
    exported(rendered, tmp_path / "to", on_missing=lambda *what: told.append(what))
    assert told == [("moss", "\U00013000")]
