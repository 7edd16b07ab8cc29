"""How many workers find a place on which machines, what each of them gets, and how much of its memory caches may take.

Everything is counted machine by machine, as Ray places workers: two GPUs on one machine and one on another are no place
for two workers with one and a half of them each, whatever their sum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consistory_ray.engine.cluster.address import LOCAL, ray_address
from consistory_ray.engine.options import Device, RunOptions
from consistory_ray.errors import InputError, Problem
from consistory_ray.settings import BUNDLED_MODEL

CACHE_SHARE = 0.75
"""The part of a machine's object store that anchor caches may take. Ray begins to spill to the disk at 80 %."""
UNKNOWN_STORE = 1 << 30
"""Bytes that caches may take on a machine whose object store is not known."""
PARTS = 10_000
"""Ray counts resources in ten-thousandths."""

_ACCELERATOR = "accelerator_type:"
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_SELECTOR = re.compile(rf"(!?)(?:({_WORD})|in\(({_WORD}(?:, ?{_WORD})*)\))")


@dataclass(frozen=True, slots=True)
class WorkerShape:
    """How many workers to ask for, and what each gets."""

    count: int
    device: Device
    num_cpus: float
    num_gpus: float
    threads: int


@dataclass(frozen=True, slots=True)
class Machine:
    """A node of the cluster that is up.

    Attributes:
        node: its id.
        cpus, gpus: what Ray hands out of it.
        store: bytes of its object store; 0 if not known.
        accelerators: what they are called.
        labels: of the node.
    """

    node: str
    cpus: float = 0.0
    gpus: float = 0.0
    store: int = 0
    accelerators: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)

    def places(self, cpus: float, gpus: float) -> int:
        """How many workers that get so much find room on it."""
        rooms = []
        if cpus:
            rooms.append(_parts(self.cpus) // _parts(cpus))
        if gpus >= 1:
            rooms.append(_parts(self.gpus) // _parts(gpus))
        elif gpus:  # a share is a share of one device
            whole, rest = divmod(_parts(self.gpus), PARTS)
            rooms.append(whole * (PARTS // _parts(gpus)) + rest // _parts(gpus))
        return min(rooms, default=0)


def machines() -> list[Machine]:
    """The nodes of the joined cluster that are up."""
    import ray

    return [_machine(node) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def cache_limits() -> dict[str, int]:
    """How many bytes of anchor caches each machine that is up may hold, by node id."""
    return {there.node: int(CACHE_SHARE * there.store) or UNKNOWN_STORE for there in machines()}


def starts_own_ray(options: RunOptions) -> bool:
    """Whether the run will start a Ray of its own, to which no machines come later. To be asked before it joins one."""
    import ray

    return not ray.is_initialized() and ray_address(options.address) == LOCAL


def shape_workers(options: RunOptions) -> WorkerShape:
    """What to ask the joined cluster for.

    Raises:
        InputError: no worker finds a place on any node that is up, and ``options.workers`` does not say that others
            will start.
    """
    there = machines()
    allowed = [machine for machine in there if _allowed(machine, options)]
    gpus = options.accelerator_type is not None or any(machine.gpus for machine in allowed or there)
    device = options.device if options.device != "auto" else "cuda" if gpus else "cpu"
    shape = _cuda_shape(allowed, options) if device == "cuda" else _cpu_shape(allowed, options)
    if options.workers is None and not places(options, shape):
        raise _unplaceable(there, allowed, options, shape)
    return shape


def check_shape(options: RunOptions, shape: WorkerShape, model: str, *, grows: bool) -> None:
    """What speaks against such workers, knowing more of the run.

    Args:
        options: the run's options.
        shape: what is to be asked for.
        model: what the workers will load.
        grows: whether machines may still come.

    Raises:
        InputError: the device was left open, GPUs may only still come, and the model is one for GPUs; or no worker
            finds a place and no machine will come.
    """
    if (
        options.device == "auto"
        and shape.device == "cpu"
        and ray_address(options.address) != LOCAL
        and _is_large(model)
    ):
        fix = (
            "no node with a GPU is up: say --device cuda --workers N if such nodes will still start, or --device cpu "
            "if it is really to be rendered on CPUs"
        )
        raise InputError(f"nothing says what {model} is to be rendered on", [Problem("device", "auto", fix)])
    if not grows and not places(options, shape):
        there = machines()
        allowed = [machine for machine in there if _allowed(machine, options)]
        raise _unplaceable(there, allowed, options, shape, grows=False)


def places(options: RunOptions, shape: WorkerShape) -> int:
    """How many workers of that shape find a place on the nodes that are up."""
    return sum(there.places(shape.num_cpus, shape.num_gpus) for there in machines() if _allowed(there, options))


def _cuda_shape(allowed: Sequence[Machine], options: RunOptions) -> WorkerShape:
    gpus = options.gpus_per_worker
    cpus = options.cpus_per_worker
    if cpus is None:  # one each, or less where a machine has fewer CPUs than it has room for workers
        carrying = [(there.cpus, count) for there in allowed if (count := there.places(0.0, gpus))]
        cpus = min([1.0, *(_floor(there / count) for there, count in carrying if there)])
        if carrying and not any(there for there, _ in carrying):
            cpus = 0.0
    count = options.workers or max(1, sum(there.places(cpus, gpus) for there in allowed))
    return WorkerShape(count, "cuda", cpus, gpus, max(1, int(cpus)))


def _cpu_shape(allowed: Sequence[Machine], options: RunOptions) -> WorkerShape:
    least = options.cpus_per_worker or 0.01
    cores = sorted(there.cpus for there in allowed if there.places(least, 0.0)) or [least if least > 1 else 1.0]
    count = options.workers or len(cores)
    cpus = options.cpus_per_worker or _even_share(cores, count)
    return WorkerShape(count, "cpu", cpus, 0.0, max(1, int(cpus)))


def _is_large(model: str) -> bool:
    """Whether it is a model's files, here or on the hub, rather than the bundled one or a renderer's own name."""
    return model != BUNDLED_MODEL and ("/" in model or model.endswith(".safetensors") or Path(model).exists())


def _unplaceable(
    there: Sequence[Machine],
    allowed: Sequence[Machine],
    options: RunOptions,
    shape: WorkerShape,
    *,
    grows: bool = True,
) -> InputError:
    """Why no worker finds a place: the first condition that no node fulfils."""
    later = ", or say with --workers how many workers nodes that still start will carry" if grows else ""
    cuda = shape.device == "cuda"
    if cuda and not any(machine.gpus for machine in there):
        fix = "use --device cpu"
        fix += ", or say with --workers how many GPU workers the cluster may still start" if grows else ""
        return InputError("the cluster has no GPU", [Problem("device", options.device, fix)])
    fitting = [machine for machine in there if _has_accelerator(machine, options)]
    if not fitting:
        known = sorted({name for machine in there for name in machine.accelerators})
        fix = f"the nodes have {_listed(known, 'accelerators without a name')}: name one of these{later}"
        problem = Problem("accelerator_type", str(options.accelerator_type), fix)
    elif not allowed:
        keys = options.label_selector
        known = sorted({f"{key}={machine.labels[key]}" for machine in fitting for key in keys if key in machine.labels})
        fix = f"the nodes have {_listed(known, 'no such labels')}: ask for one of these{later}"
        problem = Problem("label_selector", ",".join(f"{key}={value}" for key, value in keys.items()), fix)
    elif cuda and not any(machine.places(0.0, shape.num_gpus) for machine in allowed):
        most = max(machine.gpus for machine in allowed)
        fix = f"no node has more than {most:g} GPUs that may be used: give at most that{later}"
        name = "gpus_per_worker" if most else "device"
        problem = Problem(name, f"{shape.num_gpus:g}" if most else options.device, fix)
    else:
        carrying = [machine for machine in allowed if machine.places(0.0, shape.num_gpus) or not cuda]
        most = max((machine.cpus for machine in carrying), default=0.0)
        which = "no node with that many GPUs" if cuda else "no node"
        if most:
            fix = f"{which} has more than {most:g} CPUs: give at most that{later}"
            problem = Problem("cpus_per_worker", f"{shape.num_cpus:g}", fix)
        else:
            fix = f"{which} has CPUs for workers (their num-cpus is 0): add nodes that have{later}"
            problem = Problem("device", options.device, fix)
    return InputError("no node has a place for a worker", [problem])


def _allowed(there: Machine, options: RunOptions) -> bool:
    return _has_accelerator(there, options) and all(
        _matches(there.labels.get(key), wanted) for key, wanted in options.label_selector.items()
    )


def _has_accelerator(there: Machine, options: RunOptions) -> bool:
    return options.accelerator_type is None or options.accelerator_type in there.accelerators


def _matches(value: str | None, wanted: str) -> bool:
    """Whether a label is as Ray's selectors say: ``a``, ``!a``, ``in(a,b)``, ``!in(a,b)``.

    Raises:
        InputError: it is none of these.
    """
    found = _SELECTOR.fullmatch(wanted)
    if found is None:
        fix = "give a value, !value, in(value,value) or !in(value,value)"
        raise InputError("this label selector cannot be used", [Problem("label_selector", wanted, fix)])
    other, one, several = found.groups()
    return (value in ([one] if one else re.split(", ?", several))) != bool(other)


def _machine(node: Mapping[str, Any]) -> Machine:
    has = node["Resources"]
    return Machine(
        node=str(node.get("NodeID", "")),
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        store=int(has.get("object_store_memory", 0.0)),
        accelerators=frozenset(name.removeprefix(_ACCELERATOR) for name in has if name.startswith(_ACCELERATOR)),
        labels=node.get("Labels") or {},
    )


def _even_share(cores: Sequence[float], count: int) -> float:
    """CPUs for each of so many workers, so that all of them find a place on machines of so many cores."""
    for whole in range(int(sum(cores) / count), 0, -1):  # Ray wants whole numbers above 1
        if sum(int(there / whole) for there in cores) >= count:
            return float(whole)
    return max(0.01, _floor(sum(cores) / count))


def _floor(value: float) -> float:
    return int(100 * value) / 100


def _parts(value: float) -> int:
    return round(value * PARTS)


def _listed(known: Sequence[str], none: str) -> str:
    return ", ".join(known) or none
