"""From pictures, seconds and prices to hours, money, energy, storage and requests: arithmetic, without files or clocks.

Hours are hours of a device: of one GPU, or of one machine where there is none. A picture takes seconds by the calls of
the network that its settings need (:mod:`consistory_ray.consistory.method.call_counts`) and by its pixels, so that what
is known of one profile, size and number of steps tells the others.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from consistory_ray.consistory.method.call_counts import anchor_calls, scene_calls
from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.problems import shown
from consistory_ray.plan.forecast import CONTROLLED, assets_with_calls, mean_controls, megapixels, rough_seconds
from consistory_ray.plan.prices import CPU, MOST, Gpu, PriceFile, Spread
from consistory_ray.settings import BUNDLED_MODEL, MethodSettings

if TYPE_CHECKING:
    from consistory_ray.plan.forecast import Forecast
    from consistory_ray.plan.plan import Plan

Basis = Literal["measured", "assumed", "rough"]
HOUR = 3600.0
_NOTHING = Spread.exactly(0.0)
_ROUGH = 3.0
"""What nobody measured may take a third of the rough figure, or three times it."""
_MIN_SAMPLES = 3
_PICTURE_BYTES = Spread(low=0.55, likely=1.0, high=1.7)
"""Bytes of PNG files, as a multiple of what the forecast says: flat drawings are smaller, noise cannot be packed."""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a run goes by.

    Attributes:
        kind: of its devices; empty where nobody said it.
        per_hour: money for an hour of one; None where that is not known.
        currency: of that; empty where nobody said it.
        gpu: what the price file says of the kind.
        measured: seconds of a call of the network for a million pixels, in an earlier run.
        start: seconds of a machine until its worker renders.
    """

    kind: str = ""
    per_hour: float | None = None
    currency: str = ""
    gpu: Gpu | None = None
    measured: Spread | None = None
    start: Spread = _NOTHING

    def cost(self, device_hours: float) -> float | None:
        """Money for so many hours; None where no price is known."""
        return None if self.per_hour is None else device_hours * self.per_hour


@dataclass(frozen=True, slots=True)
class Bill:
    """What is left of a plan on one kind of device.

    Attributes:
        kind: of the devices.
        basis: where seconds come from: an earlier run, an assumption of the price file, or the program's rough figure.
        pictures: how many are to be made.
        workers: on how many devices.
        device_hours: of all of them together, starts included.
        hours: from the beginning to the end.
        currency: of all money.
        per_hour, spot_per_hour: money for an hour of a device; None where there is no such price.
        cost, spot_cost: of the device hours.
        kwh: what the devices draw at most in their hours, in kilowatt-hours, without the machines around them.
        devices_for_deadline: how many are needed to be done in time; None where there is no deadline, and in each of
            its three places where no number is enough.
    """

    kind: str
    basis: Basis
    pictures: int
    workers: int
    device_hours: Spread
    hours: Spread
    currency: str
    per_hour: float | None
    cost: Spread | None
    spot_per_hour: float | None
    spot_cost: Spread | None
    kwh: Spread | None
    devices_for_deadline: tuple[int | None, int | None, int | None] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value.model_dump() if isinstance(value, Spread) else value for name, value in values.items()}

    def to_record(self) -> dict[str, float]:
        """What is compared with the outcome: pictures, device hours and cost, as plain numbers."""
        spreads = {"device_hours": self.device_hours, **({"cost": self.cost} if self.cost is not None else {})}
        flat = {
            f"{name}_{end}": value for name, spread in spreads.items() for end, value in spread.model_dump().items()
        }
        return {"pictures": self.pictures, **{name: round(value, 6) for name, value in flat.items()}}


@dataclass(frozen=True, slots=True)
class Shelf:
    """What keeping and moving a plan's files costs.

    Attributes:
        gigabytes: pictures and anchor caches that will lie at the output, in 10^9 bytes.
        per_month: money for that.
        puts, gets: requests of the pictures that are to be made.
        requests_cost: money for those.
    """

    gigabytes: Spread
    per_month: Spread
    puts: Spread
    gets: Spread
    requests_cost: Spread

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return {name: getattr(self, name).model_dump() for name in self.__slots__}


