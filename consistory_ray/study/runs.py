"""The runs that are compared: pictures of the same scenes, found by subject, scene and prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow.compute as pc

from consistory_ray.errors import InputError, Problem
from consistory_ray.output.index.index import read_index
from consistory_ray.output.storage import OutputStore, open_output

Place = tuple[str, str, str]
"""Subject, scene and prompt: what two runs must have in common to be compared."""
MAX_RUNS = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a run.

    Attributes:
        path: relative to the run's output.
        sha256: of its file.
    """

    path: str
    sha256: str


@dataclass(frozen=True)
class Run:
    """A run that is compared.

    Attributes:
        name: what the answers will call it; the page never shows it.
        store: its output.
        scenes: its scenes that are there.
    """

    name: str
    store: OutputStore = field(repr=False)
    scenes: dict[Place, Picture] = field(repr=False)


def read_runs(urls: Sequence[str], names: Sequence[str] = ()) -> list[Run]:
    """Read the indices of outputs.

    Args:
        urls: two to eight outputs.
        names: of the runs in the same order; without them the ends of their addresses, numbered where they are equal.

    Raises:
        InputError: there are too few or too many, as many names are not given, or two are the same.
        StorageError: an index cannot be read.
    """
    problems = []
    if not 2 <= len(urls) <= MAX_RUNS:
        problems.append(Problem("URL", str(len(urls)), f"give 2 to {MAX_RUNS} outputs to compare"))
    if names and len(names) != len(urls):
        problems.append(Problem("--name", str(len(names)), f"give one for each of the {len(urls)} outputs, or none"))
    if len(set(names)) < len(names) or not all(names):
        problems.append(Problem("--name", ", ".join(names), "give every output a name of its own"))
    if problems:
        raise InputError("these runs cannot be compared", problems)
    stores = [open_output(url) for url in urls]
    return [Run(name, store, _scenes(store)) for name, store in zip(names or _ends(stores), stores, strict=True)]


def common_places(runs: Sequence[Run]) -> list[Place]:
    """What all runs have a picture of, in the first one's order.

    Raises:
        InputError: there is nothing.
    """
    shared = [place for place in runs[0].scenes if all(place in run.scenes for run in runs[1:])]
    if not shared:
        counts = ", ".join(f"{run.name} has {len(run.scenes)}" for run in runs)
        fix = f"compare runs of the same job: subject, scene and prompt must be equal ({counts} scenes)"
        raise InputError("these runs have no scene in common", [Problem("URL", "", fix)])
    return shared


def _scenes(store: OutputStore) -> dict[Place, Picture]:
    table = read_index(store)
    table = table.filter(pc.and_(pc.equal(table["status"], "ok"), pc.equal(table["kind"], "scene")))
    rows = table.select(["subject", "scene", "prompt", "path", "sha256"]).sort_by(
        [("subject", "ascending"), ("scene", "ascending")]
    )
    return {
        (row["subject"], row["scene"], row["prompt"]): Picture(row["path"], row["sha256"]) for row in rows.to_pylist()
    }


def _ends(stores: Sequence[OutputStore]) -> list[str]:
    ends = [store.url.rstrip("/").rsplit("/", 1)[-1] for store in stores]
    return [end if ends.count(end) == 1 else f"{end}-{number}" for number, end in enumerate(ends, start=1)]
