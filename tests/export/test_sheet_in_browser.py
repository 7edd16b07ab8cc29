"""A sheet's PDF in PDF.js, which Firefox shows PDF with: words can be selected, and pages look like the PNG."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from consistory_ray.export.character_sheet.content import SheetContent, Shown, Swatch
from consistory_ray.export.character_sheet.drawing import as_pdf, as_png
from consistory_ray.export.character_sheet.fonts import find_fonts
from consistory_ray.export.character_sheet.layout import lay_out
from consistory_ray.export.character_sheet.primitives import paper_named
from tests.export.browser import from_npm, needs_chromium, opened, picture_at
from tests.export.layouts import blob

pytestmark = [pytest.mark.slow, needs_chromium]

PAGE = """<!doctype html>
<link rel="icon" href="data:,">
<script type="module">
import * as pdfjs from "/pdf.min.mjs";
pdfjs.GlobalWorkerOptions.workerSrc = "/pdf.worker.min.mjs";
window.read = async () => {
  const file = await pdfjs.getDocument("/sheet.pdf").promise, pages = [];
  for (let number = 1; number <= file.numPages; number++) {
    const page = await file.getPage(number), viewport = page.getViewport({scale: 1});
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [viewport.width, viewport.height];
    await page.render({canvas, viewport}).promise;
    const words = (await page.getTextContent()).items.map(one => one.str).join(" ");
    pages.push({words, picture: canvas.toDataURL()});
  }
  return {pages, info: (await file.getMetadata()).info};
};
window.ready = true;
</script>
"""


def test_a_pdf_reader_shows_what_the_png_shows(tmp_path: Path) -> None:
    fonts = find_fonts()
    scenes = tuple(Shown(blob(n), f"scene-{n}", "żółw над водой", "seed 7") for n in range(40))
    anchors = (Shown(blob(99).convert("RGB"), "Anchor 1", "on the beach"), Shown(blob(98), "Anchor 2", ""))
    colours = (Swatch((200, 30, 40), 0.7), Swatch((30, 160, 60), 0.3))
    content = SheetContent("moss", "run", "ein Drache", "mit Hut", anchors, scenes, colours, (("Model", "miniature"),))
    pages = lay_out(content, paper_named("a4-landscape"), fonts)
    (tmp_path / "sheet.pdf").write_bytes(as_pdf(pages, fonts, "moss", "key"))
    (tmp_path / "index.html").write_text(PAGE)
    for name in ("pdf.min.mjs", "pdf.worker.min.mjs"):
        shutil.copy(from_npm("pdfjs-dist", "5.6.205") / "build" / name, tmp_path)
    with opened(tmp_path, "index.html") as page:
        page.wait_for_function("window.ready")
        found = page.evaluate("read()")
    assert found["info"]["Title"] == "moss" and len(found["pages"]) == len(pages) > 1
    words = " ".join(one["words"] for one in found["pages"])
    for said in ("moss", "ein Drache", "mit Hut", "#c81e28", "miniature", "scene-39", "żółw над водой"):
        assert said in words, said
    for number, (one, expected) in enumerate(zip(found["pages"], pages, strict=True)):
        shown, png = picture_at(one["picture"]), Image.open(io.BytesIO(as_png(expected, fonts))).convert("RGB")
        if look := os.environ.get("LOOK_AT"):
            shown.save(f"{look}/pdf-{number}.png")
        smooth = [
            np.asarray(image.resize(shown.size, Image.Resampling.BOX).filter(ImageFilter.BoxBlur(3))).astype(int)
            for image in (shown, png)
        ]
        difference = np.abs(smooth[0] - smooth[1])
        assert difference.max() < 80 and difference.mean() < 1.5, (difference.max(), difference.mean())