def rate_of(
    prices: PriceFile,
    kind: str,
    *,
    price: float | None = None,
    spot: bool = False,
    measured: Spread | None = None,
    needed: str = "",
) -> Rate:
    """What a run on a kind of device goes by.

    Args:
        prices: the price file.
        kind: of device; may be empty.
        price: per hour, in the place of the file's.
        spot: the file's price of spot machines.
        measured: see :class:`Rate`.
        needed: the option that cannot do without a price; empty where none needs one.

    Raises:
        InputError: there is no such price.
    """
    if price is not None and not 0 <= price <= MOST:
        fix = "give an amount of money from 0"
        raise InputError("this price cannot be used", [Problem("--price-per-gpu-hour", str(price), fix)])
    gpu = prices.gpus.get(kind)
    per_hour = price
    if per_hour is None and gpu is not None:
        per_hour = gpu.spot_per_hour if spot else gpu.per_hour
    if per_hour is None and (needed or (spot and gpu)):
        other = "has no spot_per_hour in the prices" if spot and gpu else "is not in the prices"
        fix = f"it {other}: give one that is ({', '.join(prices.gpus)}), or --price-per-gpu-hour"
        what = f"{needed or '--spot'} needs the price of an hour"
        raise InputError(what, [Problem("--accelerator-type", shown(kind) if kind else "none", fix)])
    return Rate(kind, per_hour, prices.currency, gpu, measured, prices.start_seconds)


def kinds_of(prices: PriceFile, device: str) -> list[str]:
    """The kinds that a plan may be rendered on, where nobody says which: all GPUs, or the machine without one."""
    return [kind for kind in prices.gpus if (kind == CPU) == (device == "cpu")] or [CPU if device == "cpu" else ""]


def seconds_measured(plan: Plan, seconds: Mapping[str, float]) -> Spread | None:
    """Seconds of a call of the network for a million pixels: median, and the values that a tenth lies beyond.

    Args:
        plan: of the run that was measured.
        seconds: that its pictures took, by asset id.

    Returns:
        None where there are fewer than three pictures.
    """
    pixels = {subject.subject_id: megapixels(plan.model, subject.settings) for subject in plan.subjects}
    samples = sorted(
        seconds[asset.asset_id] / (calls * pixels[asset.subject_id])
        for asset, calls in assets_with_calls(plan)
        if asset.asset_id in seconds
    )
    if len(samples) < _MIN_SAMPLES:
        return None
    tenths = statistics.quantiles(samples, n=10, method="inclusive")
    median = statistics.median(samples)
    return Spread(low=min(tenths[0], median), likely=median, high=max(tenths[-1], median))


def bill(plan: Plan, done: Collection[str], rate: Rate, *, workers: int = 1, deadline: float | None = None) -> Bill:
    """What is left of a plan takes and costs on devices of one kind.

    Args:
        plan: of the job.
        done: ids of the pictures that are not to be made.
        rate: prices and seconds.
        workers: on how many devices.
        deadline: seconds in which it has to be done.
    """
    rendering, basis, pictures = _rendering(plan, done, rate)
    workers = min(workers, pictures)
    seconds = rendering + rate.start * workers
    hours = seconds * (1 / HOUR)
    gpu = rate.gpu
    spot = gpu.spot_per_hour if gpu is not None else None
    return Bill(
        kind=rate.kind,
        basis=basis,
        pictures=pictures,
        workers=workers,
        device_hours=hours,
        hours=hours * (1 / max(1, workers)),
        currency=rate.currency,
        per_hour=rate.per_hour,
        cost=None if rate.per_hour is None else hours * rate.per_hour,
        spot_per_hour=spot,
        spot_cost=None if spot is None else hours * spot,
        kwh=None if gpu is None or gpu.watts is None else hours * (gpu.watts / 1000),
        devices_for_deadline=None if deadline is None else _devices(rendering, rate.start, deadline, pictures),
    )


def shelf(forecast: Forecast, prices: PriceFile) -> Shelf:
    """What keeping and moving the files of a plan costs."""
    gigabytes = _PICTURE_BYTES * (forecast.picture_bytes / 1e9) + Spread.exactly(forecast.kept_cache_bytes / 1e9)
    puts = prices.requests.puts_per_picture * forecast.todo
    gets = prices.requests.gets_per_picture * forecast.todo
    storage = prices.storage
    cost = puts * (storage.per_1000_puts / 1000) + gets * (storage.per_1000_gets / 1000)
    return Shelf(gigabytes, gigabytes * storage.per_gb_month, puts, gets, cost)


