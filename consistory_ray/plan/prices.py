"""The price file: what machines, storage and requests cost, and how long a picture takes on which GPU.

The package brings one, ``prices.yaml``, of examples that are to be replaced; a user's own wins whole.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from consistory_ray.errors import InputError, Problem
from consistory_ray.guards.choices import Profile
from consistory_ray.guards.outside import read_regular
from consistory_ray.guards.problems import did_you_mean, fault, path, shown
from consistory_ray.jobs.yaml_events import read_yaml

DEFAULT_PRICES = Path(__file__).with_name("prices.yaml")
CPU = "CPU"
"""The kind that stands for a machine without a GPU."""
_MOST_BYTES = 1 << 20
MOST = 1e9
"""No number of a price file is larger."""

_SPREAD = "write a number from 0 to 10^9, or {low: 3, likely: 5, high: 9} with such numbers that do not fall"
_MONEY = "write a number from 0 such as 2.5, in the currency of the file"
_FIXES = {
    "version": "write 1",
    "currency": "write 1 to 12 letters such as USD",
    "dated": "write when the prices were looked up, in quotes, such as '2026-06'",
    "note": "write text of at most 2000 characters",
    "storage": "write {per_gb_month: 0.023, per_1000_puts: 0.005, per_1000_gets: 0.0004}",
    "requests": "write {puts_per_picture: 1.3, gets_per_picture: 2}",
    "gpus": "write a mapping of up to 200 kinds by Ray's names, such as L4: {per_hour: 0.8, watts: 72}",
    "pictures": "write a list of up to 64 such as [{profile: exact, size: 1024, steps: 50, seconds: 5}]",
    "watts": "write a number from 0 to 100000",
    "profile": "write exact, fast or turbo",
    "size": "write the side of a square picture in pixels, from 64 to 8192",
    "steps": "write a whole number from 1 to 1000",
    "basis": "write measured or assumed",
    **dict.fromkeys(("start_seconds", "seconds", "puts_per_picture", "gets_per_picture"), _SPREAD),
    **dict.fromkeys(("per_hour", "spot_per_hour", "per_gb_month", "per_1000_puts", "per_1000_gets"), _MONEY),
}

_Money = Annotated[float, Field(ge=0, le=MOST)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Spread(_Strict):
    """A number that nobody knows exactly: from ``low`` to ``high``, and what is most ``likely``."""

    low: Annotated[float, Field(ge=0)]
    likely: Annotated[float, Field(ge=0)]
    high: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _rises(self) -> Spread:
        if not self.low <= self.likely <= self.high:
            raise fault(_SPREAD)
        return self

    def __add__(self, other: Spread) -> Spread:
        return Spread(low=self.low + other.low, likely=self.likely + other.likely, high=self.high + other.high)

    def __mul__(self, factor: float) -> Spread:
        return Spread(low=self.low * factor, likely=self.likely * factor, high=self.high * factor)

    @classmethod
    def exactly(cls, value: float) -> Spread:
        """A number that is known."""
        return cls(low=value, likely=value, high=value)


def _spread(value: Any) -> Any:
    """One number stands for a spread of nothing else."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return dict.fromkeys(("low", "likely", "high"), value) if number else value


def _bounded(value: Spread) -> Spread:
    if value.high > MOST:
        raise fault(_SPREAD)
    return value


_Spread = Annotated[Spread, BeforeValidator(_spread), AfterValidator(_bounded)]


class PictureSeconds(_Strict):
    """How long a scene takes: ``size`` by ``size`` pixels, ``steps`` denoising steps, in seconds of one device."""

    profile: Profile = "exact"
    size: Annotated[int, Field(ge=64, le=8192)] = 1024
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    seconds: _Spread
    basis: Literal["measured", "assumed"] = "measured"
    note: Annotated[str, Field(max_length=2000)] = ""


