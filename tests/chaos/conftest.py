"""A cluster of several nodes, the job that most scenarios render, and what an undisturbed run makes of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chaos.harness import ASKED, FACTS, KILLS, Cluster, Run
from tests.chaos.hosts import Host
from tests.chaos.invariants import Digests, check_complete, digests

NODES, PLACES = 3, 2
SUBJECTS, SCENES = 6, 60

MakeRun = Callable[..., Run]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Three nodes with room for two workers each, and a head without any."""
    cluster = Cluster(Host("cluster_host.py", str(NODES), str(PLACES)), Host("coordinator_host.py"))
    yield cluster
    cluster.close()


def write_job(path: Path, subjects: int) -> Path:
    """A job of so many subjects with two anchors and 60 scenes each; fewer of them are made of the same pictures."""
    entries = [
        {
            "id": f"cat-{number}",
            "concept": "cat",
            "subject": f"a cat number {number}",
            "anchors": ["at home", "in the garden"],
            "scenes": [{"id": "place", "prompt": "at some place", "count": SCENES}],
        }
        for number in range(subjects)
    ]
    path.write_text(yaml.safe_dump({"name": "chaos", "model": "fake", "subjects": entries}))
    return path


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 subjects, 12 anchors and 360 scenes."""
    return write_job(tmp_path_factory.mktemp("job") / "chaos.yaml", SUBJECTS)


@pytest.fixture
def make_run(cluster: Cluster, job: Path, tmp_path: Path) -> MakeRun:
    """``make_run(seconds=0.1)``: a run of the job into an empty folder, with options of the fake renderer."""

    def make(url: str | None = None, job: Path = job, **fake: Any) -> Run:
        return Run(cluster, tmp_path, job, url or str(tmp_path / "out"), fake)

    return make


@pytest.fixture(scope="session")
def undisturbed(cluster: Cluster, job: Path, tmp_path_factory: pytest.TempPathFactory) -> Digests:
    """SHA-256 of every picture of a run in which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = Run(cluster, folder, job, str(folder / "out"))
    run.finish()
    found = digests(run.store, run.plan)
    check_complete(run.store, run.plan, found)
    return found


@pytest.fixture(autouse=True)
def told(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Notes down how many kills a test survived, and in what time; the session's end prints it."""
    killed, asked, started = KILLS.copy(), ASKED.copy(), time.monotonic()
    yield
    gone = f"killed {listed(KILLS - killed)}"
    if ASKED - asked:
        gone += f", asked {listed(ASKED - asked)} to go"
    record_property("killed", dict(KILLS - killed))
    record_property("told", [f"{request.node.name}: {gone} in {time.monotonic() - started:.0f} s", *FACTS])
    FACTS.clear()


def listed(counts: Counter[str]) -> str:
    """Counts of things in words."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "nothing"
