"""Draws the diagrams of docs/method.md and docs/architecture.md as SVG.

    python scripts/diagrams.py [--check]

    docs/images/method-steps.svg     which step of which pass does what, from the default settings' own plan
    docs/images/architecture.svg     how a scene flows through the rooms

With --check nothing is written, and the exit code says whether both are current. Needs neither torch nor Ray.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

from consistory_ray.consistory.method.steps import StepPlan, nearest_step
from consistory_ray.settings import MethodSettings

OUT = Path(__file__).resolve().parent.parent / "docs" / "images"
INK, QUIET, PAPER, LINE = "#3c3844", "#76727f", "#ffffff", "#c9c6d0"
SHARE, BLEND, INJECT, MAPS, FORK = "#7aa6d8", "#f0b35c", "#d6542c", "#8fbf88", "#8f6bb3"
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"


class Drawing:
    """An SVG picture on white paper, from top left, in pixels."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            f' font-family="{FONT}" role="img">',
            f"<title>{escape(title)}</title>",
            f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"'
            f' markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>',
        ]
        self.box(0, 0, width, height, PAPER, rounded=0)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        outline: str = "none",
        rounded: float = 6,
        opacity: float = 1,
    ) -> None:
        """A rectangle."""
        faint = f' fill-opacity="{opacity:g}"' if opacity < 1 else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{rounded:g}" fill="{fill}"'
            f' stroke="{outline}"{faint}/>'
        )

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 13,
        colour: str = INK,
        anchor: str = "start",
        *,
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        """A line of words; y is its base line."""
        style = ' font-weight="bold"' if bold else ""
        style += " font-family=\"'DejaVu Sans Mono', Menlo, Consolas, monospace\"" if mono else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"{style}>'
            f"{escape(words)}</text>"
        )

    def path(
        self, points: str, colour: str = INK, *, dashed: bool = False, arrow: bool = True, width: float = 1.5
    ) -> None:
        """A line along SVG path commands."""
        style = ' stroke-dasharray="5 4"' if dashed else ""
        style += ' marker-end="url(#tip)"' if arrow else ""
        self.parts.append(f'<path d="{points}" fill="none" stroke="{colour}" stroke-width="{width:g}"{style}/>')

    def number(self, x: float, y: float, number: int) -> None:
        """A number in a disc."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="10" fill="{INK}"/>')
        self.text(x, y + 4.5, str(number), 12.5, PAPER, "middle", bold=True)

    def svg(self) -> str:
        """The file's text."""
        return "\n".join([*self.parts, "</svg>\n"])


