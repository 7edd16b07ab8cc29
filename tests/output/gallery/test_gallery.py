"""The gallery: what it shows, in which order, with every text escaped and every link going somewhere."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image

from consistory_ray.output.gallery import rows as gallery_rows
from consistory_ray.output.gallery.pages import GALLERY_PAGE, build_gallery
from consistory_ray.output.index.index import compact, read_index
from consistory_ray.output.index.rows import IndexRow
from consistory_ray.output.index.writer import IndexWriter
from consistory_ray.output.run_record import RunRecord, write_run_record
from consistory_ray.output.storage import OutputStore
from consistory_ray.pictures.provenance import TRAINED, source_type
from consistory_ray.plan.plan import Asset

HOSTILE = "\"><script>alert('x')</script><img src=x onerror=alert(1)> {{ 7 * 7 }} </title> & été 猫 \x07"


class Page(HTMLParser):
    """A page's elements: tags with their attributes, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.elements if name == tag)

    def links(self) -> list[str]:
        found = [one.get("href") for one in self.all("a")] + [one.get("src") for one in self.all("img")]
        return [link for link in found if link and not link.startswith("#")]


def page_of(store: OutputStore, path: str = GALLERY_PAGE) -> Page:
    return Page(store.read(path).decode())


def fill(store: OutputStore, rows: list[IndexRow]) -> None:
    with IndexWriter(store) as writer:
        writer.extend(rows)


def test_order_failures_and_links(store: OutputStore, render: Any, parameters: Any) -> None:
    rows = [
        render(store, 10, subject="moss-dragon"),
        render(store, 2, subject="moss-dragon"),
        render(store, 1, subject="moss-dragon", kind="anchor", scene="anchor-1"),
        render(store, 0, subject="moss-dragon", kind="anchor", scene="anchor-0"),
        IndexRow.failed(parameters(3, subject="moss-dragon"), "out of memory twice"),
        render(store, 5, subject="cat"),
    ]
    fill(store, rows)
    write_run_record(store, RunRecord("My run", "miniature", {}).update(state="failed"))
    assert build_gallery(store) == GALLERY_PAGE
    page = page_of(store)
    titles = [one["data-title"] for one in page.all("a") if "data-title" in one]
    expected = ["cat · scene-5", *(f"moss-dragon · {name}" for name in ("anchor-0", "anchor-1", "scene-2", "scene-10"))]
    assert titles == expected
    assert "out of memory twice" in page.text
    facts = re.sub(r"\s+", " ", page.text)
    for fact in ("My run", "5 pictures", "2 subjects", "1 failed", "has failures"):
        assert fact in facts
    for link in page.links():
        assert store.exists(unquote(link).removeprefix("../")), link


def test_the_plan_gives_choice_and_order(store: OutputStore, render: Any, parameters: Any) -> None:
    fill(store, [render(store, number) for number in (1, 2, 3)])

    def asset(number: int) -> Asset:
        values = parameters(number)
        return Asset(values["asset_id"], "scene", "cat", values["scene"], values["prompt"], number, "x.png")

    build_gallery(store, [asset(3), asset(1), asset(99)], title="Two of them")
    page = page_of(store)
    assert [one["data-title"] for one in page.all("a") if "data-title" in one] == ["cat · scene-3", "cat · scene-1"]
    assert "1 to come" in re.sub(r"\s+", " ", page.text)
    assert "Two of them" in page.text


def test_every_text_is_escaped(local: OutputStore, render: Any, parameters: Any) -> None:
    failed = IndexRow.failed(parameters(2, scene=HOSTILE, subject=HOSTILE), HOSTILE)
    fill(local, [render(local, 1, prompt=HOSTILE), failed])
    build_gallery(local, title=HOSTILE)
    page = page_of(local)
    assert len(list(page.all("script"))) == 1
    assert [one for one in page.all("img") if one.get("alt") == HOSTILE], "kept as text, unchanged"
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
    assert "{{" in page.text, "texts are no templates"


