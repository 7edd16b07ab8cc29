"""Options of ``export`` for what is made of many pictures: atlases and character sheets."""

from __future__ import annotations

from typing import Annotated, Literal, Optional

import typer

from consistory_ray.export.packing import PageRules

# ruff: noqa: UP045, older typers do not read the other spelling

ATLASES = "Atlases"
SHEETS = "Character sheets"
RULES = PageRules()
PaperName = Literal["a4", "a4-landscape", "letter", "letter-landscape"]

AtlasOption = Annotated[
    Optional[Literal["packed", "grid"]],
    typer.Option(
        "--atlas",
        help="Lay the pictures out on pages, with TexturePacker's JSON hash beside each: packed closely, or in cells "
        "of one size.",
        rich_help_panel=ATLASES,
    ),
]
AtlasPer = Annotated[
    Literal["subject", "all"],
    typer.Option("--atlas-per", help="One for each subject, or one for all.", rich_help_panel=ATLASES),
]
AtlasSize = Annotated[
    int, typer.Option("--atlas-size", metavar="N", help="Longest side of a page in pixels.", rich_help_panel=ATLASES)
]
AtlasPadding = Annotated[
    int, typer.Option("--atlas-padding", metavar="N", help="Empty pixels between two frames.", rich_help_panel=ATLASES)
]
AtlasExtrude = Annotated[
    int,
    typer.Option("--atlas-extrude", metavar="N", help="How often a frame's border pixels are repeated around it.",
                 rich_help_panel=ATLASES),
]  # fmt: skip
AtlasPowerOfTwo = Annotated[
    bool, typer.Option("--atlas-power-of-two/--atlas-any-size", help="Sides of pages.", rich_help_panel=ATLASES)
]
AtlasRotate = Annotated[
    bool,
    typer.Option("--atlas-rotate", help="Turn frames by a quarter where that saves room: PixiJS can draw them, Phaser "
                 "cannot.", rich_help_panel=ATLASES),
]  # fmt: skip
AtlasPivot = Annotated[
    tuple[float, float],
    typer.Option("--atlas-pivot", metavar="X Y", help="The point that a frame is placed by, in shares of its width and "
                 "height; 0.5 1 stands it on the ground.", rich_help_panel=ATLASES),
]  # fmt: skip
SheetOption = Annotated[
    Optional[PaperName],
    typer.Option(
        "--sheet",
        help="Write a page for print about each subject, as PDF and PNG: anchors, scenes, colours and words.",
        rich_help_panel=SHEETS,
    ),
]
SheetFont = Annotated[
    Optional[str],
    typer.Option("--sheet-font", metavar="FILE", help="A TrueType font for letters that the usual ones lack.",
                 rich_help_panel=SHEETS),
]  # fmt: skip
