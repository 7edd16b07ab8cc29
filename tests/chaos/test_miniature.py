"""The same with the bundled model: what is rendered does not depend on who died meanwhile."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from tests.chaos.harness import KILLS, Cluster, Run, moments
from tests.chaos.invariants import alike, check_complete, check_rows, digests
from tests.patience import PATIENCE

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

STEPS = 4
SCENES = 7
"""Of each subject and for each coordinator: more than two workers can have done before it is killed."""


def test_pictures_of_the_bundled_model_survive(cluster: Cluster, tmp_path: Path, full: bool) -> None:
    """A worker and a coordinator die, two of each with ``--full``, while 2 subjects are rendered; every picture is that
    of an undisturbed run.

    The invariants are those of :mod:`tests.chaos.invariants`, but for a colour value in a thousand that may be off by
    one: after a death scenes are tried alone, and a batch of one adds up floats in another order. So a scene does not
    depend on its batch, on the worker, or on whether its anchors came from memory or from the output.
    """
    deaths = 2 if full else 1
    job = tmp_path / "job.yaml"
    subjects = [
        {
            "id": name,
            "concept": name,
            "style": "a drawing of",
            "subject": f"a {name}",
            "anchors": ["in the forest", "on the beach"],
            "scenes": [{"prompt": "in the snow", "id": "snow", "count": SCENES * deaths}],
        }
        for name in ("dragon", "robot")
    ]
    settings = {"num_inference_steps": STEPS, "batch_size": 2, "torch_dtype": "float32"}
    job.write_text(yaml.safe_dump({"name": "miniature", "settings": settings, "subjects": subjects}))
    calm = Run(cluster, tmp_path / "calm", job, str(tmp_path / "calm" / "out"), None, workers=1)
    calm.finish()
    undisturbed = digests(calm.store, calm.plan)

    run = Run(cluster, tmp_path / "wild", job, str(tmp_path / "wild" / "out"), None, workers=2)
    chance, plan, before = random.Random(8), run.plan, KILLS.copy()
    is_alike = alike(run.store, calm.store)
    for _ in range(deaths):
        coordinator = run.start()
        there = len(run.store.list_files("images"))
        for _ in moments(PATIENCE):
            if coordinator.wait(0.02) is not None or len(run.store.list_files("images")) > there:
                break
        assert run.kill_worker(chance), coordinator.text()
        coordinator.wait(chance.uniform(0, 1))
        coordinator.kill()
        check_rows(run.store, plan, undisturbed, is_alike)
    assert (KILLS - before).keys() == {"coordinators", "workers"}
    run.finish()
    check_complete(run.store, plan, undisturbed, is_alike)
