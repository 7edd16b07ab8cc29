"""Options of ``export``: which pictures, what is made of them, and where they go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Optional

import typer

# ruff: noqa: UP045, older typers do not read the other spelling

WHICH = "Which pictures"
CUT = "Cut out"
FILES = "Files"
MARKS = "Checks, marks and signatures"

ExportFolder = Annotated[
    str, typer.Option("--to", metavar="DIR", help="Where to: a folder or fsspec URL.", rich_help_panel=FILES)
]
ExportSubjects = Annotated[
    Optional[list[str]],
    typer.Option(metavar="ID", help="Only this subject; * and ? stand for letters; may be repeated.",
                 rich_help_panel=WHICH),
]  # fmt: skip
ExportScenes = Annotated[
    Optional[list[str]],
    typer.Option(metavar="ID", help="Only this scene of each subject, as --subject.", rich_help_panel=WHICH),
]
AllTakes = Annotated[
    bool, typer.Option("--all-takes", help="Every take, not only the one that counts.", rich_help_panel=WHICH)
]
Picked = Annotated[bool, typer.Option("--picked", help="Only what a reviewer has picked.", rich_help_panel=WHICH)]
Anchors = Annotated[
    bool, typer.Option("--anchors", help="The pictures that define the subjects, too.", rich_help_panel=WHICH)
]
Sprites = Annotated[
    bool, typer.Option("--sprites", help="Cut the subject out, onto transparent ground.", rich_help_panel=CUT)
]
MattingOption = Annotated[
    Literal["pymatting", "rembg", "none"],
    typer.Option("--matting", help="How the edge is found; none: by the run's mask alone.", rich_help_panel=CUT),
]
Trim = Annotated[bool, typer.Option(help="Cut away what is empty around a sprite.", rich_help_panel=CUT)]
Padding = Annotated[
    int, typer.Option("--padding", min=0, metavar="N", help="Transparent pixels on every side.", rich_help_panel=CUT)
]
PowerOfTwo = Annotated[
    bool, typer.Option("--power-of-two", help="Widen both sides to powers of two.", rich_help_panel=CUT)
]
Scale = Annotated[float, typer.Option(metavar="F", help="Of both sides.", rich_help_panel=FILES)]
Size = Annotated[
    Optional[int],
    typer.Option(min=1, metavar="N", help="The longer side in pixels, before padding.", rich_help_panel=FILES),
]
Layout = Annotated[
    Optional[str],
    typer.Option(
        metavar="TEMPLATE",
        help="Names of the files, in jinja2 or single braces: {subject}/{scene}_{take}.png; without it, "
        "{subject}/{scene}.png, with --all-takes that of the line before.",
        rich_help_panel=FILES,
    ),
]
FormatOption = Annotated[
    Optional[Literal["png", "webp"]],
    typer.Option("--format", help="Without it, as the layout ends, or png. WebP is lossless.", rich_help_panel=FILES),
]
KeepMetadata = Annotated[
    bool, typer.Option("--metadata/--no-metadata", help="Keep prompt, seed and settings in it.", rich_help_panel=FILES)
]
Prune = Annotated[
    bool,
    typer.Option("--prune", help="Delete files of earlier exports that are not asked for.", rich_help_panel=FILES),
]
ExportWorkers = Annotated[
    Optional[int],
    typer.Option("--workers", min=0, metavar="N", help="Processes that cut out; without it, one per core, at most 8.",
                 rich_help_panel=CUT),
]  # fmt: skip
Checks = Annotated[
    Optional[list[str]],
    typer.Option("--check", metavar="MODULE:NAME", rich_help_panel=MARKS,
                 help="A function of yours, from a picture to a reason not to export it, or None; may be repeated."),
]  # fmt: skip
WatermarkOption = Annotated[
    Optional[str],
    typer.Option("--watermark", metavar="MODULE:NAME", rich_help_panel=MARKS,
                 help="A function of yours, from a picture to one of the same size with your mark in it."),
]  # fmt: skip
C2paFiles = Annotated[
    Optional[tuple[Path, Path]],
    typer.Option("--c2pa", metavar="CERT KEY", rich_help_panel=MARKS,
                 help="Sign with Content Credentials: certificates, the signer's first, and private key, PEM."),
]  # fmt: skip
C2paPrompt = Annotated[
    bool, typer.Option("--c2pa-prompt", help="Tell the prompt in what is signed.", rich_help_panel=MARKS)
]
C2paTsa = Annotated[
    Optional[str],
    typer.Option("--c2pa-tsa", metavar="URL", rich_help_panel=MARKS,
                 help="Ask this time stamp authority for every picture; without it nothing is asked."),
]  # fmt: skip
