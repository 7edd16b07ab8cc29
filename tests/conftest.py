"""Fixtures for the whole suite: one small Ray cluster for all tests that need one, and jobs to run on it."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from consistory_ray.jobs.job import RenderJob

MakeJob = Callable[..., RenderJob]
ROOT = Path(__file__).parents[1]
settings.register_profile("default", deadline=None)  # machines that run tests are busy
settings.load_profile("default")


@functools.cache
def _uses_cluster(file: str) -> bool:
    """Whether tests of this file, as ids name it, use the session's cluster."""
    return bool(re.search(r'usefixtures\("ray_cluster"\)|\(.*\bray_cluster: ', Path(ROOT, file).read_text()))


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--full``."""
    parser.addoption("--full", action="store_true", help="tests marked full too, and every death of the chaos suite")


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether tests that repeat something do it as often as they can."""
    return bool(pytestconfig.getoption("full"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests on the cluster come first: theirs is the longest way where tests run in several processes.

    Tests marked ``full`` are left out without ``--full``.
    """
    if not config.getoption("full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    items.sort(key=lambda item: _uses_cluster(item.nodeid.split("::")[0]), reverse=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n 2 --dist loadfile`` all files on the cluster go to one process, so that there is one cluster."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneCluster(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "the cluster" if _uses_cluster(file) else file

    return OneCluster(config, log)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with four CPUs (however many there are), started when the first test asks for it.

    A process that has joined a cluster before the tests run keeps it. What tests start has its token, to join it too.
    """
    os.environ.pop("RAY_ADDRESS", None)
    import ray

    if ray.is_initialized():
        yield
        return
    from consistory_ray.engine.cluster.local_ray import start_local_ray

    local = start_local_ray(num_cpus=4, object_store_memory=100 << 20)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in local.environment.items():
            patch.setenv(name, value)
        yield
        with warnings.catch_warnings():  # still with its token: Ray ends the process that says goodbye without it
            warnings.simplefilter("ignore", ResourceWarning)  # Ray does not wait for the processes it ends
            local.stop()
            gc.collect()


@pytest.fixture
def make_job() -> MakeJob:
    """Makes a job of ``subjects`` times ``scenes`` pictures, for the fake renderer."""

    def make(subjects: int = 2, scenes: int = 4, anchors: int = 2, name: str = "test", **settings: object) -> RenderJob:
        return RenderJob.model_validate(
            {
                "name": name,
                "model": "fake",
                "settings": settings,
                "subjects": [
                    {
                        "id": f"cat-{number}",
                        "concept": "cat",
                        "subject": f"a cat number {number}",
                        "anchors": [f"at home {anchor}" for anchor in range(anchors)],
                        "scenes": [{"id": f"scene-{scene}", "prompt": f"at place {scene}"} for scene in range(scenes)],
                    }
                    for number in range(subjects)
                ],
            }
        )

    return make


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests that kill have told, see tests/chaos/conftest.py, in whichever process they ran."""
    lines, killed = list[str](), Counter[str]()
    for report in itertools.chain(*terminalreporter.stats.values()):
        if getattr(report, "when", "") == "teardown":
            for name, value in report.user_properties:
                lines += value if name == "told" else []
                killed.update(value if name == "killed" else {})
    if lines:
        terminalreporter.section("proof by violence")
        for line in lines:
            terminalreporter.line(line)
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(killed.items()))
        terminalreporter.line(f"processes killed with SIGKILL: {killed.total()} ({kinds})")
