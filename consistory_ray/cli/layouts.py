"""What ``export`` makes of many pictures, as its options say: checked before anything is read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consistory_ray.cli.common import err
from consistory_ray.errors import InputError, Problem
from consistory_ray.export.packing import PageRules, check_rules
from consistory_ray.watch.reports import line

if TYPE_CHECKING:
    from consistory_ray.export.atlas_files import AtlasRules
    from consistory_ray.export.character_sheet.fonts import Fonts
    from consistory_ray.export.exporting import Product
    from consistory_ray.export.selection import Selection
    from consistory_ray.output.storage import OutputStore


@dataclass(frozen=True)
class Layouts:
    """What is made of an export's pictures together.

    Attributes:
        atlas: how they are laid out on pages; None for no atlases.
        paper, fonts: of character sheets; None for none.
    """

    atlas: AtlasRules | None = None
    paper: str | None = None
    fonts: Fonts | None = None

    @property
    def folders(self) -> list[str]:
        """Where they are, below the export."""
        return ["atlas"] * (self.atlas is not None) + ["sheets"] * (self.paper is not None)

    def names(self, selection: Selection) -> list[str]:
        """Of their files, as far as they are known before they are made."""
        subjects, found = {source.subject for source in selection.sources}, []
        if self.atlas is not None:
            from consistory_ray.export.atlas_product import first_names as of_atlases

            found += of_atlases(self.atlas, subjects)
        if self.paper is not None:
            from consistory_ray.export.character_sheet.product import first_names as of_sheets

            found += of_sheets(subjects)
        return found

    def products(
        self,
        output: OutputStore,
        selection: Selection,
        on_progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> list[Product]:
        """What makes them, of the pictures of an output that are exported."""
        made: list[Product] = []
        if self.atlas is not None:
            from consistory_ray.export.atlas_product import Atlases

            sizes = {source.asset_id: (source.width, source.height) for source in selection.sources}
            made.append(Atlases(self.atlas, sizes, on_progress, should_stop))
        if self.paper is not None and self.fonts is not None:
            from consistory_ray.export.character_sheet.product import CharacterSheets

            sheets = CharacterSheets(
                output,
                {source.asset_id: source for source in selection.sources},
                self.paper,
                self.fonts,
                on_progress=on_progress,
                should_stop=should_stop,
                on_missing=_tell_missing,
            )
            made.append(sheets)
        return made


def atlas_rules(
    arrangement: str | None, pages: PageRules, per: str, ending: str, pivot: tuple[float, float]
) -> AtlasRules | None:
    """How atlases are to be made; None where none were asked for.

    Args:
        arrangement: ``packed`` or ``grid``; None for no atlases.
        pages: what else was said of pages.
        per, pivot: see :class:`~consistory_ray.export.atlas_files.AtlasRules`.
        ending: the format of pages, that of the pictures.

    Raises:
        InputError: there can be no such atlases, or only their details were given.
    """
    from consistory_ray.export.atlas_files import AtlasRules

    rules = AtlasRules(pages, per, ending, pivot)  # type: ignore[arg-type]  # the command line has checked
    if arrangement is None:
        if rules != AtlasRules(format=ending):  # type: ignore[arg-type]
            fix = "add --atlas packed or --atlas grid to what is said of atlases"
            raise InputError("no atlas was asked for", [Problem("--atlas", "", fix)])
        return None
    check_rules(pages)
    if not all(-16 <= share <= 16 for share in pivot):
        raise InputError("there can be no such atlas", [Problem("--atlas-pivot", str(pivot), "give shares, as 0.5 1")])
    if arrangement == "packed":
        _check_installed("rectpack", "--atlas", arrangement)
    return rules


def sheet_fonts(paper: str | None, font: str | None) -> Fonts | None:
    """The fonts of character sheets; None where none were asked for.

    Raises:
        InputError: the font cannot be used, or there is nothing that writes PDF.
    """
    if paper is None:
        if font is not None:
            raise InputError("no sheet was asked for", [Problem("--sheet-font", font, "add --sheet a4")])
        return None
    from consistory_ray.export.character_sheet.fonts import find_fonts

    _check_installed("reportlab", "--sheet", paper)
    return find_fonts(font)


def _check_installed(package: str, option: str, value: str) -> None:
    if importlib.util.find_spec(package) is None:
        fix = "pip install 'consistory-ray[export]'"
        raise InputError(f"{option} needs {package}", [Problem(option, value, fix)])


def _tell_missing(subject: str, letters: str) -> None:
    told = f"the sheet of {subject} has boxes for letters that its font lacks, give another with --sheet-font"
    line(err, f"{told}: {letters[:40]}", "yellow")
