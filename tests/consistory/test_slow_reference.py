"""The slow implementation against numbers of an independent run of the published method.

It depends on nothing of the package, and that all cases agreed is known of the very text that it has, see
:mod:`tests.consistory.published_numbers`. They are compared again with ``--full``.
"""

from __future__ import annotations

import json

import pytest

from tests.consistory import published_numbers

PRESENT = (published_numbers.REFERENCE / "cases").is_dir()


def test_it_is_the_one_that_agreed_in_all_cases() -> None:
    agreed = json.loads(published_numbers.AGREED.read_text())
    renew = "after a change: python -m tests.consistory.published_numbers --write"
    assert agreed["sha256"] == published_numbers.digest(), renew
    assert agreed["cases"] == list(published_numbers.CASES), renew


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.skipif(not PRESENT, reason=f"no reference numbers in {published_numbers.REFERENCE}")
@pytest.mark.parametrize("name", published_numbers.CASES)
def test_slow_reference_gives_the_published_methods_numbers(name: str) -> None:
    report = published_numbers.compared(name)
    print(name, *(line for _, line in report), sep="\n")
    assert all(ok for ok, _ in report), f"{name} differs:\n" + "\n".join(line for _, line in report)
