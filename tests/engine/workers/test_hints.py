"""What a worker makes of a plan's hints: all that the job says of them, and each picture prepared once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
from PIL import ImageOps

from consistory_ray.engine.inputs import InputReader
from consistory_ray.engine.workers.hints import HintReader
from consistory_ray.plan.controls import PlannedControl
from consistory_ray.plan.inputs import PlannedFile
from consistory_ray.plan.plan import Asset
from tests.pictures.making import encoded, gradient

CONTROL = PlannedControl(PlannedFile("x.png", "0" * 64, 1, "png"), 0.7, 0.1, 0.6, "invert", 1, "revision", "canny")


class Copies:
    """One picture, and how often it was read."""

    reads = 0

    def read(self, file: PlannedFile) -> bytes:
        self.reads += 1
        return encoded(gradient())


def led(*controls: PlannedControl) -> Asset:
    return Asset("0" * 32, "scene", "cat", "a", "a cat", 1, "images/cat/a.png", controls)


def test_a_hint_is_all_that_the_job_says() -> None:
    copies = Copies()
    reader = HintReader(cast(InputReader, copies))
    found: Any = reader.of([led(CONTROL, replace(CONTROL, scale=1.5, net=0)), led()])
    assert found[1] is None and copies.reads == 1
    first, second = found[0]
    assert (first.scale, first.start, first.end, first.net, first.mode) == (0.7, 0.1, 0.6, 1, "canny")
    assert (second.scale, second.net) == (1.5, 0)
    assert np.array_equal(np.asarray(first.image), np.asarray(ImageOps.invert(gradient())))
    assert reader.of([led(), led()]) is None
