"""Fixtures for the whole suite: one small Ray cluster for all tests that need one, and jobs to run on it."""

from __future__ import annotations

import gc
import itertools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from consistory_ray.jobs.job import RenderJob

MakeJob = Callable[..., RenderJob]
RAY = "ray"
"""The group of all tests that use the session's cluster: one process runs them, so that there is one cluster."""

settings.register_profile("default", deadline=None)  # machines that run tests are busy
settings.load_profile("default")


def _needs_ray(item: pytest.Item) -> bool:
    return "ray_cluster" in getattr(item, "fixturenames", ())


@pytest.hookimpl(wrapper=True)  # around what xdist does, which reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Where tests run in several processes (``-n 2``), those on the cluster come first and all in one of them."""
    if config.pluginmanager.hasplugin("xdist"):
        items.sort(key=_needs_ray, reverse=True)
        for item in filter(_needs_ray, items):
            item.add_marker(pytest.mark.xdist_group(RAY))
    yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadgroup`` the other tests go to the processes file by file: a file makes its fixtures once."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class FileByFile(LoadGroupScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            group: str = super()._split_scope(nodeid)
            return group.split("::")[0]

    return FileByFile(config, log)


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
