"""Character sheets as a product of an export: ``sheets/moss-dragon.pdf``, ``sheets/moss-dragon.png`` and, of sheets of
several pages, ``sheets/moss-dragon~2.png`` and so on.

A PDF tells, in its keywords, what the sheet depends on and the checksums of its PNG pages, so that from the same
material the same files follow without drawing them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from consistory_ray.errors import RunInterrupted
from consistory_ray.export.character_sheet.drawing import DPI, as_pdf, as_png
from consistory_ray.export.character_sheet.fonts import Fonts
from consistory_ray.export.character_sheet.layout import lay_out
from consistory_ray.export.character_sheet.primitives import paper_named
from consistory_ray.export.character_sheet.reading import Material, materials, read_content
from consistory_ray.export.records import Record
from consistory_ray.export.selection import Source
from consistory_ray.output.storage import MissingFileError, OutputStore, UnfitFileError

SHEET_FOLDER = "sheets"
LAYOUT_VERSION = 1
"""Goes up when the same material would be drawn otherwise."""
_KEYWORDS = re.compile(rb"sheet:([0-9a-f]{64})((?: page:[0-9a-f]{64})+)")


@dataclass(frozen=True)
class CharacterSheets:
    """Makes an export's character sheets.

    Attributes:
        output: where the pictures were rendered.
        sources: the exported pictures, by asset.
        paper: see :func:`.primitives.paper_named`.
        fonts: see :func:`.fonts.find_fonts`.
        dpi: dots per inch of PNG pages.
        on_progress: is told how many of how many sheets are made.
        should_stop: is asked before every sheet whether to stop.
        on_missing: is told of letters that the font does not have, and in whose sheet.
    """

    output: OutputStore
    sources: Mapping[str, Source]
    paper: str
    fonts: Fonts
    dpi: int = DPI
    on_progress: Callable[[int, int], None] | None = None
    should_stop: Callable[[], bool] = lambda: False
    on_missing: Callable[[str, str], None] = field(default=lambda _subject, _letters: None)

    def __call__(self, store: OutputStore, records: Sequence[Record]) -> Iterator[tuple[str, bytes]]:
        """The files of the sheets, PNG pages before their PDF.

        Raises:
            AssetError: a picture cannot be decoded.
            RunInterrupted: it was stopped.
            StorageError: the storage failed.
        """
        found = list(materials(self.output, records, self.sources))
        for number, material in enumerate(found):
            if self.should_stop():
                raise RunInterrupted(
                    f"stopped with {number} of {len(found)} character sheets; the same command goes on"
                )
            yield from self._sheet(store, material)
            if self.on_progress is not None:
                self.on_progress(number + 1, len(found))

    def _sheet(self, store: OutputStore, material: Material) -> Iterator[tuple[str, bytes]]:
        key = self._key(material)
        there = _kept(store, material.subject, key)
        if there is not None:
            yield from there
            return
        content = read_content(material, self.output, store)
        pages = lay_out(content, paper_named(self.paper), self.fonts)
        if missing := self.fonts.missing("".join(page.words for page in pages)):
            self.on_missing(material.subject, missing)
        checksums = []
        for number, page in enumerate(pages):
            data = as_png(page, self.fonts, self.dpi)
            checksums.append(f" page:{hashlib.sha256(data).hexdigest()}")
            yield _page_path(material.subject, number), data
        yield _pdf_path(material.subject), as_pdf(pages, self.fonts, content.title, f"sheet:{key}{''.join(checksums)}")

    def _key(self, material: Material) -> str:
        parts = [
            LAYOUT_VERSION,
            self.paper,
            self.dpi,
            self.fonts.regular.name,
            self.fonts.bold.name,
            material.identity(),
        ]
        return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def first_names(subjects: Iterable[str]) -> list[str]:
    """Names of the files that sheets of these subjects have in any case; how many pages follow is not known yet."""
    return [path for subject in sorted(set(subjects)) for path in (_page_path(subject, 0), _pdf_path(subject))]


def _pdf_path(subject: str) -> str:
    return f"{SHEET_FOLDER}/{subject}.pdf"


def _page_path(subject: str, number: int) -> str:
    return f"{SHEET_FOLDER}/{subject}{f'~{number + 1}' if number else ''}.png"


def _kept(store: OutputStore, subject: str, key: str) -> list[tuple[str, bytes]] | None:
    """The files of a sheet that is there, whole and of the same material."""
    try:
        pdf = store.read(_pdf_path(subject))
        said = _KEYWORDS.search(pdf)
        if said is None or said[1].decode() != key or not pdf.rstrip().endswith(b"%%EOF"):
            return None
        files = []
        for number, checksum in enumerate(said[2].decode().split(" page:")[1:]):
            page = store.read(_page_path(subject, number))
            if hashlib.sha256(page).hexdigest() != checksum:
                return None
            files.append((_page_path(subject, number), page))
    except (MissingFileError, UnfitFileError):
        return None
    return [*files, (_pdf_path(subject), pdf)]
