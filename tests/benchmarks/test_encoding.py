"""What encoding takes: the table's rows, and that the picture is as large as the forecast says."""

from __future__ import annotations

import json

import pytest

from benchmarks.encoding import main
from consistory_ray.plan.forecast import _PICTURE_BYTES_PER_PIXEL


def test_levels_trade_time_for_space(capsys: pytest.CaptureFixture[str]) -> None:
    found = main(["--side", "512", "--repeats", "1", "--levels", "0", "1", "6"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert found["png_0"]["kb"] > found["png_1"]["kb"] > found["png_6"]["kb"] > 0
    assert found["png_0"]["ms"] < found["png_6"]["ms"] and found["webp"]["kb"] > 0
    written = 1000 * found[found["default"]]["kb"] / 512**2
    assert written == pytest.approx(_PICTURE_BYTES_PER_PIXEL, rel=0.1), "of the size that pictures are expected to have"