def steps_diagram() -> str:
    """What each step of the two passes does, for a scene with the default settings."""
    settings = MethodSettings()
    plan = StepPlan.from_settings(settings)
    assert plan.fork is not None
    spacing = 1000 // plan.steps
    timesteps = [1 + spacing * (plan.steps - 1 - step) for step in range(plan.steps)]
    dift = nearest_step(timesteps, settings.dift_timestep)
    cell, left, row = 15, 190, 26
    drawing = Drawing(left + cell * plan.steps + 24, 440, "The steps of the two passes")

    def x(step: float) -> float:
        return left + cell * step

    def band(top: float, steps: range, colour: str, words: str, *, fading: bool = False) -> None:
        for step in steps:
            share = plan.blend_weight(step) if fading else 1
            drawing.box(x(step) + 0.75, top, cell - 1.5, row - 6, colour, rounded=2, opacity=round(share**3, 3))
        drawing.text(left - 12, top + row - 12, words, 13, INK, "end")

    drawing.text(left - 12, 24, "step", 12, QUIET, "end")
    drawing.text(left - 12, 40, "timestep t", 12, QUIET, "end")
    for step in sorted({0, plan.fork, plan.injected[-1], plan.masked[0], dift, plan.steps - 1}):
        drawing.text(x(step + 0.5), 24, str(step), 12, INK, "middle")
        drawing.text(x(step + 0.5), 40, str(timesteps[step]), 12, QUIET, "middle")

    low, fork = 304, x(plan.fork)
    middle = x(plan.injected[len(plan.injected) // 2] + 1)

    def frame(top: float, height: float, name: str, note: str) -> None:
        drawing.box(8, top, x(plan.steps) + 8, height, "#f7f7f9", LINE)
        drawing.text(20, top + 22, name, 15, bold=True)
        drawing.text(middle + 14, top + 22, note, 13, QUIET)

    frame(52, 156, "Pass 1", "finds masks and correspondences; its picture is thrown away")
    top = 84
    band(top, range(plan.steps), "#d9d7de", "denoise")
    band(top + row, plan.shared_in(1), SHARE, "share (section 3)")
    band(top + 2 * row, range(1, len(plan.blended)), BLEND, "blend queries (4)", fading=True)
    band(top + 3 * row, plan.masked, MAPS, "record maps (2)")
    drawing.box(x(dift) + 0.75, top + 2 * row, cell - 1.5, row - 6, FORK, rounded=2)
    drawing.text(x(dift) - 6, top + 2 * row + 14, "features for correspondences (5)", 13, INK, "end")

    frame(272, 136, "Pass 2", "makes the picture")
    band(low, range(plan.fork, plan.steps), "#d9d7de", "denoise")
    band(low + row, plan.shared_in(2), SHARE, "share (section 3)")
    band(low + 2 * row, range(plan.fork, len(plan.blended)), BLEND, "blend queries (4)", fading=True)
    band(low + 3 * row, plan.injected, INJECT, "inject (6)")
    drawing.text(x(plan.fork / 2), low + 14, "as pass 1", 12, QUIET, "middle")

    drawing.path(f"M{fork:g},{top - 2} V{low - 4}", FORK, width=2.5)
    drawing.text(fork - 10, 236, "the fork: latents", 13, INK, "end")
    drawing.text(fork - 10, 253, "and vanilla queries", 13, INK, "end")
    drawing.path(f"M{x(dift + 0.5):g},{top + 3 * row - 6} V240", FORK, arrow=False)
    drawing.path(f"M{x(plan.steps - 0.5):g},{top + 4 * row - 5} V240 H{middle:g} V{low + 3 * row - 4}", dashed=True)
    drawing.text(x(dift) - 6, 232, "final masks and features: the source of every token", 13, INK, "end")
    note = f"A scene with {plan.steps} steps. Blending fades with its weight v; step 0 has no masks and shares nothing."
    drawing.text(left, 428, note, 12, QUIET)
    return drawing.svg()


def rooms_diagram() -> str:
    """How a scene flows through the rooms of the package; the numbers are those of docs/architecture.md."""
    drawing = Drawing(1040, 580, "How a scene flows through the rooms of consistory_ray")

    pure, ray, torch, files = "#eef3fa", "#fdf1e0", "#fbe9e3", "#eaf4e8"

    def room(x: float, y: float, width: float, height: float, name: str, words: tuple[str, ...], fill: str) -> None:
        drawing.box(x, y, width, height, fill, LINE, 8)
        drawing.text(x + 12, y + 22, name, 15, bold=True, mono=True)
        for line, each in enumerate(words):
            drawing.text(x + 12, y + 41 + 16 * line, each, 12, QUIET)

    def inner(x: float, y: float, width: float, name: str, words: tuple[str, ...]) -> None:
        drawing.box(x, y, width, 30 + 15 * len(words), PAPER, LINE, 5)
        drawing.text(x + 10, y + 19, name, 13, mono=True)
        for line, each in enumerate(words):
            drawing.text(x + 10, y + 35 + 15 * line, each, 11.5, QUIET)

    def carried(x: float, y: float, what: str, anchor: str = "middle") -> None:
        drawing.text(x, y, what, 11.5, INK, anchor, mono=True)

    room(16, 16, 350, 62, "cli", ("validate, plan, render, status, retry, verify, dataset",), pure)
    room(16, 124, 138, 76, "jobs", ("what users write,", "read and checked"), pure)
    room(228, 124, 138, 76, "plan", ("assets: ids, seeds,", "order; forecast"), pure)
    room(436, 16, 320, 322, "engine", ("one coordinator, many workers; imports Ray",), ray)
    inner(452, 76, 138, "scheduling", ("who does what next;", "no Ray, no clock"))
    inner(602, 76, 138, "cluster", ("starting or joining", "Ray; its machines"))
    inner(452, 166, 288, "coordinator, dispatching", ("hands calls out, takes reports in,", "keeps the books"))
    inner(452, 256, 288, "workers", ("one actor per device holds the model", "and saves what it made"))
    room(846, 16, 178, 100, "watch", ("events become progress,", "logs, metrics, status,", "reports"), pure)
    room(846, 150, 178, 270, "output", ("what a run leaves behind",), files)
    for line, (name, words) in enumerate(
        (
            ("lease", "one run at a time"),
            ("pictures", "whole or not at all"),
            ("index", "a row per picture"),
            ("gallery", "pages to look at"),
        )
    ):
        inner(858, 202 + 53 * line, 154, name, (words,))
    room(436, 398, 320, 132, "consistory", ("the method and its models; imports torch",), torch)
    inner(448, 450, 94, "models", ("SDXL: load,", "encode, call,", "decode"))
    inner(550, 450, 94, "method", ("masks, share,", "match, inject,", "two passes"))
    inner(652, 450, 94, "cache", ("what scenes", "read of the", "anchors"))
    room(16, 262, 166, 76, "concepts", ("which words of a", "prompt are the subject"), pure)
    room(200, 262, 166, 76, "guards", ("what comes from out-", "side, looked at once"), pure)
    room(16, 358, 166, 76, "miniature", ("the bundled model", "and its judge"), torch)
    room(200, 358, 166, 76, "evaluation", ("consistency, alignment,", "with intervals"), torch)
    room(
        16,
        454,
        350,
        76,
        "errors, settings, testing",
        ("one error tree; the method's settings;", "a renderer without a model"),
        pure,
    )

    drawing.path("M85,78 V120")
    drawing.path("M154,162 H224")
    drawing.path("M366,162 H432")
    drawing.path("M521,141 V162")
    drawing.path("M671,141 V162")
    drawing.path("M560,231 V252")
    drawing.path("M632,252 V231")
    drawing.path("M520,321 V394")
    drawing.path("M664,394 V321")
    drawing.path("M740,186 C800,186 796,224 854,224")
    drawing.path("M740,278 H854")
    drawing.path("M740,210 C800,216 790,331 854,331")
    drawing.path("M756,62 H842")
    carried(190, 152, "RenderJob")
    carried(400, 152, "Plan")
    carried(534, 246, "Call", "end")
    carried(646, 246, "Report", "start")
    carried(508, 362, "prompts", "end")
    carried(508, 377, "AnchorCache", "end")
    carried(676, 362, "AnchorCache", "start")
    carried(676, 377, "pictures", "start")
    carried(799, 52, "Event")
    for number, (x, y) in enumerate(
        ((85, 98), (190, 180), (800, 196), (596, 152), (536, 358), (648, 358), (778, 294), (799, 78)), start=1
    ):
        drawing.number(x, y, number)
    for x, colour, words in (
        (16, pure, "neither torch nor Ray"),
        (190, ray, "Ray"),
        (256, torch, "torch"),
        (332, files, "files at any fsspec URL; neither torch nor Ray"),
    ):
        drawing.box(x, 552, 18, 14, colour, LINE, 3)
        drawing.text(x + 26, 564, words, 12, QUIET)
    return drawing.svg()


def main() -> int:
    """Write the files, or compare them."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, text in (("method-steps.svg", steps_diagram()), ("architecture.svg", rooms_diagram())):
        path = OUT / name
        if not path.is_file() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.write_text(text)
    if check and stale:
        print(f"not current: {', '.join(stale)}; run python scripts/diagrams.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
