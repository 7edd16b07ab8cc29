"""The benchmark of the profiles: a small run of all of it, and that the committed result is of what is committed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.cost import anchors_flops, scene_flops, vanilla_flops
from benchmarks.fast import Bench, Sample, main, parse_arguments, seconds_ratio
from benchmarks.fast_report import table
from benchmarks.fast_variants import (
    COMPANIONS,
    counted_costs,
    everything_recorded,
    parts,
    singles,
    variants,
)
from benchmarks.random_sdxl import Topology, build_pipeline, build_unet
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.cache.contents import check_cache, packed_for
from consistory_ray.evaluation.prompts import SubjectPrompts, consistency_subjects
from consistory_ray.evaluation.rendering import PictureStore, Rendered
from consistory_ray.evaluation.savings import HIGHEST_PSNR
from consistory_ray.settings import PROFILES, SCENE_SETTINGS, MethodSettings

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SMALL = Topology((16, 32, 64), (1, 1, 2), 1, (1, 1, 1), (32, 32), 8, 8, 16)


# The ways -------------------------------------------------------------------------------------------------------------


def test_single_settings_are_those_of_the_profiles_each_with_what_tunes_it() -> None:
    ways = singles()
    for profile in ("fast", "turbo"):
        for name in parts(PROFILES[profile]):
            own = {field: PROFILES[profile][field] for field in (name, *COMPANIONS.get(name, ()))}
            assert own in [ways.get(f"exact+{name}"), ways.get(f"exact+{name}@{profile}")]
    together = {field: value for changes in parts(PROFILES["fast"]).values() for field, value in changes.items()}
    assert {**PROFILES["exact"], **together} == PROFILES["fast"], "nothing of fast is left out"


def test_fast_without_a_setting_differs_from_it_in_nothing_else() -> None:
    ways = variants(list(singles()), MethodSettings())
    fast = MethodSettings().with_profile("fast")
    for name, changes in parts(PROFILES["fast"]).items():
        without = ways[f"fast-{name}"]
        assert without != fast and without.replace(**changes) == fast


def test_ways_keep_the_models_own_settings() -> None:
    ways = variants(["vanilla", "exact", "turbo"], MethodSettings(guidance_scale=3.0).with_profile("fast"))
    assert ways["vanilla"] == ways["exact"] == MethodSettings(guidance_scale=3.0)
    assert ways["turbo"].profile == "turbo" and ways["turbo"].guidance_scale == 3.0
    with pytest.raises(KeyError, match="fastest"):
        variants(["fastest"], MethodSettings())


# What is rendered and timed, with pictures that only tell who asked for them ------------------------------------------


class Clockwork:
    """Renders gray pictures; a scene takes two seconds, or less where deep features are reused, vanilla four."""

    device = torch.device("cpu")
    fingerprint = "f" * 64

    def __init__(self) -> None:
        self.pipe = SimpleNamespace(unet=SimpleNamespace(dtype=torch.float32))
        self.now = 0.0
        self.calls: list[str] = []

    def create_subject(self, prompts: Sequence[str], *_: Any, **__: Any) -> SimpleNamespace:
        self.calls.append("anchors")
        return SimpleNamespace(cache=None)

    def rendered(self, count: int, what: str, seconds: float) -> SimpleNamespace:
        self.calls.append(what)
        self.now += seconds
        return SimpleNamespace(images=[Image.new("RGB", (8, 8))] * count, masks={})

    def render_vanilla(self, prompts: Sequence[str], *_: Any, **__: Any) -> SimpleNamespace:
        return self.rendered(len(prompts), "vanilla", 4)

    def render(self, prompts: Sequence[str], *_: Any, settings: MethodSettings, **__: Any) -> SimpleNamespace:
        saves = settings.reuse_deep is not None
        return self.rendered(len(prompts), "saving" if saves else "exact", 1 if saves else 8)


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    """Such a pipeline, whose seconds are what the benchmark reads."""
    pipeline = Clockwork()
    monkeypatch.setattr("benchmarks.fast.packed_for", lambda cache, settings: cache)
    monkeypatch.setattr("benchmarks.fast.time.process_time", lambda: pipeline.now)
    return pipeline


def bench(pipeline: Clockwork, folder: Path | None) -> Bench:
    """Of vanilla, exact and one saving way."""
    ways = variants(["vanilla", "exact", "exact+reuse_deep"], MethodSettings())
    return Bench(cast(ConsiStoryPipeline, pipeline), ways, PictureStore(folder, pipeline.fingerprint))


NAMES = ("vanilla", "exact", "exact+reuse_deep")
SUBJECT: SubjectPrompts = consistency_subjects(1, scenes=2)[0]


def test_ways_share_their_anchors_and_are_timed_beside_vanilla(clockwork: Clockwork) -> None:
    found = bench(clockwork, None).subject(SUBJECT, NAMES, NAMES, turn=1)
    assert clockwork.calls == ["anchors", "exact", "saving", "vanilla"], "the order is rotated"
    assert {name: (sample.seconds, sample.vanilla_seconds) for name, sample in found.items()} == {
        "vanilla": (4, 4),
        "exact": (8, 4),
        "exact+reuse_deep": (1, 4),
    }


def test_a_second_run_renders_only_what_is_absent(clockwork: Clockwork, tmp_path: Path) -> None:
    first = bench(clockwork, tmp_path).subject(SUBJECT, NAMES[:2], NAMES)
    assert clockwork.calls == ["anchors", "vanilla", "exact"]
    again = bench(clockwork, tmp_path).subject(SUBJECT, NAMES[:2], NAMES)
    assert len(clockwork.calls) == 3
    assert [again[name].seconds for name in again] == [first[name].seconds for name in first] == [4, 8]

    more = bench(clockwork, tmp_path).subject(SUBJECT, NAMES, NAMES)
    assert clockwork.calls[3:] == ["anchors", "vanilla", "saving"], "its own vanilla pictures, beside it"
    assert list(more) == list(NAMES) and more["exact+reuse_deep"].timed


def test_pictures_without_seconds_are_rendered_again_only_where_these_count(
    clockwork: Clockwork, tmp_path: Path
) -> None:
    bench(clockwork, tmp_path).subject(SUBJECT, NAMES[1:])
    assert clockwork.calls == ["anchors", "exact", "saving"]
    untimed = bench(clockwork, tmp_path).subject(SUBJECT, NAMES[1:])
    assert len(clockwork.calls) == 3 and not any(sample.timed for sample in untimed.values())
    timed = bench(clockwork, tmp_path).subject(SUBJECT, NAMES, ["exact"])
    assert clockwork.calls[3:] == ["anchors", "vanilla", "exact"] and timed["exact"].timed


def test_the_ratio_of_seconds_is_one_of_sums_over_those_that_were_timed() -> None:
    picture = Rendered(Image.new("RGB", (8, 8)), {})
    samples = [Sample([picture] * 2, 2, 4), Sample([picture] * 2, 6, 4), Sample([picture] * 2), Sample([picture], 9)]
    numbers = seconds_ratio(samples)
    assert numbers["cpu_ratio"] == 1 and numbers["cpu_seconds"] == 2 and numbers["timed_subjects"] == 2
    assert numbers["cpu_ratio_interval"] == [0.5, 1.5]
    assert seconds_ratio(samples[2:]) == {}


# Caches and costs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline() -> ConsiStoryPipeline:
    """A small random model."""
    torch.manual_seed(0)
    return ConsiStoryPipeline(build_pipeline(SMALL, build_unet(SMALL), torch.float32))


def test_every_way_finds_in_its_cache_what_it_reads_and_no_more(pipeline: ConsiStoryPipeline) -> None:
    base = MethodSettings(num_inference_steps=5)
    with everything_recorded():
        whole = anchors_flops(pipeline, base, hollow=False)[1]
    for name, settings in variants(["exact", "fast", "turbo", "exact+first_pass@live"], base).items():
        cache, own = packed_for(whole, settings), anchors_flops(pipeline, settings, hollow=False)[1]
        check_cache(cache, pipeline.fingerprint, settings)
        assert cache.tensors.keys() == own.tensors.keys(), name
        assert cache.nbytes == own.nbytes < whole.nbytes, name
        assert cache.codec == settings.cache_codec


def test_costs_are_counted_as_they_are_rendered_and_only_once(
    pipeline: ConsiStoryPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = MethodSettings(num_inference_steps=5)
    ways = variants(["vanilla", "exact", "exact+reuse_deep"], base)
    costs = counted_costs(SMALL, ways, tmp_path)
    exact, reuse = costs["exact"], costs["exact+reuse_deep"]
    cache = anchors_flops(pipeline, base, hollow=False)[1]
    counted = [scene_flops(pipeline, cache, ways[name], hollow=False) for name in costs]
    assert reuse["flops_ratio"] / exact["flops_ratio"] == pytest.approx(counted[1] / counted[0])
    plain = [vanilla_flops(pipeline, ways[name], hollow=False) for name in costs]
    assert plain[1] < plain[0]
    assert reuse["vanilla_flops_ratio"] / exact["vanilla_flops_ratio"] == pytest.approx(plain[1] / plain[0])
    assert reuse["flops_ratio_alike"] == pytest.approx(reuse["flops_ratio"] / reuse["vanilla_flops_ratio"])
    assert exact["cache_gb"] == pytest.approx(cache.nbytes / 2e9, rel=0.1), "half of what float32 takes"

    monkeypatch.setattr("benchmarks.fast_variants.hollow_pipeline", None)
    assert counted_costs(SMALL, ways, tmp_path) == costs


# All of it ------------------------------------------------------------------------------------------------------------


def test_a_small_run_reports_every_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.fast.SDXL", SMALL)
    command = f"--subjects 2 --scenes 2 --steps 3 --device cpu --cache {tmp_path}/kept --out {tmp_path}"
    result = main(command.split())
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert printed == result and result["subjects"] == 2 and result["half"] == "report"
    wanted = {"flops_ratio", "flops_ratio_alike", "cpu_ratio", "gain_kept", "gain_kept_low", "layout_drop", "cache_gb"}
    for name in ("fast", "turbo"):
        assert wanted <= result[name].keys()
    assert result["turbo"]["flops_ratio"] <= result["fast"]["flops_ratio"] < result["exact"]["flops_ratio"]
    assert result["exact"]["gain_kept"] == 1 and result["vanilla"]["cpu_ratio"] == 1
    report = json.loads((tmp_path / "fast.json").read_text())
    assert [one["kind"] for one in report["subjects"]] == [one.kind for one in consistency_subjects(2)]
    assert report["subjects"][1]["scores"]["fast"]["psnr"] < 99
    with Image.open(tmp_path / "fast_sheet.webp") as shown, Image.open(tmp_path / "fast.png") as plot:
        assert shown.height > 200 and plot.width > 1000
    assert (tmp_path / "fast.md").read_text().count("\n") == 2 + 4


def test_each_part_of_the_subjects_is_its_own() -> None:
    reported, tuning = parse_arguments([]), parse_arguments(["--tuning"])
    parts_of = [range(one.first, one.first + one.subjects) for one in (reported, tuning)]
    assert len(parts_of[0]) >= 32 and not set(parts_of[0]) & set(parts_of[1])


def test_the_table_has_intervals_where_they_are_known() -> None:
    text = table({"fast": {"flops_ratio": 0.8, "gain_kept": 0.99, "gain_kept_interval": [0.97, 1.01], "subjects": 32}})
    assert "| fast | 0.80 |" in text and "0.990 [0.970, 1.010]" in text
    assert "99" not in table({"exact": {"psnr": HIGHEST_PSNR, "psnr_interval": [HIGHEST_PSNR] * 2}})


# The committed result -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """The committed result."""
    path = RESULTS / "fast.json"
    if not path.exists():
        pytest.skip("there is no result yet")
    return cast("dict[str, Any]", json.loads(path.read_text()))


def test_the_committed_result_is_of_the_committed_weights_and_profiles(report: dict[str, Any]) -> None:
    model = ConsiStoryPipeline.from_pretrained("miniature", device="cpu")
    assert report["half"] == "report" and len(report["subjects"]) >= 32
    for name in PROFILES:
        made_with = MethodSettings.from_dict(report["settings"][name])
        assert made_with == model.default_settings.with_profile(name), f"{name} has changed since"
        assert {field.name for field in dataclasses.fields(made_with)} >= {*SCENE_SETTINGS, "cache_codec"}


def test_the_committed_numbers_are_of_the_committed_scores(report: dict[str, Any]) -> None:
    for name in ("fast", "turbo"):
        gaps = {
            way: np.mean([1 - one["scores"][way]["scores"]["similarity"] for one in report["subjects"]])
            for way in ("vanilla", "exact", name)
        }
        kept = (gaps["vanilla"] - gaps[name]) / (gaps["vanilla"] - gaps["exact"])
        assert report["numbers"][name]["gain_kept"] == pytest.approx(kept, abs=1e-3)