def test_only_the_one_script_may_run_and_nothing_is_loaded_from_elsewhere(local: OutputStore, render: Any) -> None:
    fill(local, [render(local, 1)])
    build_gallery(local)
    page = page_of(local)
    policy = next(str(one["content"]) for one in page.all("meta") if one.get("http-equiv"))
    script = re.search(r"<script>(.*?)</script>", page.html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", page.html)


def test_large_pictures_get_thumbnails_once(store: OutputStore, render: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, [render(store, 1, size=(1024, 512)), render(store, 2, size=(64, 64))])
    build_gallery(store)
    thumbnails = store.list_files("gallery/thumbnails")
    assert len(thumbnails) == 1
    small = store.read(thumbnails[0].path)
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.size) == ("WEBP", (448, 224))
    assert source_type(small) == TRAINED
    sources = [str(one["src"]) for one in page_of(store).all("img") if one.get("src")]
    assert sorted(sources) == ["../images/cat/scene-2.png", thumbnails[0].path.removeprefix("gallery/")]

    written = []
    write = OutputStore.write_atomic

    def record(self: OutputStore, path: str, data: bytes) -> None:
        written.append(path)
        write(self, path, data)

    monkeypatch.setattr(OutputStore, "write_atomic", record)
    build_gallery(store)
    assert written == [GALLERY_PAGE]


def test_missing_and_damaged_files_are_shown_as_such(store: OutputStore, render: Any) -> None:
    rows = [render(store, 1), render(store, 2, size=(600, 600)), render(store, 3, size=(600, 600))]
    fill(store, rows)
    store.delete("images/cat/scene-1.png")
    store.delete("images/cat/scene-2.png")
    store.write_atomic("images/cat/scene-3.png", b"no picture")
    build_gallery(store)
    page = page_of(store)
    assert page.text.count("the file is missing") == 2
    assert page.text.count("cannot be decoded") == 1
    assert page.links() == []


def test_pages_and_leftovers(store: OutputStore, render: Any) -> None:
    fill(store, [render(store, number, subject=f"subject-{number // 3}") for number in range(12)])
    build_gallery(store, pictures_per_page=5)
    assert [one.path for one in store.list_files("gallery")] == [
        "gallery/index.html", "gallery/page-2.html", "gallery/page-3.html", "gallery/page-4.html"
    ]  # fmt: skip
    shown = [one["data-title"] for one in page_of(store, "gallery/page-2.html").all("a") if "data-title" in one]
    assert shown == ["subject-1 · scene-3", "subject-1 · scene-4", "subject-1 · scene-5"]
    for link in page_of(store).links():
        assert store.exists(unquote(link).removeprefix("../") if link.startswith("..") else f"gallery/{link}")
    build_gallery(store)
    assert [one.path for one in store.list_files("gallery")] == ["gallery/index.html"]


WIDE = (464, 4)  # too wide for a page, and quickly made


def large_run(store: OutputStore, render: Any, parameters: Any) -> None:
    """Three subjects with two anchors, six scenes and a failure each."""
    rows = []
    for number in range(24):
        kind = {} if number % 8 > 1 else {"kind": "anchor", "scene": f"anchor-{number % 8}"}
        rows.append(render(store, number, size=WIDE, subject=f"subject-{number // 8}", **kind))
    rows += [IndexRow.failed(parameters(24 + n, subject=f"subject-{n}"), "out of memory") for n in range(3)]
    fill(store, rows)


