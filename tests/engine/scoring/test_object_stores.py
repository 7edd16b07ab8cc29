"""Outputs on S3 are scored there: scores, summary and page lie beside the index, and nothing on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.config import conf
from moto.server import ThreadedMotoServer

from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.scoring.evaluate import EvaluationOptions, evaluate_output
from consistory_ray.output.index.index import read_index
from consistory_ray.output.scores import EVALUATION_PAGE, list_score_parts, read_scores, read_summary
from consistory_ray.output.storage import open_output

RUN = RunOptions(workers=1, cpus_per_worker=1, device="cpu")
OPTIONS = EvaluationOptions(("consistory_ray.testing:FakeMetric",), {}, RUN)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a running S3 server, which fsspec is configured for as people configure it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options: dict[str, Any] = {"key": "k", "secret": "s", "client_kwargs": {"endpoint_url": f"http://{host}:{port}"}}
    monkeypatch.setitem(conf, "s3", options)
    fsspec.filesystem("s3").mkdir("scores")
    yield "s3://scores"
    server.stop()


@pytest.mark.usefixtures("ray_cluster")
def test_an_output_on_s3_is_scored_once(s3: str, make_output: Callable[..., Path], tmp_path: Path) -> None:
    made, url = make_output(tmp_path / "out"), f"{s3}/out"
    fsspec.filesystem("s3").put(f"{made}/", f"{s3}/out/", recursive=True)
    first = evaluate_output(url, OPTIONS)
    assert (first.state, first.pictures, first.scored, first.failed) == ("complete", 15, 15, 0)
    store = open_output(url)
    scores, broken = read_scores(store)
    assert not broken and {row["asset_id"] for row in scores.to_pylist()} == set(
        read_index(store)["asset_id"].to_pylist()
    )
    assert len(list_score_parts(store)) == 1, "parts are merged in the end"
    assert store.exists(EVALUATION_PAGE) and read_summary(store)
    assert not (made / "evaluation").exists()
    again = evaluate_output(url, OPTIONS)
    assert (again.state, again.found, again.scored) == ("complete", 15, 0)
    assert read_scores(store)[0].equals(scores)
