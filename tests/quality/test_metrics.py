"""Metrics by name, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from consistory_ray.errors import InputError
from consistory_ray.guards.named_code import VARIABLE, check_allowed_code
from consistory_ray.quality.metrics import METRICS, Metric, MetricOptions, TextMetric, load_metric
from consistory_ray.quality.scores import Score, scores_to_table, table_to_scores
from consistory_ray.testing import FakeMetric, FakeRenderer

FAKE = "consistory_ray.testing:FakeMetric"


def test_a_metric_of_ones_own_is_loaded_by_its_name() -> None:
    metric = load_metric(FAKE)
    assert isinstance(metric, FakeMetric) and isinstance(metric, Metric) and isinstance(metric, TextMetric)
    pictures = [FakeRenderer(size=(16, 16)).picture(name) for name in "abc"]
    embeddings = metric.embed(pictures)
    assert embeddings.dtype == np.float32 and embeddings.shape[0] == 3
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert (metric.embed(pictures[1:2])[0] == embeddings[1]).all(), "it depends on the pictures beside it"
    values = metric.align(pictures, ["x", "y", "x"])
    assert values.shape == (3,) and ((values >= 0) & (values <= 1)).all()


@pytest.mark.parametrize("spec", ["clips", "no:such.name", "", "os.path", "nowhere.at.all:Metric", "os:nothing"])
def test_what_is_no_metric_is_refused(spec: str) -> None:
    with pytest.raises(InputError) as caught:
        load_metric(spec)
    (problem,) = caught.value.problems
    assert problem.path == "--metrics" and all(name in problem.fix for name in METRICS)


def test_code_that_measures_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="no metric"):
        load_metric("builtins:repr", MetricOptions())


def test_a_job_names_only_code_that_somebody_allows() -> None:
    for allowed in ({}, {VARIABLE: ""}, {VARIABLE: "house, house.rules:other"}):
        with pytest.raises(InputError) as caught:
            check_allowed_code("checks[0]", "house.rules:no_text", allowed)
        assert caught.value.problems[0].path == "checks[0]" and VARIABLE in caught.value.problems[0].fix
    check_allowed_code("checks[0]", "house.rules:no_text", {VARIABLE: " house.rules "})
    check_allowed_code("checks[0]", "house.rules:no_text", {VARIABLE: "other:f,house.rules:no_text"})


@pytest.mark.parametrize(
    "name", ["house.rules", "house rules:f", "../x:f", "a:b:c", "a:b()", ":f", "a:", "a.:f", "a:b\n"]
)
def test_what_is_no_name_of_code_is_refused_even_if_it_is_listed(name: str) -> None:
    with pytest.raises(InputError, match="no name of code"):
        check_allowed_code("checks[0]", name, {VARIABLE: name})


def test_scores_survive_a_table() -> None:
    scores = [Score("a", 0, "f" * 64, "clip_identity", "1", 0.5), Score("b", 2, "0" * 64, "clip_identity", "1", None)]
    assert table_to_scores(scores_to_table(scores)) == scores
    assert scores_to_table([]).num_rows == 0
    with pytest.raises(ValueError, match="finite"):
        Score("a", 0, "f" * 64, "clip_identity", "1", float("nan"))
