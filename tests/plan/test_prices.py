"""Prices: what a file of them may say, and the arithmetic from pictures to money."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from consistory_ray.consistory.method.call_counts import anchor_calls, scene_calls
from consistory_ray.errors import InputError
from consistory_ray.jobs.job import parse_job
from consistory_ray.plan.forecast import forecast
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.plan.prices import DEFAULT_PRICES, Gpu, PriceFile, Spread, load_prices, seconds_of
from consistory_ray.plan.pricing import Bill, Rate, bill, compared, rate_of, seconds_measured, shelf
from consistory_ray.settings import MethodSettings

ROOT = Path(__file__).parents[2]
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "A10G": 70, "L4": 121, "T4": 65}  # dense float16, TFLOP/s
TFLOP_PER_CALL = 13.52
SPREADS = st.lists(st.floats(0.001, 1e6), min_size=3, max_size=3).map(
    lambda three: Spread(**dict(zip(("low", "likely", "high"), sorted(three), strict=True)))
)


def plan(scenes: int = 6, takes: int = 1, **settings: Any) -> Plan:
    prompts = [f"a cat in place {number}" for number in range(scenes)]
    subject = {"id": "cat", "concept": "cat", "anchors": ["a cat here", "a cat there"], "scenes": prompts}
    return make_plan(parse_job({"model": "acme/xl", "takes": takes, "settings": settings, "subjects": [subject]}))


def gpu(**given: Any) -> Gpu:
    entry = {"seconds": {"low": 5, "likely": 10, "high": 30}}
    return Gpu.model_validate({"per_hour": 3.6, "spot_per_hour": 1.8, "watts": 500, "pictures": [entry], **given})


def priced(planned: Plan, **more: Any) -> Bill:
    return bill(planned, set(), Rate("G", 3.6, "USD", gpu()), **more)


def test_takes_cost_what_scenes_do() -> None:
    twice, one_by_one = priced(plan(3, takes=2)), priced(plan(6))
    assert twice.hours == one_by_one.hours and twice.cost == one_by_one.cost
    assert twice.hours.likely > priced(plan(3)).hours.likely


def test_the_package_brings_the_file_of_the_cluster_folder() -> None:
    assert (ROOT / "cluster" / "prices.yaml").resolve() == DEFAULT_PRICES.resolve()
    prices = load_prices()
    assert not prices.dated and "not looked up" in prices.note and "EXAMPLES" in DEFAULT_PRICES.read_text()
    assert {*PEAKS, "CPU"} == set(prices.gpus)


@pytest.mark.parametrize("kind", PEAKS)
def test_seconds_that_nobody_measured_are_called_so_and_follow_their_assumption(kind: str) -> None:
    (entry,) = load_prices().gpus[kind].pictures
    assert entry.basis == "assumed" and entry.note == f"{PEAKS[kind]} TFLOP/s"
    whole = TFLOP_PER_CALL * scene_calls(MethodSettings()) / PEAKS[kind]
    assert entry.seconds.low == pytest.approx(whole / 0.45, rel=0.02)
    assert entry.seconds.likely == pytest.approx(whole / 0.25, rel=0.02)
    assert entry.seconds.high == pytest.approx(whole / 0.10, rel=0.02)


@pytest.mark.parametrize(
    ("change", "where", "fix"),
    [
        ({"version": 2}, "version", "write 1"),
        ({"currency": 3}, "currency", "such as USD"),
        ({"gpus": {}}, "gpus", "by Ray's names"),
        ({"gpus": {"L4": {"per_hour": -1}}}, "gpus.L4.per_hour", "a number from 0"),
        ({"gpus": {"L4": {"per_hour": "1"}}}, "gpus.L4.per_hour", "a number from 0"),
        ({"gpus": {"L4": {"per_hour": math.inf}}}, "gpus.L4.per_hour", "a number from 0"),
        ({"gpus": {"L4": {"per_hour": 1, "wats": 2}}}, "gpus.L4.wats", 'did you mean "watts"'),
        ({"gpus": {"L4": {"per_hour": 1, "spot_per_hour": 2}}}, "gpus.L4", "spot_per_hour is more than per_hour, 1"),
        ({"start_seconds": {"low": 3, "likely": 2, "high": 9}}, "start_seconds", "do not fall"),
        ({"start_seconds": 1e12}, "start_seconds", "10^9"),
        ({"gpus": {"L4": {"per_hour": 1, "pictures": [{"size": 9}]}}}, "gpus.L4.pictures[0].size", "from 64 to 8192"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], where: str, fix: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "currency": "EUR", "gpus": {"L4": {"per_hour": 1}}} | change))
    with pytest.raises(InputError, match=r"mine\.yaml") as refused:
        load_prices(file)
    (problem,) = [one for one in refused.value.problems if one.path == where]
    assert fix in problem.fix


def test_the_example_of_the_page_is_a_price_file(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "assets.md").read_text(), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text)
    assert load_prices(tmp_path / "mine.yaml").gpus["L4"].pictures[0].seconds.likely == 41


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: [", b"- 1", b"", b"version: 1\n" * 200_000])
def test_what_is_no_price_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(InputError):
        load_prices(tmp_path / "mine.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_prices(tmp_path)


def test_hours_money_and_energy_by_hand() -> None:
    """Entries are of exact scenes of 1024 px: an anchor takes as long."""
    made = priced(plan(width=1024, height=1024))
    assert (made.pictures, made.workers, made.basis) == (8, 1, "measured")
    seconds = 10 * 8 * 1.0  # likely
    assert made.device_hours.likely == pytest.approx(seconds / 3600)
    assert made.cost is not None and made.cost.likely == pytest.approx(seconds * 3.6 / 3600)
    assert made.spot_cost is not None and made.spot_cost.likely == pytest.approx(seconds * 1.8 / 3600)
    assert made.kwh is not None and made.kwh.likely == pytest.approx(seconds * 500 / 3.6e6)
    half = priced(plan(width=1024, height=512))
    assert half.device_hours.likely == pytest.approx(made.device_hours.likely / 2)
    fast = priced(plan(profile="fast"))
    exact, calls = MethodSettings(), scene_calls(MethodSettings().with_profile("fast"))
    expected = (2 * anchor_calls(exact) + 6 * calls) / (8 * scene_calls(exact))
    assert fast.device_hours.likely / made.device_hours.likely == pytest.approx(expected)


def test_every_worker_s_start_is_paid() -> None:
    start, planned = Spread(low=36, likely=360, high=3600), plan(6)
    rate = Rate("G", 3.6, "USD", gpu(), start=start)
    for workers in (1, 3):
        more = bill(planned, set(), rate, workers=workers)
        assert more.device_hours.likely == pytest.approx(priced(planned).device_hours.likely + 0.1 * workers)
        assert more.cost is not None and more.cost.high > 3.6 * workers


def test_the_entry_that_is_most_alike_counts() -> None:
    entries = [{"seconds": 10}, {"seconds": 1, "profile": "fast"}, {"seconds": 7, "size": 512}]
    rate = Rate("G", 1.0, "USD", gpu(pictures=entries))

    def hours(**settings: Any) -> float:
        planned = plan(**settings)
        anchors = {anchor.asset_id for anchor in planned.subjects[0].anchors}
        return bill(planned, anchors, rate).device_hours.likely * 3600 / 6

    assert hours() == pytest.approx(10) and hours(profile="fast") == pytest.approx(1)
    assert hours(width=512, height=512) == pytest.approx(7)
    assert hours(num_inference_steps=25) == pytest.approx(5, rel=0.1)


def test_seconds_of_an_earlier_run_go_before_the_files() -> None:
    planned = plan(width=1024, height=1024)
    exact = scene_calls(planned.subjects[0].settings)
    took = {asset.asset_id: 4.0 for asset in planned.assets()}
    measured = seconds_measured(planned, took)
    assert measured is not None and measured.likely == pytest.approx(4.0 / (exact * 1.024**2))
    made = bill(planned, set(), Rate("G", 1.0, "USD", gpu(), measured=measured))
    assert made.basis == "measured" and made.device_hours.high == pytest.approx(8 * 4 / 3600)
    assert seconds_measured(planned, dict(list(took.items())[:2])) is None


@given(seconds=SPREADS, start=SPREADS, scenes=st.integers(1, 20), workers=st.integers(1, 8), hour=st.floats(0, 100))
def test_more_pictures_never_cost_less(seconds: Spread, start: Spread, scenes: int, workers: int, hour: float) -> None:
    def made(count: int) -> Bill:
        kind = gpu(per_hour=hour, spot_per_hour=hour / 3, pictures=[{"seconds": seconds.model_dump()}])
        return bill(plan(count), set(), Rate("G", hour, "USD", kind, start=start), workers=workers)

    few, many = made(scenes), made(scenes + 1)
    assert few.cost is not None and many.cost is not None and few.spot_cost is not None
    for one in (few.device_hours, few.hours, few.cost, few.spot_cost):
        assert 0 <= one.low <= one.likely <= one.high
    for end in ("low", "likely", "high"):
        assert getattr(few.device_hours, end) <= getattr(many.device_hours, end)
        assert getattr(few.cost, end) <= getattr(many.cost, end)
        assert getattr(few.spot_cost, end) <= getattr(few.cost, end)
        assert getattr(few.hours, end) * few.workers == pytest.approx(getattr(few.device_hours, end))


@given(hours=st.floats(0.01, 100), start=st.floats(0, 600))
def test_the_devices_for_a_deadline_make_it_and_one_less_does_not(hours: float, start: float) -> None:
    planned, deadline = plan(30), hours * 3600
    rate = Rate("G", 1.0, "USD", gpu(), start=Spread.exactly(start))
    found = bill(planned, set(), rate, deadline=deadline).devices_for_deadline
    assert found is not None
    alone = bill(planned, set(), Rate("G", 1.0, "USD", gpu())).device_hours
    for count, whole in zip(found, (alone.low, alone.likely, alone.high), strict=True):
        if count is None:
            assert deadline <= start or whole * 3600 / 32 + start > deadline * (1 - 1e-9)
            continue
        assert whole * 3600 / count + start <= deadline * (1 + 1e-9)
        assert count == 1 or whole * 3600 / (count - 1) + start > deadline * (1 - 1e-9)
    sooner = bill(planned, set(), rate, deadline=deadline / 2).devices_for_deadline
    assert sooner is not None and all(
        b is None or (a is not None and a <= b) for a, b in zip(found, sooner, strict=True)
    )


def test_nothing_left_costs_nothing() -> None:
    planned = plan()
    rate = Rate("G", 3.6, "USD", gpu(), start=Spread.exactly(600))
    made = bill(planned, {asset.asset_id for asset in planned.assets()}, rate, deadline=1.0)
    assert made.cost == Spread.exactly(0) and made.devices_for_deadline == (0, 0, 0)


def test_storage_and_requests_by_hand() -> None:
    prices = load_prices()
    expected = forecast(plan(), "out", set(), {}, device="cuda", keep_anchors="all")
    kept = shelf(expected, prices)
    gigabytes = (expected.picture_bytes + expected.kept_cache_bytes) / 1e9
    assert kept.gigabytes.likely == pytest.approx(gigabytes)
    assert kept.per_month.likely == pytest.approx(gigabytes * 0.023)
    assert kept.puts.likely == pytest.approx(8 * 1.3)
    assert kept.requests_cost.likely == pytest.approx(8 * (1.3 * 0.005 + 2 * 0.0004) / 1000)


def test_which_price_counts() -> None:
    prices = load_prices()
    assert rate_of(prices, "L4").per_hour == prices.gpus["L4"].per_hour
    assert rate_of(prices, "L4", spot=True).per_hour == prices.gpus["L4"].spot_per_hour
    assert rate_of(prices, "L4", price=9.0, spot=True).per_hour == 9.0
    assert rate_of(prices, "unheard-of").per_hour is None
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="--price-per-gpu-hour"):
            rate_of(prices, "L4", price=wrong)
    with pytest.raises(InputError, match="--max-cost needs") as refused:
        rate_of(prices, "H10", needed="--max-cost")
    assert "--price-per-gpu-hour" in str(refused.value) and "H100, A100" in str(refused.value)
    alone = PriceFile.model_validate({"version": 1, "currency": "EUR", "gpus": {"L4": {"per_hour": 1.0}}})
    with pytest.raises(InputError, match="no spot_per_hour"):
        rate_of(alone, "L4", spot=True)


@pytest.mark.parametrize(("text", "seconds"), [("8h", 28800), ("90m", 5400), ("1d12h", 129600), ("45s", 45)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    for wrong in ("", "8", "h", "0h", "-1h", "1h1d", "8 h"):
        with pytest.raises(InputError, match="deadline"):
            seconds_of(wrong)


def test_forecast_and_outcome_side_by_side() -> None:
    record = priced(plan()).to_record()
    assert record["pictures"] == 8 and record["cost_low"] < record["cost_likely"] < record["cost_high"]
    within = {"device_hours": record["device_hours_likely"], "cost": record["cost_high"] * 2}
    hours, cost = compared(record, within, "USD")
    assert "within the forecast" in hours and "above the forecast" in cost and "USD" in cost
    assert all("so far" in line for line in compared(record, within, "USD", over=False))
    assert compared({"cost_low": 3, "cost_likely": 1, "cost_high": 2}, within, "USD") == []