def watch_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of the pictures that are read from now on."""
    read, paths = OutputStore.read, list[str]()

    def watched(self: OutputStore, path: str) -> bytes:
        if path.endswith(".png"):
            paths.append(path)
        return read(self, path)

    monkeypatch.setattr(OutputStore, "read", watched)
    return paths


@pytest.mark.parametrize("limited_by", ["number", "bytes"])
def test_a_large_run_is_not_read_again(
    store: OutputStore, render: Any, parameters: Any, monkeypatch: pytest.MonkeyPatch, limited_by: str
) -> None:
    """An even share of each subject is shown, with a bounded number of thumbnails; the rest is linked, and told of."""
    large_run(store, render, parameters)
    reads = watch_reads(monkeypatch)
    if limited_by == "bytes":
        size = sum(file.size for file in store.list_files("images")) // 24
        monkeypatch.setattr(gallery_rows, "MAX_THUMBNAIL_BYTES", 7 * size)
    build_gallery(store, max_thumbnails=6 if limited_by == "number" else 2000)
    assert 6 <= len(reads) <= 7 and len(set(reads)) == len(reads)
    page = page_of(store)
    shown = [str(one["data-title"]) for one in page.all("a") if "data-title" in one]
    assert shown == [f"subject-{n} · {name}" for n in range(3) for name in ("anchor-0", "anchor-1", *_scenes(n)[:2])]
    sources = [str(one["src"]) for one in page.all("img") if one.get("src")]
    assert sum(source.startswith("thumbnails/") for source in sources) == len(reads)
    named = [str(one.get("href")) for one in page.all("a") if "data-title" not in one and "../" in str(one.get("href"))]
    assert named == [f"../images/subject-{n}/{name}.png" for n in range(3) for name in _scenes(n)[2:]]
    for link in page.links():
        assert store.exists(unquote(link).removeprefix("../") if link.startswith("..") else f"gallery/{link}"), link
    facts = re.sub(r"\s+", " ", page.text)
    for fact in ("24 pictures", "3 failed", "of each subject at most 4 pictures", "4 more pictures, by name"):
        assert fact in facts, fact
    reads.clear()
    build_gallery(store, max_thumbnails=6)
    assert len(reads) <= 6, "the others are as they were"


def _scenes(subject: int) -> list[str]:
    return [f"scene-{number}" for number in range(8 * subject + 2, 8 * subject + 8)]


def test_everything_can_be_asked_for_and_then_stays(
    local: OutputStore, render: Any, parameters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    large_run(local, render, parameters)
    build_gallery(local, max_thumbnails=None)
    assert len(local.list_files("gallery/thumbnails")) == 24
    assert "A large run" not in page_of(local).text
    reads = watch_reads(monkeypatch)
    build_gallery(local, max_thumbnails=6)
    assert "A large run" not in page_of(local).text and not reads, "thumbnails that are there cost nothing"
    monkeypatch.setattr(gallery_rows, "MAX_CARDS", 15)
    build_gallery(local, max_thumbnails=6)
    assert "at most 5 pictures" in page_of(local).text
    assert len(local.list_files("gallery/thumbnails")) == 24, "the work of an hour is not thrown away"
    local.delete(str(read_index(local)["path"][0]))
    compact(local, drop=[read_index(local)["asset_id"][0].as_py()])
    build_gallery(local)
    assert len(local.list_files("gallery/thumbnails")) == 23


def test_what_is_neither_shown_nor_linked_is_counted(
    local: OutputStore, render: Any, parameters: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [render(local, number) for number in range(9)]
    fill(local, [*rows, *(IndexRow.failed(parameters(number), "broke") for number in range(9, 15))])
    for name, value in (("MAX_CARDS", 4), ("MAX_LINKS", 2)):
        monkeypatch.setattr(gallery_rows, name, value)
    build_gallery(local)
    text = re.sub(r"\s+", " ", page_of(local).text)
    assert "9 pictures 1 subject 6 failed" in text
    assert "2 more pictures, by name" in text and "3 further pictures and 2 more failures not listed here." in text
    assert text.count("Failedbroke") == 4


def test_nothing_yet(store: OutputStore) -> None:
    build_gallery(store)
    assert "No pictures yet" in page_of(store).text