def worded(value: Spread | float, unit: str = "") -> str:
    """A number for a person: ``1.20 USD``; of a spread ``1.20 USD (0.60 to 4.00)``."""
    unit = f" {unit}" if unit else ""
    if not isinstance(value, Spread):
        return f"{figure(value)}{unit}"
    return f"{figure(value.likely)}{unit} ({figure(value.low)} to {figure(value.high)})"


def figure(value: float) -> str:
    """A number with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def compared(
    forecast: Mapping[str, float], outcome: Mapping[str, float], currency: str, *, over: bool = True
) -> list[str]:
    """What was expected of a run beside what it took, a line each.

    Args:
        forecast: as :meth:`Bill.to_record` has it.
        outcome: ``device_hours`` and ``cost``, as far as they are known.
        currency: of the cost.
        over: whether everything that was forecast was tried.
    """
    lines = []
    for name, unit in (("device_hours", "device-hours"), ("cost", currency)):
        try:
            expected = Spread.model_validate({end: forecast[f"{name}_{end}"] for end in ("low", "likely", "high")})
        except (KeyError, ValueError):  # of another version, or no price was known
            continue
        words, took = worded(expected, unit), outcome.get(name)
        if took is not None and not over:
            words = f"{worded(took, unit)} so far, of a forecast of {words}"
        elif took is not None:
            place = "below" if took < expected.low else "above" if took > expected.high else "within"
            words = f"{worded(took, unit)}, {place} the forecast of {words}"
        lines.append(words)
    return lines


def _devices(
    rendering: Spread, start: Spread, deadline: float, pictures: int
) -> tuple[int | None, int | None, int | None]:
    """How many devices share the rendering so that each has started and is done in time; a picture is not shared."""

    def enough(seconds: float, begun: float) -> int | None:
        if not pictures:
            return 0
        if deadline <= begun or (wanted := math.ceil(seconds / (deadline - begun))) > pictures:
            return None
        return max(1, wanted)

    ends = ((rendering.low, start.low), (rendering.likely, start.likely), (rendering.high, start.high))
    low, likely, high = (enough(*end) for end in ends)
    return low, likely, high


def _rendering(plan: Plan, done: Collection[str], rate: Rate) -> tuple[Spread, Basis, int]:
    """Seconds of one device for all that is left, where they come from, and how many pictures that is."""
    paces: dict[tuple[MethodSettings, bool], tuple[Spread, Basis]] = {}
    led = 1.0 if rate.measured is not None else 1 + CONTROLLED * mean_controls(plan)
    total, pictures, bases = _NOTHING, 0, set[Basis]()
    kinds: tuple[tuple[str, Callable[[MethodSettings], float]], ...] = (
        ("anchors", anchor_calls),
        ("renders", scene_calls),
    )
    for subject in plan.subjects:
        settings = subject.settings
        for kind, calls in kinds:
            count = sum(asset.asset_id not in done for asset in getattr(subject, kind))
            if not count:
                continue
            key = settings, kind == "anchors"
            if key not in paces:
                paces[key] = _pace(plan.model, settings.exact if key[1] else settings, rate)
            pace, basis = paces[key]
            total += pace * (count * calls(settings) * megapixels(plan.model, settings) * led)
            pictures += count
            bases.add(basis)
    return total, next((basis for basis in ("rough", "assumed") if basis in bases), "measured"), pictures


def _pace(model: str, settings: MethodSettings, rate: Rate) -> tuple[Spread, Basis]:
    """Seconds of a call for a million pixels: as measured, or by the price file's entry that is most alike."""
    if rate.measured is not None:
        return rate.measured, "measured"
    pixels = megapixels(model, settings)
    entries = rate.gpu.pictures if rate.gpu is not None and model != BUNDLED_MODEL else ()
    if not entries:
        rough = rough_seconds(model, settings) / pixels
        return Spread(low=rough / _ROUGH, likely=rough, high=rough * _ROUGH), "rough"
    profile = settings.profile
    alike = min(
        entries, key=lambda one: (one.profile != profile, one.basis != "measured", abs(one.size**2 / 1e6 - pixels))
    )
    as_timed = MethodSettings(num_inference_steps=alike.steps).with_profile(alike.profile)
    return alike.seconds * (1 / (scene_calls(as_timed) * alike.size**2 / 1e6)), alike.basis
