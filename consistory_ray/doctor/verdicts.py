"""What is wrong with what was found, and what to do about it. Pure: no torch."""

from __future__ import annotations

from collections.abc import Sequence

from consistory_ray.doctor.diagnosis import VANILLA, Finding, KernelCheck, Machine, PrecisionCheck, Speeds, Timing
from consistory_ray.engine.events import size
from consistory_ray.settings import BUNDLED_MODEL

FAR = {"float16": 0.1, "bfloat16": 0.3}
"""Differences of half precision from float32, over the latents' own root mean square, that rounding does not make."""
FLIPPED = 0.2
"""Share of mask tokens that may fall on the other side."""
INEXACT = 0.02
"""Difference of a half-precision attention kernel from float32, over the result's own."""
BUSY = 0.8
"""Share of a device's memory that is free on one that nobody else uses."""
CACHES = 2
"""Anchor caches that a worker has at a time: the subject in hand and the next one."""
STORE_SHARE = 0.75
"""Of the object store, that caches may take."""
FEW_BYTES = 2e9
SLOW_COPY = 4.0
"""10^9 bytes a second; PCIe 3.0 with 16 lanes has 12, with 4 lanes 3."""
_HALF_FIX = (
    "render in bfloat16 or float32: settings: {torch_dtype: bfloat16}, and consistory-ray doctor --dtype bfloat16"
)


def of_devices(machine: Machine, device: str) -> list[Finding]:
    """Of the driver and the devices.

    Args:
        machine: the machine.
        device: that was asked for: ``auto``, ``cpu``, ``cuda``.
    """
    found = []
    if machine.cuda and not machine.gpus and device != "cpu":
        why = f": {machine.cuda_problem}" if machine.cuda_problem else ""
        driver = f"driver {machine.driver}" if machine.driver else "no driver"
        text = f"torch is built for CUDA {machine.cuda} and finds no device ({driver}){why}"
        fix = (
            "see that nvidia-smi lists the GPU and that its driver is new enough for this CUDA, in a container that it"
        )
        fix += " is given GPUs; where there is none, --device cpu, or torch from its index of CPU builds"
        found.append(Finding("wrong", "CUDA", text, fix))
    if not machine.cuda and machine.driver and device != "cpu":
        text = f"there is a GPU (driver {machine.driver}), and torch is a build without CUDA"
        found.append(
            Finding("wrong", "CUDA", text, "install torch from PyPI, or from the index of your CUDA's version")
        )
    for index, gpu in enumerate(machine.gpus):
        where = f"cuda:{index}"
        if gpu.problem:
            fix = f"install a torch with kernels for compute capability {gpu.capability}; else see dmesg for Xid errors"
            found.append(Finding("wrong", where, f"{gpu.name} does not compute: {gpu.problem}", fix))
        elif gpu.free < BUSY * gpu.memory:
            text = f"{size(gpu.memory - gpu.free)} of {size(gpu.memory)} are taken by others: times are not its best"
            found.append(Finding("warning", where, text, "end what nvidia-smi lists, or measure when it is done"))
    return found


def of_memory(needed: int, free: int, what: str) -> list[Finding]:
    """Whether a model has room on the device."""
    if needed <= free:
        return []
    text = f"{what} and one picture take about {size(needed)}, and {size(free)} are free"
    fix = "end what else is on the device, take one with more memory, or smaller pictures (settings: {height, width})"
    return [Finding("wrong", "memory", text, fix)]


def of_kernels(checks: Sequence[KernelCheck], device: str, dtype: str) -> list[Finding]:
    """Of attention: that every call has a kernel, a fused one, and the right result."""
    found = []
    for check in (check for check in checks if check.choice == "auto"):
        what = f"{check.call} attention"
        if not check.kernel:
            fix = "unset CONSISTORY_RAY_ATTENTION_KERNEL, and try --dtype float32; else torch does not fit this device"
            found.append(Finding("wrong", what, f"no kernel computes it in {dtype}: {check.why}", fix))
        elif device == "cuda" and check.kernel == "math":
            why = "; ".join(
                f"{other.choice}: {other.why}" for other in checks if other.call == check.call and other.why
            )
            text = f"no fused kernel takes {dtype} here, which costs time and memory ({why})"
            found.append(Finding("warning", what, text, "use float16, or a device of compute capability 7.5 or more"))
    for check in checks:
        if check.kernel and not check.error < INEXACT:  # NaN is not, either
            text = f"{check.choice} differs from float32 by {check.error:.3g} of the result"
            level = "wrong" if check.choice == "auto" else "warning"
            fix = "choose another one with CONSISTORY_RAY_ATTENTION_KERNEL, and tell PyTorch's developers"
            found.append(Finding(level, f"{check.call} attention", text, fix))
    return found


