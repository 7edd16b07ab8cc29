"""The documents: what they name is there, what is there they name, and their pictures are of the committed weights."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from consistory_ray.settings import BUNDLED_MODEL, model_revision

ROOT = Path(__file__).parent.parent
PACKAGE, DOCS, IMAGES = ROOT / "consistory_ray", ROOT / "docs", ROOT / "docs" / "images"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "pipelines" / "README.md", *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\]\(([^()\s]+)\)")
PATH = re.compile(r"`((?:consistory_ray|tests|scripts|benchmarks|pipelines|docs|cluster|helm|training)/[\w./*-]+)`")
KILOBYTE = 1000


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for link in LINK.findall(text):
        if "://" in link:
            continue
        place, _, heading = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not heading or heading in headings(target), link
    wrong = [name for name in PATH.findall(text) if not any(ROOT.glob(name.rstrip("/")))]
    assert not wrong


def test_every_page_is_in_the_table_of_contents() -> None:
    named = set(LINK.findall((DOCS / "README.md").read_text()))
    assert {page.name for page in DOCS.glob("*.md")} - {"README.md"} <= named


def test_every_room_is_on_the_map() -> None:
    named = set(PATH.findall((DOCS / "architecture.md").read_text()))
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("__init__.py")} - {"consistory_ray"}
    assert rooms <= named
    assert {f"consistory_ray/{path.name}" for path in PACKAGE.glob("*.py")} - {"consistory_ray/__init__.py"} <= named


def test_cited_sections_exist() -> None:
    numbered = set(re.findall(r"^## (\d+)\. ", (DOCS / "method.md").read_text(), flags=re.MULTILINE))
    cited = {
        (path.relative_to(ROOT).as_posix(), number, where)
        for path in PACKAGE.rglob("*.py")
        for number, where in re.findall(
            r"[Ss]ection\s+(\d[\d.]*\d|\d)\s+of\s+(docs/method\.md|the\s+method|the\s+paper)", path.read_text()
        )
    }
    assert {where for _, _, where in cited} == {"docs/method.md", "the paper"}
    assert {number for _, number, where in cited if where == "docs/method.md"} <= numbered
    assert all(number.startswith("3.") for _, number, where in cited if where == "the paper"), cited


def test_pictures_are_named_and_small() -> None:
    named = {Path(link).name for page in PAGES for link in LINK.findall(page.read_text())}
    assert {path.name for path in IMAGES.iterdir()} <= named
    sizes = {path.name: path.stat().st_size for path in IMAGES.iterdir() if path.name != "consistency.png"}
    assert max(sizes.values()) <= 150 * KILOBYTE, sizes
    assert sum(sizes.values()) <= 1000 * KILOBYTE, sizes


def test_the_methods_pictures_are_of_the_bundled_weights() -> None:
    """After a change of the weights or of the drawing: ``python scripts/method_pictures.py``."""
    told = json.loads((IMAGES / "method.json").read_text())
    assert told["model_revision"] == model_revision(BUNDLED_MODEL)
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in IMAGES.glob("method-*.webp")}
    assert told["sha256"] == found
    assert len(found) >= 5


def test_diagrams_are_current() -> None:
    """``python scripts/diagrams.py`` writes them."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "diagrams.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
