"""What was found out about a machine: plain values, as they are shown and written as JSON. Pure: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["wrong", "warning", "note"]
RANDOM = "random"
"""Name of a model with random weights: of SDXL's size on a GPU, of few parameters on a CPU."""
VANILLA, ANCHORS = "vanilla", "anchors"
"""Ways to pictures besides the profiles: without the method; and two anchors, as every profile has them."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should know.

    Attributes:
        level: ``wrong`` keeps pictures from being made, or from being right; a ``warning`` costs time or room; a
            ``note`` explains a number.
        about: what it is about.
        text: what was found.
        fix: what to do about it; empty for a note.
    """

    level: Level
    about: str
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A CUDA device as torch sees it.

    Attributes:
        name: of the product.
        memory, free: bytes, of all processes.
        capability: of computing, such as ``"9.0"``.
        processors: how many multiprocessors it has.
        problem: why a small product of matrices failed there; empty where it did not.
    """

    name: str
    memory: int
    free: int
    capability: str
    processors: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder's disk: bytes in all, and bytes that are free."""

    folder: str
    size: int
    free: int


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine.

    Attributes:
        system: operating system and its version.
        cpus: how many this process may use.
        memory, memory_free: bytes of the host.
        versions: of Python and of the packages that matter.
        cuda: that torch was built for; empty for a build without it.
        cudnn: version; empty without.
        driver: version of the GPUs' driver; empty without one.
        cuda_problem: why a build for CUDA finds no device; empty where it finds some, or is none.
        gpus: the devices.
        shared_memory: where Ray's object store lies; None where there is no such place.
        temporary: where Ray's own files lie.
    """

    system: str
    cpus: int
    memory: int
    memory_free: int
    versions: Mapping[str, str]
    cuda: str
    cudnn: str
    driver: str
    cuda_problem: str
    gpus: tuple[Gpu, ...]
    shared_memory: Place | None
    temporary: Place


@dataclass(frozen=True, slots=True)
class KernelCheck:
    """A small call of the method's attention.

    Attributes:
        call: ``plain``, with as many keys as queries, or ``ragged``, with a number that is another at every step.
        choice: what was asked for, as ``CONSISTORY_RAY_ATTENTION_KERNEL`` names it.
        kernel: what computed it, by PyTorch's name; empty where nothing did.
        first_ms, ms: milliseconds of the first call of a shape, and of a later one.
        error: root mean square of the difference from float32, over that of the result.
        why: the reason where nothing computed it.
    """

    call: str
    choice: str
    kernel: str
    first_ms: float = 0.0
    ms: float = 0.0
    error: float = 0.0
    why: str = ""


@dataclass(frozen=True, slots=True)
class PrecisionCheck:
    """The same pictures of the same noise in half precision and in float32.

    Attributes:
        dtype: the half one.
        steps: that were denoised.
        rms, largest: difference of the latents over their root mean square.
        flipped: share of mask tokens that differ, of the level where it is largest.
        finite: whether latents and pictures were numbers in half precision.
        vanilla_rms: ``rms`` of a picture without the method.
    """

    dtype: str
    steps: int
    rms: float
    largest: float
    flipped: float
    finite: bool
    vanilla_rms: float


@dataclass(frozen=True, slots=True)
class Speeds:
    """What the device does at most.

    Attributes:
        matmul_tflops: 10^12 FLOPs a second of a large product of matrices, in the dtype that is used.
        copies: 10^9 bytes a second by way: ``pageable to device``, ``pinned to device``, ``device to pinned``; on a CPU
            ``in memory``.
    """

    matmul_tflops: float
    copies: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Timing:
    """What pictures took.

    Attributes:
        way: a profile, ``vanilla`` or ``anchors`` (of which there are two).
        batch: pictures at a time.
        steps: denoising steps.
        calls: of the network that a picture takes, in plain ones.
        full_calls: the same with the model's own number of steps.
        seconds: of a picture, decoding included; None where it was not measured.
        memory: peak bytes of the device, the model included; of a CPU's process so far.
        tflops: 10^12 FLOPs of a picture; None where they were not counted.
        why: why there are no seconds.
    """

    way: str
    batch: int
    steps: int
    calls: float
    full_calls: float
    seconds: float | None
    memory: int = 0
    tflops: float | None = None
    why: str = ""

    def seconds_for(self, calls: float) -> float | None:
        """Seconds of a picture that takes so many calls; None where nothing was measured.

        What does not depend on the calls, decoding for the most part, is taken to rise with them: after few steps that
        is on the large side.
        """
        return None if self.seconds is None else self.seconds * calls / self.calls

    def mfu(self, speeds: Speeds | None) -> float | None:
        """Share of what the device multiplies at most; None where FLOPs or seconds are unknown."""
        if speeds is None or not self.seconds or self.tflops is None or not speeds.matmul_tflops:
            return None
        return self.tflops / self.seconds / speeds.matmul_tflops


@dataclass(frozen=True, slots=True)
class JobForecast:
    """What a job would take here.

    Attributes:
        name: of the job.
        anchors, scenes: pictures.
        profiles: profile -> scenes.
        batch: scenes at a time.
        workers: devices that share the work.
        seconds: of all.
        scaled: whether its pictures have another size, or its subjects another number of anchors, than was measured.
    """

    name: str
    anchors: int
    scenes: int
    profiles: Mapping[str, int]
    batch: int
    workers: int
    seconds: float
    scaled: bool


@dataclass(frozen=True)
class Diagnosis:
    """All of it. What could not be found out is None or empty, and a finding says why.

    Attributes:
        model: what was measured.
        device, dtype: where, and in what.
        machine: the machine.
        kernels: of each call and choice.
        precision: half against float32.
        speeds: of the device.
        timings: of pictures.
        steps: denoising steps that the model's pictures have by default, which estimates are for.
        size: height and width of the pictures.
        mask_share: share of the anchors that their masks cover.
        forecast: of a job.
        findings: in the order of the examination.
        seconds: that the examination took.
    """

    model: str
    device: str
    dtype: str
    machine: Machine
    kernels: tuple[KernelCheck, ...] = ()
    precision: PrecisionCheck | None = None
    speeds: Speeds | None = None
    timings: tuple[Timing, ...] = ()
    steps: int = 0
    size: tuple[int, int] = (0, 0)
    mask_share: float | None = None
    forecast: JobForecast | None = None
    findings: tuple[Finding, ...] = field(default=())
    seconds: float = 0.0

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.level != "wrong" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with what follows from it: ``is_well``, and of each timing ``mfu`` and ``full_seconds``."""
        told = asdict(self) | {"is_well": self.is_well}
        for timing, values in zip(self.timings, told["timings"], strict=True):
            values["mfu"] = timing.mfu(self.speeds)
            values["full_seconds"] = timing.seconds_for(timing.full_calls)
        return told
