"""What ``plan``, ``render`` and ``retry`` are told about prices, as the plan's arithmetic wants it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from consistory_ray.cli.common import plan_of_output
from consistory_ray.errors import InputError, Problem
from consistory_ray.plan.forecast import Forecast, usual_device
from consistory_ray.plan.plan import Plan
from consistory_ray.plan.prices import CPU, PriceFile, Spread, load_prices, seconds_of
from consistory_ray.plan.pricing import Bill, Rate, Shelf, bill, kinds_of, rate_of, seconds_measured, shelf


class Asked:
    """What was asked about prices.

    Args:
        file: ``--prices``.
        kind: ``--accelerator-type``.
        price: ``--price-per-gpu-hour``.
        measured: ``--measured``.
        spot: ``--spot``.

    Raises:
        InputError: the file cannot be used, or nothing was measured there.
    """

    def __init__(
        self, file: str | None, kind: str | None, price: float | None, measured: str | None, *, spot: bool = False
    ) -> None:
        self.prices: PriceFile = load_prices(file)
        self._kind, self._price, self._spot = kind, price, spot
        self._measured = _measured(measured) if measured is not None else None

    def rate(self, plan: Plan, device: str, max_cost: float | None) -> Rate:
        """What a run goes by.

        Raises:
            InputError: it may not cost more than something, and no price is known.
        """
        on = device if device != "auto" else usual_device(plan)
        kind, needed = self._kind or (CPU if on == "cpu" else ""), "--max-cost" if max_cost is not None else ""
        return rate_of(self.prices, kind, price=self._price, spot=self._spot, measured=self._measured, needed=needed)

    def bills(
        self, plan: Plan, done: Collection[str], seconds: dict[str, float], expected: Forecast, on: str, deadline: str
    ) -> tuple[list[Bill], Shelf]:
        """What a plan costs on each kind of device that it may be rendered on.

        Args:
            plan: of the job.
            done, seconds: of the pictures that its output has.
            expected: the rest of its forecast.
            on: ``"cpu"`` or ``"cuda"``.
            deadline: as it was given; may be empty.

        Raises:
            InputError: there is no such kind or deadline, or nobody says what was measured.
        """
        if self._kind:
            kinds = [self._kind]
        elif self._price is not None:
            kinds = [CPU if on == "cpu" else ""]
        else:
            kinds = kinds_of(self.prices, on)
        measured = self._measured
        if measured is not None and len(kinds) > 1:
            fix = "say with --accelerator-type which GPU that run was on"
            raise InputError("seconds are those of one kind of device", [Problem("--measured", "", fix)])
        if measured is None and len(kinds) == 1:
            measured = seconds_measured(plan, seconds)  # by the runs before the next one
        needed = "--accelerator-type" if self._kind else ""
        limit = seconds_of(deadline) if deadline else None
        found = []
        for kind in kinds:
            rate = rate_of(self.prices, kind, price=self._price, spot=self._spot, measured=measured, needed=needed)
            found.append(bill(plan, done, rate, workers=expected.workers, deadline=limit))
        return found, shelf(expected, self.prices)


def told_as_json(bills: list[Bill], shelves: Shelf, prices: PriceFile) -> dict[str, Any]:
    """The same for ``--json``."""
    head = {"currency": prices.currency, "dated": prices.dated}
    return {"price": {**head, "devices": [one.to_dict() for one in bills], "storage": shelves.to_dict()}}


def _measured(url: str) -> Spread:
    """Of the pictures of an output."""
    from consistory_ray.output.comparison import pictures_made

    try:
        plan, store = plan_of_output(url)
    except InputError as error:
        problems = [replace(problem, path="--measured") for problem in error.problems]
        raise InputError(error.message, problems) from error
    if (found := seconds_measured(plan, pictures_made(plan, store)[1])) is None:
        fix = "give an output of which at least three pictures were rendered"
        raise InputError("nothing was measured there", [Problem("--measured", url, fix)])
    return found
