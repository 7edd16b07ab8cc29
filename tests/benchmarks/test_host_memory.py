"""How much host memory a subject takes while it is made, packed, saved and loaded."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks.host_memory import main


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
@pytest.mark.parametrize("codec", ["none", "int8"])
def test_a_subject_takes_little_more_than_one_copy_of_its_cache(codec: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = main(["--megabytes", "400", "--codec", codec])  # in a process of its own
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found
    assert found["cache_mb"] == pytest.approx(400, rel=0.1)
    # A step at hand is 0.14 of so small a cache; packing takes 0.2 to 0.3 more, by processor.
    assert 1 <= found["peak"] <= (1.4 if codec == "none" else 1.5), found
    assert found["checked"], "the file's bytes have not changed"
