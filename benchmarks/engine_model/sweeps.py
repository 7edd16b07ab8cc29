"""Which simulated clusters are asked about, what is read off them, and how it is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.engine_model.simulation import Costs, Outcome, Setup, Simulation
from consistory_ray.engine.cluster.placement import CACHE_SHARE

BAR = 0.95

FAKE, FAKE_SETUP = Costs(), Setup(pictures_per_worker=1000)
"""The fake renderer at 200 ms per picture, with pictures and caches of a few kilobytes."""
SDXL = Costs(picture_seconds=8.0, write_seconds=0.416, picture_bytes=1.8e6, cache_bytes=5.5e9)
"""SDXL at 1024 px: 8 s a scene is an assumption; PNG and cache are measured (``cost.py``, the encoder)."""
SDXL_SETUP = Setup(pictures_per_worker=500, budget_per_node=150e9)
"""A weekend's worth, on nodes with a terabyte of memory: Ray takes 200 GB of it, caches three quarters of that."""
POD = replace(SDXL, picture_seconds=7.0, anchor_seconds=14.0)
"""SDXL in pods: batches of four take 28 s, and so do two anchors."""
CACHE_GIB = 16
"""The chart's default ``cacheMemory``, for each GPU."""


@dataclass(frozen=True)
class Case:
    """One line of the plot: a name, and what differs from the group's first line."""

    group: str
    name: str
    setup: Setup
    costs: Costs


def cases(call_ms: float, picture_ms: float, latency: float, pictures_per_worker: int | None = None) -> list[Case]:
    """Everything that is simulated.

    Args:
        call_ms, picture_ms, latency: as measured, see :class:`~benchmarks.engine_model.simulation.Costs`.
        pictures_per_worker: a smaller job than the groups' own.
    """
    fake, sdxl = (replace(costs, call_ms=call_ms, picture_ms=picture_ms, latency=latency) for costs in (FAKE, SDXL))
    small, large = (
        setup if pictures_per_worker is None else replace(setup, pictures_per_worker=pictures_per_worker)
        for setup in (FAKE_SETUP, SDXL_SETUP)
    )
    pods, one_each = (
        replace(large, workers_per_node=gpus, budget_per_node=pods_of(CACHE_GIB, gpus)) for gpus in (8, 1)
    )
    pod = replace(POD, call_ms=call_ms, picture_ms=picture_ms, latency=latency)
    dear = replace(fake, call_ms=2 * call_ms, picture_ms=2 * picture_ms)
    cheap = replace(fake, call_ms=call_ms / 2, picture_ms=picture_ms / 2)
    return [
        Case("fake", "200 ms, batches of 4", small, fake),
        Case("fake", "batches of 1", replace(small, batch_size=1), fake),
        Case("fake", "batches of 16", replace(small, batch_size=16), fake),
        Case("fake", "coordinator half as dear", small, cheap),
        Case("fake", "coordinator twice as dear", small, dear),
        Case("fake", "one call in flight", replace(small, max_in_flight=1), fake),
        Case("sdxl", "8 s, 5.5 GB, 50 scenes a subject", large, sdxl),
        Case("sdxl", "10 scenes a subject", replace(large, scenes=10), sdxl),
        Case("sdxl", "1,000 scenes a subject", replace(large, scenes=1000), sdxl),
        Case("sdxl", "one subject", replace(large, scenes=10**9), sdxl),
        Case("sdxl", "caches of 20 GB", large, replace(sdxl, cache_bytes=20e9)),
        Case("sdxl", "links of 1 Gbit", large, replace(sdxl, link_gbit=1.0)),
        Case("sdxl", "1 s a picture", large, replace(sdxl, picture_seconds=1.0)),
        Case("sdxl", "no stickiness", replace(large, sticky=False), sdxl),
        Case("chart", "pods of 8 GPUs, 50 scenes a subject", pods, pod),
        Case("chart", "pods of 8 GPUs, 10 scenes a subject", replace(pods, scenes=10), pod),
        Case("chart", "pods of 8 GPUs, 4 scenes a subject", replace(pods, scenes=4), pod),
        Case("chart", "pods of 1 GPU, 50 scenes a subject", one_each, pod),
        Case("chart", "pods of 1 GPU, 10 scenes a subject", replace(one_each, scenes=10), pod),
    ]


def pods_of(gibibytes: float, gpus: int = 8) -> float:
    """What caches may take in a pod with so much cache memory for each GPU."""
    return CACHE_SHARE * gpus * gibibytes * 2**30


def sweep(case: Case, workers: Sequence[int]) -> Iterator[Outcome]:
    """The case at each number of workers."""
    for count in workers:
        yield Simulation(replace(case.setup, workers=count), case.costs, charge_scheduler=True).run()


def knee(outcomes: Sequence[Outcome], bar: float = BAR) -> int:
    """The largest number of workers up to which every one of the outcomes holds the bar; 0 if the first does not."""
    best = 0
    for outcome in sorted(outcomes, key=lambda outcome: outcome.workers):
        if outcome.efficiency < bar:
            break
        best = outcome.workers
    return best


def summary(case: Case, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """JSON-ready: the knee, and for each number of workers what came of it."""
    rows = [
        {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in asdict(outcome).items()}
        | {"moved_mb_per_picture": round(outcome.moved_per_picture / 1e6, 3)}
        for outcome in outcomes
    ]
    return {"group": case.group, "case": case.name, "knee_workers": knee(outcomes), "outcomes": rows}


def plot(
    path: Path, results: Mapping[Case, Sequence[Outcome]], real: Sequence[Mapping[str, float]], seconds: float
) -> None:
    """Throughput and efficiency against workers: simulated lines, measured points, the bar and each first line's knee.

    Args:
        path: of the PNG.
        results: simulated.
        real: measured runs with the fake renderer, as :func:`benchmarks.engine_model.real.fake_run` returns them.
        seconds: their time per picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(dict.fromkeys(case.group for case in results))
    figure, axes = pyplot.subplots(2, len(groups), figsize=(7 * len(groups), 9), squeeze=False)
    for column, group in enumerate(groups):
        upper, lower = axes[0][column], axes[1][column]
        own = {case: outcomes for case, outcomes in results.items() if case.group == group}
        for number, (case, outcomes) in enumerate(own.items()):
            style: dict[str, Any] = {"linewidth": 2.5 if number == 0 else 1.2, "label": case.name}
            workers = [outcome.workers for outcome in outcomes]
            upper.plot(workers, [outcome.pictures_per_second for outcome in outcomes], **style)
            lower.plot(workers, [outcome.efficiency for outcome in outcomes], **style)
            if number == 0 and (found := knee(outcomes)):
                lower.axvline(found, color="grey", linestyle=":", label=f"knee: {found} workers")
        if group == "fake" and real:
            counts = [run["workers"] for run in real]
            points: dict[str, Any] = {"color": "black", "marker": "o", "linestyle": "none", "label": "real Ray workers"}
            upper.plot(counts, [run["per_second"] for run in real], **points)
            lower.plot(counts, [run["per_second"] * seconds / run["workers"] for run in real], **points)
        lower.axhline(BAR, color="grey", linestyle="--", linewidth=1)
        upper.set(title=group, xscale="log", yscale="log", ylabel="pictures per second")
        lower.set(xscale="log", ylim=(0, 1.05), xlabel="workers", ylabel="efficiency")
        lower.legend(fontsize=8, loc="lower left")
        for axis in (upper, lower):
            axis.set_xscale("log", base=2)
            axis.grid(alpha=0.3)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
