"""How far can the judge be trusted on sampled pictures? It was trained on drawings; a reader has labelled 48 by eye.

    python benchmarks/labels.py
    python benchmarks/labels.py --sample /tmp/pictures --to /tmp/labels    # 48 others, to be labelled

``results/labels`` holds the pictures and what a reader saw in them: ``a|b`` where either would do, null where it cannot
be told. The last line of stdout is JSON, also in ``results/judge.json``: for each attribute the share of pictures on
which the judge agrees, with its 95 % interval (Wilson's), how many could be told, and of how many either of two values
counts as right. Pictures of one subject are alike, so that the intervals are rather too narrow than too wide.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from benchmarks.consistency import rounded
from benchmarks.model_options import say
from benchmarks.result_stamp import stamped
from consistory_ray.evaluation.bootstrap import share_interval
from consistory_ray.evaluation.hard_attributes import look
from consistory_ray.evaluation.sheets import grid_sheet
from consistory_ray.miniature.judge import Judge

RESULTS = Path(__file__).parent / "results"
LABELLED = ("kind", "scene", "body", "second", "pattern", "accessory", "accessory_colour")
COLUMNS, SIDE, COUNT, ON_A_SHEET = 8, 128, 48, 12

Label = Mapping[str, str | None]


def parse_arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=Path, metavar="CACHE", help="draw others from a benchmark's --cache")
    parser.add_argument("--seed", type=int, default=18, help="of the draw")
    parser.add_argument("--to", type=Path, default=Path("labels"), help="where what is drawn goes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


def labelled(folder: Path = RESULTS / "labels") -> tuple[np.ndarray, list[Label], str]:
    """The pictures, uint8 ``[N, H, W, 3]``, their labels, and the fingerprint of the model that made them."""
    told = json.loads((folder / "labels.json").read_text())
    side, columns = told["side"], told["columns"]
    sheet = np.asarray(Image.open(folder / told["sheet"]).convert("RGB"))
    corners = [(index // columns * side, index % columns * side) for index in range(len(told["pictures"]))]
    images = np.stack([sheet[y : y + side, x : x + side] for y, x in corners])
    return images, told["pictures"], told["model_fingerprint"]


def read(judge: Judge, images: np.ndarray) -> list[Label]:
    """What the judge says of the same; null where it sees nobody."""
    readings = judge.read(images)
    portraits = judge.portray(images, [reading.foreground for reading in readings])
    found = []
    for reading, portrait in zip(readings, portraits, strict=True):
        kinds, seen = reading.kinds(1), look(portrait) or {}
        found.append({"scene": reading.scene, "kind": kinds[0] if kinds else None, **seen})
    return [{name: row.get(name) for name in LABELLED} for row in found]


def accuracy(labels: Sequence[Label], seen: Sequence[Label]) -> dict[str, dict[str, Any]]:
    """Of each attribute: the share on which the judge agrees, of the pictures of which it can be told."""
    found = {}
    for name in LABELLED:
        pairs = [(label[name].split("|"), row[name]) for label, row in zip(labels, seen, strict=True) if label[name]]
        right = sum(value in known for known, value in pairs)
        found[name] = {
            "accuracy": right / len(pairs) if pairs else float("nan"),
            "interval": list(share_interval(right, len(pairs))) if pairs else [float("nan")] * 2,
            "told": len(pairs),
            "either": sum(len(known) > 1 for known, _ in pairs),
        }
    return found


def differences(labels: Sequence[Label], seen: Sequence[Label]) -> list[str]:
    """Where the judge does not agree, picture by picture: "3 body: purple|gray, not blue"."""
    return [
        f"{index} {name}: {told}, not {row[name]}"
        for index, (label, row) in enumerate(zip(labels, seen, strict=True))
        for name, told in label.items()
        if told and row[name] not in told.split("|")
    ]


def sample(cache: Path, seed: int, folder: Path) -> None:
    """Draw pictures from a cache of one model, and write what is to be labelled."""
    models = [path for path in cache.iterdir() if path.is_dir()]
    if len(models) != 1:
        raise SystemExit(f"--sample: {cache} has pictures of {len(models)} models, and should have those of one")
    different = {}
    for path in sorted(models[0].glob("*.npz")):
        with np.load(path) as arrays:
            different.setdefault(arrays["image"].tobytes(), arrays["image"])
    if len(different) < COUNT:
        raise SystemExit(f"--sample: {cache} has {len(different)} pictures, and {COUNT} are drawn")
    chosen = random.Random(seed).sample(list(different.values()), COUNT)
    folder.mkdir(parents=True, exist_ok=True)
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-COUNT // COLUMNS) * SIDE))
    for index, image in enumerate(chosen):
        sheet.paste(Image.fromarray(image), (index % COLUMNS * SIDE, index // COLUMNS * SIDE))
    sheet.save(folder / "pictures.webp", quality=95, method=6)
    for first in range(0, COUNT, ON_A_SHEET):
        shown = [Image.fromarray(image) for image in chosen[first : first + ON_A_SHEET]]
        numbers = [str(first + index) for index in range(len(shown))]
        grid_sheet(shown, numbers, columns=4, side=290).save(folder / f"to_label_{first}.png")
    nothing = {"about": "", "sheet": "pictures.webp", "columns": COLUMNS, "side": SIDE, "model_fingerprint": ""}
    empty = [dict.fromkeys(LABELLED) for _ in chosen]
    (folder / "labels.json").write_text(json.dumps({**nothing, "pictures": empty}, indent=1) + "\n")
    say(f"{COUNT} pictures to be labelled: {folder}")


def main() -> None:
    """Command line."""
    options = parse_arguments()
    if options.sample is not None:
        sample(options.sample, options.seed, options.to)
        return
    images, labels, fingerprint = labelled()
    seen = read(Judge.load(), images)
    found = rounded({"pictures": len(labels), "attributes": accuracy(labels, seen)})
    report = {**found, "differs": differences(labels, seen)}
    options.out.mkdir(parents=True, exist_ok=True)
    told = stamped(report, fingerprint=fingerprint, dtype="float32")
    (options.out / "judge.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
