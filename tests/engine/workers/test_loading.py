"""Workers load a job's LoRAs with the bundled model: once, from the file that the plan means, and pictures show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consistory_ray.adapters.files import read_header
from consistory_ray.consistory.models import checkpoints
from consistory_ray.engine.events import RunSummary
from consistory_ray.engine.options import RunOptions
from consistory_ray.engine.rendering import RendererSpec
from consistory_ray.engine.running import run_job
from consistory_ray.engine.workers.renderer import ConsiStoryRenderer
from consistory_ray.errors import CacheMismatchError, CheckpointError
from consistory_ray.jobs.job import parse_job
from consistory_ray.output.index.index import read_index
from consistory_ray.plan.plan import Plan, make_plan
from tests.plan.test_loaded import safetensors

WEIGHTS = Path(checkpoints.__file__).parents[2] / "miniature/weights/unet/diffusion_pytorch_model.safetensors"
MODULE = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def kohya(path: Path, seed: int = 0) -> str:
    """A LoRA of one of the bundled model's layers, as kohya's trainers write it."""
    out, into = read_header("unet", WEIGHTS).shapes[f"{MODULE}.weight"]
    random, name = np.random.default_rng(seed), f"lora_unet_{MODULE.replace('.', '_')}"
    factors = {"lora_down": random.normal(size=(2, into)), "lora_up": random.normal(size=(out, 2))}
    tensors = {f"{name}.{key}.weight": value for key, value in factors.items()}
    return safetensors(path, **tensors, **{f"{name}.alpha": np.full((), 2.0)})


def job(*loras: Any) -> dict[str, Any]:
    settings = {"scheduler": "ddim", "timesteps": [999, 749], "guidance_scale": 1, "seed": 1}
    subject = {"id": "moss", "concept": "dragon", "subject": "a drawing of a dragon", "anchors": ["in the forest"]}
    return {"name": "x", "settings": settings, "loras": list(loras), "subjects": [{**subject, "scenes": ["in space"]}]}


def renderer(plan: Plan) -> ConsiStoryRenderer:
    return ConsiStoryRenderer(RendererSpec(plan.model, "cpu", "auto", 1, loaded=plan.loaded))


def test_the_base_is_loaded_once_and_caches_belong_to_what_was_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    inner = checkpoints._PIPELINE.from_pretrained

    def counted(*args: Any, **more: Any) -> Any:
        loads.append(str(args))
        return inner(*args, **more)

    monkeypatch.setattr(checkpoints._PIPELINE, "from_pretrained", counted)
    path = kohya(tmp_path / "one.safetensors")
    one, half = (make_plan(parse_job(job({"path": path, "weight": weight}))) for weight in (1, 0.5))
    first, second = renderer(one), renderer(half)
    assert len(loads) == 2, "once by each"
    assert first.fingerprint != second.fingerprint
    made = [each.make_subject(plan.subjects[0]) for each, plan in ((first, one), (second, half))]
    assert np.abs(np.asarray(made[0].images[0], float) - np.asarray(made[1].images[0], float)).max() > 4
    with pytest.raises(CacheMismatchError):
        second.load_cache(made[0].cache_buffer)
    kohya(tmp_path / "one.safetensors", seed=1)
    with pytest.raises(CheckpointError, match="another file than the job was read with"):
        renderer(one)
    assert len(loads) == 2, "nothing is loaded for that"


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_with_a_lora_on_the_bundled_model(tmp_path: Path) -> None:
    out, mine = tmp_path / "out", job({"path": kohya(tmp_path / "one.safetensors"), "weight": 0.5})

    def run() -> RunSummary:
        return run_job(mine, out, RunOptions(workers=1, cpus_per_worker=1, device="cpu"), gallery=False)

    assert (run().state, run().rendered) == ("complete", 0)
    rows = read_index(str(out)).to_pylist()
    assert [row["status"] for row in rows] == ["ok", "ok"] and all(row["loras"] for row in rows)
    pictures = [(out / row["path"]).read_bytes() for row in rows]
    assert all(len(set(picture)) > 100 for picture in pictures)