class Gpu(_Strict):
    """A kind of device: money for an hour of one of it, on demand and spot, and the power that it draws at most."""

    per_hour: _Money
    spot_per_hour: _Money | None = None
    watts: Annotated[float, Field(ge=0, le=100_000)] | None = None
    pictures: Annotated[tuple[PictureSeconds, ...], Field(max_length=64, strict=False)] = ()

    @model_validator(mode="after")
    def _spot_is_no_dearer(self) -> Gpu:
        if self.spot_per_hour is not None and self.spot_per_hour > self.per_hour:
            raise fault(f"spot_per_hour is more than per_hour, {self.per_hour:g}: write at most that, or leave it out")
        return self


class Storage(_Strict):
    """Money for a GB (10^9 bytes) kept for a month, and for 1000 requests that write and that read."""

    per_gb_month: _Money = 0.0
    per_1000_puts: _Money = 0.0
    per_1000_gets: _Money = 0.0


class Requests(_Strict):
    """Requests for each picture."""

    puts_per_picture: _Spread = Spread(low=1, likely=1.3, high=3)
    gets_per_picture: _Spread = Spread(low=0.2, likely=2, high=5)


class PriceFile(_Strict):
    """A price file; see ``cluster/prices.yaml``."""

    version: Literal[1]
    currency: Annotated[str, Field(min_length=1, max_length=12, pattern=r"^[^\W\d_]+$|^[$€£¥]$")]
    dated: Annotated[str, Field(max_length=40)] = ""
    note: Annotated[str, Field(max_length=2000)] = ""
    start_seconds: _Spread = Spread(low=60, likely=180, high=600)
    storage: Storage = Storage()
    requests: Requests = Requests()
    gpus: Annotated[dict[Annotated[str, Field(min_length=1, max_length=60)], Gpu], Field(min_length=1, max_length=200)]


def load_prices(file: str | os.PathLike[str] | None = None) -> PriceFile:
    """Read a price file.

    Args:
        file: where it is on this machine; None is the package's own.

    Raises:
        InputError: it cannot be read or used, with every problem.
    """
    place = os.fspath(file if file is not None else DEFAULT_PRICES)
    try:
        text = read_regular(os.path.expanduser(place), _MOST_BYTES, follow=True).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        fix = f"give a YAML file of prices like cluster/prices.yaml ({getattr(error, 'strerror', None) or error})"
        raise InputError("the prices cannot be read", [Problem("--prices", shown(place), fix)]) from error
    data, problems = read_yaml(text)
    if not problems:
        try:
            return PriceFile.model_validate(data)
        except ValidationError as error:
            problems = _problems(error)
    raise InputError(f"{place} cannot be used as prices", problems)


def _problems(error: ValidationError) -> list[Problem]:
    """What pydantic found, in words; each place once."""
    found: dict[str, Problem] = {}
    for line in error.errors(include_url=False):
        where = path(line["loc"]) or "the file"
        names = [part for part in line["loc"] if isinstance(part, str)]
        fix = next((_FIXES[name] for name in reversed(names) if name in _FIXES), "write a mapping like prices.yaml's")
        if line["type"] == "consistory":
            fix = str(line["ctx"]["fix"])
        elif line["type"] == "extra_forbidden":
            known = [*_FIXES, "low", "likely", "high"]
            fix = f"there is no such key here{did_you_mean(names[-1], known)}"
        elif line["type"] == "missing":
            fix = f"this key is missing, {fix}"
        value = "" if line["type"] == "missing" else shown(line["input"])
        found.setdefault(where, Problem(where, value, fix))
    return list(found.values())


_DURATION = re.compile(r"(?:(\d{1,4})d)?(?:(\d{1,5})h)?(?:(\d{1,6})m)?(?:(\d{1,8})s)?")


def seconds_of(text: str) -> float:
    """``8h``, ``90m``, ``1d12h`` in seconds.

    Raises:
        InputError: it is no length of time.
    """
    found = _DURATION.fullmatch(text)
    seconds = 0
    if found is not None:
        seconds = sum(int(n or 0) * unit for n, unit in zip(found.groups(), (86_400, 3600, 60, 1), strict=True))
    if not seconds:
        raise InputError("this deadline cannot be used", [Problem("--deadline", shown(text), "give 8h, 90m or 1d12h")])
    return float(seconds)