def of_precision(check: PrecisionCheck, used: str) -> list[Finding]:
    """Of half precision, which is only wrong where it is used.

    Args:
        check: of it.
        used: the dtype that pictures are rendered in here.
    """
    if not check.finite:
        text = f"{check.dtype} gives numbers that are not finite"
    elif check.rms < FAR[check.dtype] and check.flipped < FLIPPED:
        return []
    else:
        text = f"{check.dtype} is {check.rms:.2g} away from float32 after {check.steps} steps"
        text += f", with {100 * check.flipped:.0f} % of mask tokens on the other side"
    if check.dtype != used:
        return [Finding("note", "precision", f"{text}; {used} is used here")]
    return [Finding("wrong", "precision", text, _HALF_FIX)]


def of_speeds(speeds: Speeds) -> list[Finding]:
    """Of copies between host and device."""
    pinned = speeds.copies.get("pinned to device")
    if pinned is None or pinned >= SLOW_COPY:
        return []
    text = f"{pinned:.1f} GB/s from the host to the device: anchor caches that do not fit on it take long to come"
    return [Finding("warning", "copies", text, "see that the card has all of its lanes (nvidia-smi -q -d PERFORMANCE)")]


def of_timings(timings: Sequence[Timing]) -> list[Finding]:
    """Of pictures: that a single one can be made."""
    failed = [timing for timing in timings if timing.batch == 1 and timing.why.startswith("failed")]
    fix = (
        "end what else is on the device, take smaller pictures or another dtype; --log-level debug of render shows more"
    )
    found = [Finding("wrong", timing.way, f"one picture: {timing.why}", fix) for timing in failed]
    skipped = [timing for timing in timings if timing.why.startswith("skipped")]
    if skipped:
        text = f"{len(skipped)} measurements were left out for want of time"
        found.append(Finding("note", "time", text, "--seconds gives more of it"))
    return found


def of_disks(machine: Machine, cache_bytes: int, model: str) -> list[Finding]:
    """Of the room for Ray's object store, where anchor caches lie, and for its files."""
    found = []
    place, needed = machine.shared_memory, int(CACHES * cache_bytes / STORE_SHARE)
    if place is not None and place.free < needed and model != BUNDLED_MODEL:
        text = f"{place.folder} has {size(place.free)} free: Ray's object store should hold {size(needed)} for each GPU"
        fix = "in a container give it --shm-size; else render with a profile whose caches are smaller"
        found.append(Finding("warning", "object store", text, fix))
    if machine.temporary.free < FEW_BYTES:
        text = f"{size(machine.temporary.free)} are free at {machine.temporary.folder}, where Ray's own files go"
        found.append(Finding("warning", "disk", text, "make room there, or name another place by RAY_TMPDIR"))
    return found


def of_batches(timings: Sequence[Timing]) -> list[Finding]:
    """Batches that did not fit, and a vanilla picture that costs as much as before in a batch."""
    found = []
    full = sorted({timing.batch for timing in timings if timing.batch > 1 and timing.why == "out of memory"})
    if full:
        text = f"batches of {' and '.join(map(str, full))} do not fit into memory; runs halve what does not fit"
        found.append(Finding("note", "memory", text))
    seconds = {timing.batch: timing.seconds for timing in timings if timing.way == VANILLA and timing.seconds}
    many = max(seconds, default=1)
    if many > 1 and 1 in seconds and (seconds[many] or 0) > 1.1 * (seconds[1] or 0):
        text = f"a picture takes longer in a batch of {many} than alone"
        found.append(Finding("note", "batches", text, "settings: {batch_size: 1} in jobs for this machine"))
    return found
