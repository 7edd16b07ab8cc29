"""The IP-Adapter of the benchmarks: its training goes on where it stopped, diffusers reads it, the file is current."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from consistory_ray.miniature.judge import Judge
from consistory_ray.miniature.vocabulary import SCENES
from consistory_ray.settings import model_revision
from training.controlnet import open_pipeline
from training.denoiser import Stage
from training.individuals import random_placement
from training.ip_adapter import (
    DROPPED,
    FEATURES,
    TOKENS,
    AdapterTraining,
    Encoder,
    ImageAdapter,
    Individuals,
    attach,
    encoder_sha256,
    export_ip_adapter,
    imagined,
    notes_of,
    train_ip_adapter,
)
from training.train import IP_ADAPTER, WEIGHTS
from training.world import PictureSpec, draw

COUNT = 3


def short(steps: int) -> Stage:
    """A training of so many steps."""
    return Stage("ip_adapter", 128, steps, 2, 1e-2, 1e-3)


def test_it_resumes(tmp_path: Path, alone: None) -> None:
    train_ip_adapter(0, 1, str(tmp_path), str(WEIGHTS), short(1), COUNT)
    drawn = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "individuals").iterdir()}
    first = torch.load(tmp_path / "ip_adapter.pt", weights_only=True)
    train_ip_adapter(0, 1, str(tmp_path), str(WEIGHTS), short(3), COUNT)
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "individuals").iterdir()} == drawn
    second = torch.load(tmp_path / "ip_adapter.pt", weights_only=True)
    assert (first["step"], second["step"], second["ema"]["steps"]) == (1, 3, 3)
    assert {int(state["step"]) for state in second["optimizer"]["state"].values()} == {3}, "the optimizer started anew"
    assert 0 < float(first["model"]["seconds"]) < float(second["model"]["seconds"]), "time is not added up"


def test_it_is_written_as_diffusers_reads_it(tmp_path: Path, alone: None) -> None:
    train_ip_adapter(0, 1, str(tmp_path), str(WEIGHTS), short(2), COUNT)
    path = tmp_path / "adapter.safetensors"
    export_ip_adapter(tmp_path, WEIGHTS, path)
    weights, pipe = load_file(path), open_pipeline(WEIGHTS)
    shapes = {name: tuple(value.shape) for name, value in weights.items() if name.startswith("image_proj")}
    width = pipe.unet.config.cross_attention_dim
    assert shapes == {
        "image_proj.proj.weight": (TOKENS * width, FEATURES),
        "image_proj.proj.bias": (TOKENS * width,),
        "image_proj.norm.weight": (width,),
        "image_proj.norm.bias": (width,),
    }
    crossing = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    assert {name for name in weights if name not in shapes} == {
        f"ip_adapter.{2 * number + 1}.to_{half}_ip.weight" for number in range(len(crossing)) for half in "kv"
    }
    attach(pipe, path)
    average = torch.load(tmp_path / "ip_adapter.pt", weights_only=True)["ema"]["shadow"]
    for number, name in enumerate(crossing):
        for half in ("k", "v"):
            read = getattr(pipe.unet.attn_processors[name], f"to_{half}_ip")[0].weight.data
            torch.testing.assert_close(read.float(), average[f"layers.{number}.to_{half}_ip.0.weight"].half().float())
            assert read.abs().max() > 0


def test_untrained_it_changes_nothing_and_it_alone_learns(tmp_path: Path) -> None:
    pipe, plain = open_pipeline(WEIGHTS), open_pipeline(WEIGHTS)
    adapter = ImageAdapter(pipe)
    assert len(adapter.layers) == sum(name.endswith("attn2.processor") for name in plain.unet.attn_processors)
    text = torch.randn(2, 24, plain.unet.config.cross_attention_dim)
    inputs = torch.randn(2, 4, 16, 16), torch.tensor([900, 300]), text
    added: dict[str, Any] = {"text_embeds": torch.randn(2, 64), "time_ids": torch.full((2, 6), 64.0)}
    with torch.no_grad():
        wanted = plain.unet(*inputs, added_cond_kwargs=added).sample
        found = pipe.unet(*inputs, added_cond_kwargs=added | {"image_embeds": [torch.randn(2, 2, FEATURES)]}).sample
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    individuals = Individuals(tmp_path, pipe, COUNT)
    training = AdapterTraining(pipe, adapter, individuals)
    losses = training.losses("0/0", 4)
    assert losses.shape == (4,) and torch.equal(training.losses("0/0", 4), losses), "a batch is decided by its name"
    losses.mean().backward()  # type: ignore[no-untyped-call]
    assert all(layer.to_v_ip[0].weight.grad.abs().max() > 0 for layer in adapter.layers)  # type: ignore[index,union-attr]
    own = {id(parameter) for parameter in adapter.parameters()}
    assert all(value.grad is None for value in pipe.unet.parameters() if id(value) not in own)


def test_captions_and_pictures_are_left_out_as_often_as_the_paper_does(tmp_path: Path) -> None:
    pipe = open_pipeline(WEIGHTS)
    training = AdapterTraining(pipe, ImageAdapter(pipe), Individuals(tmp_path, pipe, COUNT))
    seen: list[tuple[bool, bool]] = []

    class Looks(torch.nn.Module):
        """In the UNet's place: notes what it is shown."""

        def forward(self, noisy: Any, steps: Any, context: Any, added_cond_kwargs: Any) -> Any:
            shown = added_cond_kwargs["image_embeds"][0].flatten(1)
            seen.extend(zip((context.flatten(1) == 0).all(1).tolist(), (shown == 0).all(1).tolist(), strict=True))
            return type("Output", (), {"sample": noisy})

    pipe.unet = Looks()
    training.losses("dropped", 3000)
    for which in ((True, False), (False, True), (True, True)):
        assert seen.count(which) / len(seen) == pytest.approx(DROPPED, abs=0.015)


def test_what_it_is_told_is_of_the_subject_not_of_the_place() -> None:
    encoder, found = Encoder(Judge.load()), []
    for index in range(4):
        who, places, rng = imagined(index)
        assert len(set(places)) == len(places) and set(places) <= set(SCENES)
        specs = [PictureSpec((who,), (random_placement(rng),), place, 7) for place in places[:2]]
        found.append(encoder([draw(spec).image for spec in specs]))
    seen = torch.nn.functional.normalize(torch.stack(found) - torch.stack(found).mean((0, 1)), dim=-1)
    likeness = seen[:, 0] @ seen[:, 1].T
    assert seen.shape == (4, 2, FEATURES) and torch.equal(likeness.argmax(1), torch.arange(4))


def test_the_committed_one_is_small_and_of_the_bundled_weights() -> None:
    """After a change of the weights or of the second judge: ``python -m training.train ip-adapter``."""
    notes = notes_of(IP_ADAPTER)
    assert notes["base_revision"] == model_revision("miniature")
    assert notes["encoder_sha256"] == encoder_sha256()
    assert json.loads(notes["training_seconds"]) > 60
    assert IP_ADAPTER.stat().st_size <= 6_000_000


def test_the_committed_numbers_are_of_the_committed_one() -> None:
    """After a change of the adapter: ``python benchmarks/paper.py baselines``."""
    report = json.loads((IP_ADAPTER.parents[1] / "results" / "paper" / "baselines.json").read_text())
    assert report["ip_adapter"]["sha256"] == hashlib.sha256(IP_ADAPTER.read_bytes()).hexdigest()
    assert report["variants"]["ip adapter, scale 1"]["training_seconds"] == float(
        notes_of(IP_ADAPTER)["training_seconds"]
    )
