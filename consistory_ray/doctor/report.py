"""A diagnosis as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from consistory_ray.doctor.diagnosis import ANCHORS, Diagnosis, KernelCheck, Timing
from consistory_ray.engine.events import duration, plural, size
from consistory_ray.guards.redaction import redacted
from consistory_ray.watch.reports import line

STYLES = {"wrong": "bold red", "warning": "yellow", "note": "dim"}


def print_diagnosis(console: Console, told: Diagnosis) -> None:
    """The machine, what was measured, and at the end what is wrong."""
    for text in _machine(told):
        line(console, text)
    if told.kernels:
        _title(
            console,
            f"Attention in {told.dtype}",
            "ms of the first call of a shape → of later ones, ± distance from float32",
        )
        console.print(_kernels(told.kernels))
    for text in _speeds(told):
        line(console, text)
    if told.timings:
        _title(console, *_pictures_title(told))
        console.print(_pictures(told))
        line(
            console,
            "~ is from fewer steps; (%) is of the TFLOPS of a product of matrices; anchors are two at a time",
            "dim",
        )
    if (job := told.forecast) is not None:
        scenes = ", ".join(f"{count} {profile}" for profile, count in job.profiles.items())
        basis = ", scaled to its sizes" if job.scaled else ""
        where = f"on {plural(job.workers, 'device')} with {job.batch} at a time{basis}"
        pictures = f"{plural(job.anchors, 'anchor')} and {plural(job.scenes, 'scene')} ({scenes})"
        line(console, Text.assemble((f"\n{job.name}", "bold"), f": about {duration(job.seconds)} {where}: {pictures}"))
    _print_findings(console, told)


def _print_findings(console: Console, told: Diagnosis) -> None:
    console.print()
    for finding in told.findings:
        head = (f"{finding.level}: ", STYLES[finding.level])
        line(console, Text.assemble(head, (finding.about, "bold"), f": {redacted(finding.text)}"))
        if finding.fix:
            line(console, f"    {redacted(finding.fix)}")
    verdict, style = ("nothing is wrong", "bold green") if told.is_well else ("something is wrong", "bold red")
    line(console, f"{verdict} ({duration(told.seconds)})", style)


def _machine(told: Diagnosis) -> Iterator[str]:
    found = told.machine
    yield ", ".join(f"{name} {version}" for name, version in found.versions.items())
    memory = f"{size(found.memory)} of memory, {size(found.memory_free)} free"
    yield f"{found.system}, {plural(found.cpus, 'CPU')}, {memory}"
    if found.cuda or found.driver:
        yield f"CUDA {found.cuda or 'none'}, cuDNN {found.cudnn or 'none'}, driver {found.driver or 'none'}"
    for index, gpu in enumerate(found.gpus):
        parts = f"{gpu.processors} multiprocessors, compute capability {gpu.capability}"
        yield f"cuda:{index}: {gpu.name}, {size(gpu.memory)}, {size(gpu.free)} free, {parts}"
    for place in (found.shared_memory, found.temporary):
        if place is not None:
            yield f"{place.folder}: {size(place.size)}, {size(place.free)} free"


def _speeds(told: Diagnosis) -> Iterator[str]:
    yield ""
    if told.speeds is not None:
        copies = ", ".join(f"{way} {speed:.1f} GB/s" for way, speed in told.speeds.copies.items())
        yield f"{told.device}: {told.speeds.matmul_tflops:.3g} TFLOPS in a product of {told.dtype} matrices; {copies}"
    if (check := told.precision) is not None and check.finite:
        apart = (
            f"{check.rms:.2g} away from float32 after {plural(check.steps, 'step')}, vanilla {check.vanilla_rms:.2g}"
        )
        yield f"{check.dtype}: {apart}; {100 * check.flipped:.2g} % of mask tokens differ"


def _title(console: Console, title: str, under: str) -> None:
    line(console, Text.assemble(("\n" + title, "bold"), (f"   {under}", "dim")))


def _pictures_title(told: Diagnosis) -> tuple[str, str]:
    masks = "" if told.mask_share is None else f", masks of {100 * told.mask_share:.0f} %"
    height, width = told.size
    what = f"{told.model} in {told.dtype} on {told.device}, {height} x {width}, {told.steps} steps{masks}"
    return "Seconds of a picture", what


def _kernels(checks: Sequence[KernelCheck]) -> Table:
    calls = list(dict.fromkeys(check.call for check in checks))
    table = _table("kernel", *calls)
    for choice in dict.fromkeys(check.choice for check in checks):
        table.add_row(choice, *(_kernel(check) for check in checks if check.choice == choice))
    return table


def _kernel(check: KernelCheck) -> Text:
    if not check.kernel:
        return Text(check.why, style="dim")
    named = "" if check.kernel == check.choice else f"{check.kernel}, "
    return Text(f"{named}{check.first_ms:.3g} → {check.ms:.3g}, ±{check.error:.0e}")


def _pictures(told: Diagnosis) -> Table:
    batches = sorted({timing.batch for timing in told.timings})
    ways = [way for way in dict.fromkeys(timing.way for timing in told.timings) if way != ANCHORS]
    table = _table("", *(f">{'alone' if batch == 1 else f'{batch} at a time'}" for batch in batches), ">memory")
    for way in [*ways, ANCHORS]:
        of_way = [timing for timing in told.timings if timing.way == way]
        if of_way:
            table.add_row(way, *(_picture(told, way, batch) for batch in batches), _peaks(of_way))
    return table


def _peaks(timings: Sequence[Timing]) -> str:
    peaks = {timing.batch: timing.memory for timing in timings if timing.seconds}
    if not peaks:
        return ""
    return " … ".join(size(peaks[batch]) for batch in sorted({min(peaks), max(peaks)}))


def _picture(told: Diagnosis, way: str, batch: int) -> Text:
    timing = next((one for one in told.timings if (one.way, one.batch) == (way, batch)), None)
    if timing is None:
        return Text("")
    seconds = timing.seconds_for(timing.full_calls)
    if seconds is None:
        return Text(timing.why.split(":")[0], style="dim")
    about = "" if timing.steps == told.steps else "~"
    share = timing.mfu(told.speeds)
    return Text(f"{about}{seconds:.3g}" + ("" if share is None else f" ({100 * share:.0f} %)"))


def _table(*headers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for header in headers:
        table.add_column(header.lstrip(">"), justify="right" if header.startswith(">") else "left", overflow="fold")
    return table
