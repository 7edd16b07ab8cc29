"""The command that takes pictures out of an output: chosen, cut out, named by a layout, and listed in a manifest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import typer

from consistory_ray.cli.common import EXIT_FAILED, counting, exits, out, print_json
from consistory_ray.cli.export_options import (
    AllTakes,
    Anchors,
    C2paFiles,
    C2paPrompt,
    C2paTsa,
    Checks,
    ExportFolder,
    ExportScenes,
    ExportSubjects,
    ExportWorkers,
    FormatOption,
    KeepMetadata,
    Layout,
    MattingOption,
    Padding,
    Picked,
    PowerOfTwo,
    Prune,
    Scale,
    Size,
    Sprites,
    Trim,
    WatermarkOption,
)
from consistory_ray.cli.layout_options import (
    RULES,
    AtlasExtrude,
    AtlasOption,
    AtlasPadding,
    AtlasPer,
    AtlasPivot,
    AtlasPowerOfTwo,
    AtlasRotate,
    AtlasSize,
    SheetFont,
    SheetOption,
)
from consistory_ray.cli.options import AsJson, Url
from consistory_ray.engine.stopping import StopRequest, stop_on_signals
from consistory_ray.export.packing import PageRules
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.watch.reports import line

if TYPE_CHECKING:
    from consistory_ray.export.exporting import Exported

_LISTED = 20
_MOST_PROCESSES = 8


@exits
def export(
    url: Url,
    to: ExportFolder,
    subject: ExportSubjects = None,
    scene: ExportScenes = None,
    all_takes: AllTakes = False,
    picked: Picked = False,
    anchors: Anchors = False,
    sprites: Sprites = False,
    matting: MattingOption = "pymatting",
    trim: Trim = True,
    padding: Padding = 0,
    power_of_two: PowerOfTwo = False,
    scale: Scale = 1.0,
    size: Size = None,
    layout: Layout = None,
    format: FormatOption = None,
    metadata: KeepMetadata = True,
    check: Checks = None,
    watermark: WatermarkOption = None,
    c2pa: C2paFiles = None,
    c2pa_prompt: C2paPrompt = False,
    c2pa_tsa: C2paTsa = None,
    prune: Prune = False,
    workers: ExportWorkers = None,
    atlas: AtlasOption = None,
    atlas_per: AtlasPer = "subject",
    atlas_size: AtlasSize = RULES.size,
    atlas_padding: AtlasPadding = RULES.padding,
    atlas_extrude: AtlasExtrude = RULES.extrude,
    atlas_power_of_two: AtlasPowerOfTwo = RULES.power_of_two,
    atlas_rotate: AtlasRotate = RULES.rotate,
    atlas_pivot: AtlasPivot = (0.5, 0.5),
    sheet: SheetOption = None,
    sheet_font: SheetFont = None,
    as_json: AsJson = False,
) -> None:
    """Write an output's pictures as files to ship: named by a layout, as sprites if asked for, with a manifest.

    The same command again writes only what has changed, and goes on where it was stopped. Exit code 1: pictures could
    not be made, and are listed.
    """
    from consistory_ray.cli.layouts import Layouts, atlas_rules, sheet_fonts
    from consistory_ray.export.exporting import export as write
    from consistory_ray.export.exporting import told
    from consistory_ray.export.finishing import finish
    from consistory_ray.export.making import Recipe
    from consistory_ray.export.naming import ALL_TAKES, ONE_TAKE, ending_of, named
    from consistory_ray.export.options import PictureOptions, check_installed
    from consistory_ray.export.selection import Wanted, select
    from consistory_ray.output.storage import open_output

    check_allowed("URL", url)
    check_allowed("--to", to)
    if c2pa_tsa is not None:
        check_allowed("--c2pa-tsa", c2pa_tsa)
    finished = finish(
        mark=watermark, checks=check or (), credentials=c2pa, with_prompt=c2pa_prompt, timestamps=c2pa_tsa
    )
    template = layout or (ALL_TAKES if all_takes else ONE_TAKE)
    options = PictureOptions(
        sprites=sprites,
        matting=matting,
        trim=trim,
        scale=scale,
        size=size,
        padding=padding,
        power_of_two=power_of_two,
        ending=format or ending_of(template) or "png",
        metadata=metadata,
        further=finished.further,
    )
    check_installed(options)
    pages = PageRules(
        atlas or RULES.arrangement, atlas_size, atlas_padding, atlas_extrude, atlas_power_of_two, atlas_rotate
    )
    layouts = Layouts(
        atlas_rules(atlas, pages, atlas_per, options.ending, atlas_pivot), sheet, sheet_fonts(sheet, sheet_font)
    )
    output, target = open_output(url), open_output(to)
    selection = select(output, Wanted(tuple(subject or ()), tuple(scene or ()), all_takes, picked, anchors))
    names = named(selection.sources, template, options.ending)
    processes = 0 if not sprites else workers if workers is not None else min(os.cpu_count() or 1, _MOST_PROCESSES)
    stop = StopRequest()
    with stop_on_signals(stop), counting("exporting") as on_progress:
        result = write(
            output,
            target,
            selection,
            names,
            Recipe(options, finished.marks, finished.checks),
            sign=finished.sign,
            products=layouts.products(output, selection, on_progress, lambda: bool(stop)),
            product_names=layouts.names(selection),
            prune=prune,
            processes=processes,
            on_progress=on_progress,
            should_stop=lambda: bool(stop),
        )
    if as_json:
        print_json(told(result))
    else:
        _print(result)
        for folder in layouts.folders:
            line(out, f"{result.url}/{folder}")
    raise typer.Exit(EXIT_FAILED if result.failures else 0)


def _print(result: Exported) -> None:
    """What came of it, for people."""
    for record in [record for record in result.records if record.state == "touches_frame"][:_LISTED]:
        line(out, f"{record.file}: {record.note}", "yellow")
    for record in result.failures[:_LISTED]:
        line(out, f"not made: {record.file}: {record.note}", "bold red")
    if len(result.failures) > _LISTED:
        line(out, f"and {len(result.failures) - _LISTED} more: {result.url}/manifest.csv", "bold red")
    for name in result.stale[:_LISTED]:
        line(out, f"not asked for any more: {name}", "yellow")
    if result.stale:
        line(out, f"{len(result.stale)} files of earlier exports are still there; --prune deletes them", "yellow")
    if result.left_out:
        counts = ", ".join(f"{count} {status}" for status, count in result.left_out.items())
        line(out, f"without a picture that may be exported: {counts}", "yellow")
    counts = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in result.counts.items())
    made = (
        f"{result.written} files written, {sum(one.is_there for one in result.records) - result.written} as they were"
    )
    line(out, f"{made} ({counts})" + (f", {len(result.pruned)} deleted" if result.pruned else ""), "bold")
    line(out, f"{result.url}/manifest.json")
