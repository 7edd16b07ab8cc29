"""Writes the tables of docs/evidence.md from the committed results, between its marks.

Usage: python scripts/evidence_docs.py [--check]. With --check nothing is written, and the exit code says whether all is
current. Figures of the README are a table that is kept by hand; ``figures`` reads it and ``wrong`` compares it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.consistency_report import sections  # noqa: E402

PAGE, RESULTS = ROOT / "docs" / "evidence.md", ROOT / "benchmarks" / "results"
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Figure:
    """A row of the table of the README's figures.

    Attributes:
        words: as they stand in the README.
        result: the file that has its numbers; None where none is committed.
        keys: where in the file its numbers are, one after the other; ``100 key`` is in percent, ``a / b`` a quotient.
        command: what makes the file.
    """

    words: str
    result: str | None
    keys: tuple[str, ...]
    command: str


def figures(page: str) -> Iterator[Figure]:
    """The rows of the table under "Figures of the README"."""
    table = page.split("## Figures of the README")[1].split("\n## ")[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith('"'):
            words, result, keys, command = cells
            found = tuple(re.findall(r"`([^`]+)`", keys))
            yield Figure(words.strip('"'), None if result == "none" else result.strip("`"), found, command.strip("`"))


def value_of(report: Any, key: str) -> list[float]:
    """What stands under a key, one number or the two of an interval."""
    if " / " in key:
        (above,), (below,) = (value_of(report, part) for part in key.split(" / "))
        return [above / below]
    factor, _, path = key.rpartition(" ")
    for part in path.split("."):
        report = report[part]
    values = report if isinstance(report, list) else [report]
    return [float(factor or 1) * value for value in values]


def wrong(figure: Figure, readme: str) -> str | None:
    """What is wrong with a row, or None."""
    if " ".join(figure.words.split()) not in " ".join(readme.split()):
        return f"the README does not say {figure.words!r}"
    if figure.result is None:
        return None
    report = json.loads((RESULTS / figure.result).read_text())
    there = [value for key in figure.keys for value in value_of(report, key)]
    told = NUMBER.findall(figure.words)
    if len(told) != len(there):
        return f"{figure.words!r} tells {len(told)} numbers, its keys {len(there)}"
    for text, value in zip(told, there, strict=True):
        digits = len(text.partition(".")[2])
        if abs(float(text) - value) > 0.5 * 10**-digits + 1e-6:
            return f"{figure.words!r}: {text} is {value:.4f} in {figure.result}"
    return None


def consistency() -> str:
    """All ways of rendering, from consistency.json."""
    report = json.loads((RESULTS / "consistency.json").read_text())
    if "ways" not in report:
        return "*The committed run was made before there were these measures.*"
    told = {name: way["numbers"] for name, way in report["ways"].items() if "numbers" in way}
    kinds = {name: way["by_kind"] for name, way in report["ways"].items() if "by_kind" in way}
    made = f"`{report['stamp']['command']}`, {report['stamp']['date']}:"
    return "\n\n".join([made, *sections(told, kinds)]).replace("\n## ", "\n### ")


def judge() -> str:
    """The judge's accuracy, on drawings and on sampled pictures."""
    labelled = json.loads((RESULTS / "judge.json").read_text())["attributes"]
    drawn = json.loads((RESULTS / "miniature_quality.json").read_text())
    lines = [
        "| attribute | on drawings | on sampled pictures | could be told, of 48 | either would do |",
        "|---|---|---|---|---|",
    ]
    for name, own in labelled.items():
        low, high = own["interval"]
        lines.append(
            f"| {name.replace('_', ' ')} | {100 * drawn[f'judge_{name}_accuracy']:.0f} % "
            f"| {100 * own['accuracy']:.0f} % [{100 * low:.0f}, {100 * high:.0f}] | {own['told']} | {own['either']} |"
        )
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {"consistency": consistency, "judge": judge}


def written(page: str) -> str:
    """The page with its tables as the results have them."""
    for name, made in BLOCKS.items():
        marks = rf"(<!-- {name}: from the results -->\n)(.*?)(\n<!-- end -->)"
        places = list(re.finditer(marks, page, flags=re.DOTALL))
        if len(places) != 1:
            raise SystemExit(f"docs/evidence.md has {len(places)} places for {name}, and should have one")
        page = page[: places[0].start(2)] + made() + page[places[0].end(2) :]
    return page


def main() -> None:
    """Command line."""
    page = PAGE.read_text()
    new = written(page)
    if "--check" in sys.argv[1:]:
        raise SystemExit(new != page and "docs/evidence.md is not current: python scripts/evidence_docs.py")
    PAGE.write_text(new)


if __name__ == "__main__":
    main()
