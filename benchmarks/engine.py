"""What does the engine cost next to the GPUs, and how far does it scale?

    python benchmarks/engine.py --quick     # seconds: everything that needs no Ray, small
    python benchmarks/engine.py             # some minutes: a million pictures in the books, 8 real workers
    python benchmarks/engine.py --full      # much longer: 100,000 pictures through Ray, 64 real workers, the miniature

*Coordinator*: CPU time of its process per picture, from whole runs with the fake renderer at 0 s (``--ray-pictures``),
Ray's own threads in that process included, the cluster's processes not. Without Ray (decisions, rows, index; what is
made up is said in ``engine_model/books.py``) up to a million pictures (``--book-pictures``). Nothing else bounds it:
it is one process, and mostly one thread, of Python.

*Plan and resume*: reading and planning a CSV job of ``--million`` scenes, and finding all of them done in an index,
each in a process of its own; the listing of that many files comes from memory.

*Workers*: ``--workers`` real Ray actors with the fake renderer at 200 ms per picture, as many as the machine carries
(each is a process of some 100 MB, and needs about 10 ms of CPU a second for itself). Busy is the share of the time that
devices were at work, from when the last worker has begun until the first one is done. Beyond that a discrete-event
simulation that drives the real scheduler with the costs measured here: ``engine_model/simulation.py`` says what is
modelled and assumed, ``engine_model/sweeps.py`` which clusters.

The last line of stdout is JSON (also in ``results/engine.json``, the plot in ``results/engine.png``); keys of parts
that were not run are missing:

    coordinator_ms_per_asset   of the largest run through Ray; coordinator_ms_by_pictures: of each
    books_ms_by_pictures       the same without Ray; books_gb: peak memory of the largest
    call_ms, picture_ms        of the coordinator, fitted to two runs through Ray; what the simulation uses
    plan_1m_seconds, plan_1m_rss_gb, resume_1m_seconds, resume_1m_rss_gb
    busy_64                    real if 64 workers were run (busy_64_source), else simulated
    real                       the runs with real workers; efficiency: pictures per second x 0.2 s / workers
    simulated                  efficiency, knee (largest number of workers with efficiency >= 0.95) and cache movement
    chart_busy                 the share of the time that GPUs work in the chart's pods with its default cache memory,
                               simulated, by GPUs in a pod, GPUs in all and scenes a subject
    moved_mb_per_picture       of anchor caches between nodes, 64 workers, SDXL: with stickiness and without
    miniature                  the bundled model on real workers: idle share between batches
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import throughput
from benchmarks.engine_model import books, real, simulation, sweeps
from benchmarks.engine_model.apart import apart
from benchmarks.model_options import say
from benchmarks.result_stamp import stamped

RESULTS = Path(__file__).parent / "results"
SECONDS = 0.2
STEADY_SECONDS, START_SECONDS = 15, 2
"""How long a run with real workers should last, and for each of them, since they start one after the other."""
FIT_BATCHES = (1, 8)
TYPICAL_CALL_MS, TYPICAL_PICTURE_MS, TYPICAL_LATENCY = 0.8, 0.2, 0.001
QUICK_PICTURES_PER_WORKER = 24
ALL_WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small, and without Ray")
    size.add_argument("--full", action="store_true", help="everything")
    parser.add_argument("--ray-pictures", type=_numbers, help="runs through Ray of so many pictures (1000)")
    parser.add_argument("--book-pictures", type=_numbers, help="runs without Ray (1000,10000,100000,1000000)")
    parser.add_argument("--million", type=int, help="pictures to plan and resume (1000000; 0: none)")
    parser.add_argument("--workers", type=_numbers, help="real workers at 200 ms (1,8; 0: none)")
    parser.add_argument("--simulate", type=_numbers, help=f"simulated workers ({','.join(map(str, ALL_WORKERS))})")
    parser.add_argument(
        "--chart-only", action="store_true", help="of the simulated clusters only the chart's pods; no plot"
    )
    parser.add_argument("--miniature", type=_numbers, help="workers with the bundled model, expensive (none)")
    parser.add_argument("--miniature-scenes", type=int, default=8, help="scenes per worker")
    parser.add_argument("--miniature-steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--address", help="Ray cluster on this machine to use (each run starts its own)")
    parser.add_argument("--call-ms", type=float, help="simulate with this in place of what is measured")
    parser.add_argument("--picture-ms", type=float, help="likewise")
    parser.add_argument("--update", action="store_true", help="keep what engine.json says of parts not run now")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for engine.json and engine.png")
    options = parser.parse_args(arguments)
    for name, quick, usual, full in (
        ("ray_pictures", [], [1000], [1000, 10_000, 100_000]),
        ("book_pictures", [500, 2000], [1000, 10_000, 100_000, 10**6], [1000, 10_000, 100_000, 10**6]),
        ("million", 2000, 10**6, 10**6),
        ("workers", [], [1, 8], [1, 2, 4, 8, 16, 32, 64]),
        ("simulate", [1, 8, 64], ALL_WORKERS, ALL_WORKERS),
        ("miniature", [], [], [1, 2]),
    ):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full if options.full else usual)
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what was asked for, print it, and keep it in ``--out``."""
    options = parse_arguments(arguments)
    result: dict[str, Any] = {"cores": real.cores()}
    if options.update:
        result |= json.loads((options.out / "engine.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        result |= coordinator_without_ray(options.book_pictures, scratch)
        result |= plan_and_resume(options.million, scratch)
        result |= coordinator_with_ray(options.ray_pictures, scratch, options.address)
        runs = [run for run in result.get("real", []) if run["workers"] not in options.workers]
        runs += real_workers(options.workers, scratch, options.address)
    result["real"] = runs = sorted(runs, key=lambda run: run["workers"])
    cases = sweeps.cases(
        options.call_ms or result.get("call_ms", TYPICAL_CALL_MS),
        options.picture_ms or result.get("picture_ms", TYPICAL_PICTURE_MS),
        result["round_trip_ms"] / 2e3 if "round_trip_ms" in result else TYPICAL_LATENCY,
        QUICK_PICTURES_PER_WORKER if options.quick else None,
    )
    if options.chart_only:
        result |= simulate_pods(cases, options.simulate, result.get("simulated", []))
    else:
        result |= simulate(cases, options.simulate, runs, options.out / "engine.png")
    result |= busy_of_64(result)
    result |= miniature(options)
    line = json.dumps(result)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "engine.json").write_text(json.dumps(stamped(result)) + "\n")
    print(line)
    return result


def coordinator_without_ray(sizes: Sequence[int], scratch: Path) -> dict[str, Any]:
    """Decisions and rows."""
    costs, peak = {}, 0.0
    for size in sizes:
        job = _job(scratch, size)
        cost = apart(books.books_cost, str(job), str(scratch / f"books-{size}"), 64, 4)
        costs[size], peak = round(1e3 * cost["cpu"] / cost["pictures"], 4), cost["peak"] / 1e9
        say(f"books of {size} pictures: {costs[size]} ms CPU per picture, peak {peak:.2f} GB, {cost['wall']:.0f} s")
    return {"books_ms_by_pictures": costs, "books_gb": round(peak, 3)} if costs else {}


def plan_and_resume(size: int, scratch: Path) -> dict[str, Any]:
    """A job and an output of a million pictures."""
    if not size:
        return {}
    job, folder = str(_job(scratch, size)), str(scratch / "full")
    plan = apart(books.plan_cost, job)
    say(f"planning {size} scenes: {plan['wall']:.1f} s, {plan['cpu']:.1f} s CPU, peak {plan['peak'] / 1e9:.2f} GB")
    apart(books.write_full_index, job, folder)
    again = apart(books.resume_cost, job, folder)
    say(
        f"resuming it: {again['wall']:.1f} s, {again['cpu']:.1f} s CPU, peak {again['peak'] / 1e9:.2f} GB with the plan"
    )
    result: dict[str, float] = {"planned": size}
    for name, cost in (("plan", plan), ("resume", again)):
        result[f"{name}_1m_seconds"] = round(cost["wall"], 2)
        result[f"{name}_1m_cpu_seconds"] = round(cost["cpu"], 2)
        result[f"{name}_1m_rss_gb"] = round(cost["peak"] / 1e9, 3)
    return result


def coordinator_with_ray(sizes: Sequence[int], scratch: Path, address: str | None) -> dict[str, Any]:
    """Whole runs of 2 workers at 0 s per picture, and what a call and a picture cost in them."""
    if not sizes:
        return {}
    round_trip = apart(real.round_trip_ms, address)
    say(f"an idle actor answers in {round_trip:.2f} ms")
    each, fits = {}, []
    for batch in FIT_BATCHES:
        run = apart(real.fake_run, str(_job(scratch, min(sizes))), 2, batch, 0.0, address)
        fits.append((run["calls"] / run["pictures"], 1e3 * (run["cpu"] - run["start_cpu"]) / run["pictures"]))
        say(f"batches of {batch}: {fits[-1][1]:.3f} ms CPU per picture in {run['calls']} calls")
    (calls_a, ms_a), (calls_b, ms_b) = fits
    call_ms = max(0.0, (ms_a - ms_b) / (calls_a - calls_b))
    for size in sizes:
        run = apart(real.fake_run, str(_job(scratch, size)), 2, 4, 0.0, address)
        each[size] = round(1e3 * run["cpu"] / run["pictures"], 4)
        steady = 1e3 * (run["cpu"] - run["start_cpu"]) / run["pictures"]
        say(f"{size} pictures through Ray: {each[size]} ms CPU per picture ({steady:.3f} without the start)")
    return {
        "round_trip_ms": round(round_trip, 3),
        "coordinator_ms_per_asset": each[max(sizes)],
        "coordinator_ms_by_pictures": each,
        "call_ms": round(call_ms, 4),
        "picture_ms": round(max(0.01, ms_b - calls_b * call_ms), 4),
    }


def real_workers(counts: Sequence[int], scratch: Path, address: str | None) -> list[dict[str, float]]:
    """Runs of 200 ms per picture on real actors."""
    runs = []
    for count in (count for count in counts if count):
        job = _job(scratch, round(count * (STEADY_SECONDS + START_SECONDS * count) / SECONDS))
        run = apart(real.fake_run, str(job), count, 4, SECONDS, address)
        run = {key: round(value, 4) for key, value in run.items()}
        run["efficiency"] = round(run["per_second"] * SECONDS / count, 4)
        say(f"{count} real workers: busy {run['busy']:.1%}, efficiency {run['efficiency']:.1%}")
        runs.append(run)
    return runs


def simulate(
    cases: Sequence[sweeps.Case], workers: Sequence[int], runs: Sequence[dict[str, float]], path: Path
) -> dict[str, Any]:
    """The clusters of ``sweeps.py``."""
    if not workers:
        return {}
    say((simulation.__doc__ or "").strip())
    results, found = {}, []
    for case in cases:
        results[case] = list(sweeps.sweep(case, workers))
        found.append(sweeps.summary(case, results[case]))
        shown = ", ".join(f"{outcome.workers}: {outcome.efficiency:.1%}" for outcome in results[case])
        say(f"{case.group}, {case.name}: knee at {found[-1]['knee_workers']} workers; {shown}")
    sweeps.plot(path, results, runs, SECONDS)
    return {"simulated": found, "chart_busy": _pods(found), "moved_mb_per_picture": _movement(found)}


def simulate_pods(
    cases: Sequence[sweeps.Case], workers: Sequence[int], known: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The chart's pods, beside what is known of the other clusters."""
    found = [sweeps.summary(case, list(sweeps.sweep(case, workers))) for case in cases if case.group == "chart"]
    return {"simulated": [item for item in known if item["group"] != "chart"] + found, "chart_busy": _pods(found)}


def _pods(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        item["case"]: {str(row["workers"]): row["busy"] for row in item["outcomes"]}
        for item in found
        if item["group"] == "chart"
    }


def _movement(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """With stickiness and without, at 64 workers or the largest number below."""
    sticky = next(item for item in found if item["group"] == "sdxl")
    restless = next(item for item in found if item["case"] == "no stickiness")
    return {
        name: [row for row in item["outcomes"] if row["workers"] <= 64][-1]["moved_mb_per_picture"]
        for name, item in (("sticky", sticky), ("random", restless))
    }


def busy_of_64(result: dict[str, Any]) -> dict[str, Any]:
    """The share of the time that 64 workers work at 200 ms a picture, measured or else simulated."""
    for run in result["real"]:
        if run["workers"] == 64:
            return {"busy_64": run["busy"], "busy_64_source": "measured"}
    for row in result["simulated"][0]["outcomes"] if "simulated" in result else ():
        if row["workers"] == 64:
            return {"busy_64": row["busy"], "busy_64_source": "simulated"}
    return {}


def miniature(options: argparse.Namespace) -> dict[str, Any]:
    """The bundled model."""
    settings = throughput.Settings(
        device="cpu", subjects=1, scenes=options.miniature_scenes, steps=options.miniature_steps
    )
    runs = []
    for count in options.miniature:
        runs.append(apart(throughput.measure, settings, count))
        say(f"the miniature on {count} worker(s): {runs[-1]}")
    return {"miniature": runs} if runs else {}


def _job(scratch: Path, pictures: int) -> Path:
    path = scratch / f"{pictures}.csv"
    if not path.exists():
        books.write_job(path, pictures, 50 if pictures < 10**5 else 1000)
    return path


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    main()
