"""Training goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from consistory_ray.miniature.architecture import LATENT_SIZE, build_autoencoder
from consistory_ray.miniature.autoencoder import encode, train_autoencoder
from consistory_ray.miniature.dataset import MASK_SIZE, _draw_block
from consistory_ray.miniature.denoiser import Stage, train_stage
from consistory_ray.miniature.judge_training import fit
from consistory_ray.miniature.parallel import Ema, save_atomically
from consistory_ray.miniature.world import PICTURE_SIZE

COUNT = 8

pytestmark = [
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning"),
]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """This process as the only one of a training."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a few pictures."""
    folder = tmp_path / "run" / "pictures"
    folder.mkdir(parents=True)
    shape = (COUNT, PICTURE_SIZE, PICTURE_SIZE, 3)
    np.lib.format.open_memmap(f"{folder}/images.npy", mode="w+", dtype="uint8", shape=shape).flush()
    coverage = (COUNT, 2, MASK_SIZE, MASK_SIZE)
    np.lib.format.open_memmap(f"{folder}/coverage.npy", mode="w+", dtype="float16", shape=coverage).flush()
    _draw_block((str(folder), 1, 0, COUNT, 0.5))
    return folder.parent


def test_the_autoencoder_resumes_and_ends_with_white_latents(run: Path, alone: None) -> None:
    train_autoencoder(0, 1, str(run), 2, 1e-3, batch=2)
    first = torch.load(run / "autoencoder.pt", weights_only=True)
    train_autoencoder(0, 1, str(run), 4, 1e-3, batch=2)
    second = torch.load(run / "autoencoder.pt", weights_only=True)
    assert (first["step"], second["step"]) == (2, 4)
    steps = {int(state["step"]) for state in second["optimizer"]["state"].values()}
    assert steps == {4}, "the optimizer started anew"
    vae = build_autoencoder()
    vae.load_state_dict(second["whitened"])
    latents = encode(vae, np.load(run / "pictures" / "images.npy")).transpose(0, 1).flatten(1)
    assert latents.mean(1).abs().max() < 0.1
    assert (torch.cov(latents) - torch.eye(4)).abs().max() < 0.1


def test_the_denoiser_resumes_and_later_stages_start_from_earlier_ones(run: Path, alone: None) -> None:
    rng = np.random.default_rng(0)
    for size in (LATENT_SIZE // 2, LATENT_SIZE):
        np.save(run / f"latents-{size}.npy", rng.standard_normal((COUNT, 4, size, size)).astype(np.float16))
    half = Stage("half", PICTURE_SIZE // 2, 1, 2, 1e-3, 1e-3)
    train_stage(0, 1, str(run), half, None)
    train_stage(0, 1, str(run), Stage("half", PICTURE_SIZE // 2, 2, 2, 1e-3, 1e-3), None)
    resumed = torch.load(run / "half.pt", weights_only=True)
    assert resumed["step"] == 2 and {int(s["step"]) for s in resumed["optimizer"]["state"].values()} == {2}
    train_stage(0, 1, str(run), Stage("full", PICTURE_SIZE, 1, 2, 0.0, 0.0), str(run / "half.pt"))
    full = torch.load(run / "full.pt", weights_only=True)
    assert full["step"] == 1
    for name, value in resumed["model"].items():
        assert torch.equal(value, full["model"][name]), name


def test_a_moving_average_survives_its_checkpoint(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    ema = Ema(module, 0.9)
    with torch.no_grad():
        module.weight += 1
    ema.update(module)
    save_atomically(ema.state(), tmp_path / "ema.pt")
    other = Ema(torch.nn.Linear(2, 2), 0.9)
    other.load(torch.load(tmp_path / "ema.pt", weights_only=True))
    assert other.steps == 1 and torch.equal(other.shadow["weight"], ema.shadow["weight"])
    assert not (tmp_path / "ema.tmp").exists()


def test_the_judge_s_training_resumes(tmp_path: Path) -> None:
    network, seen = torch.nn.Linear(2, 1), []

    def loss(rng: np.random.Generator) -> torch.Tensor:
        seen.append(float(rng.random()))
        return network(torch.ones(1, 2)).square().sum()

    fit("test", network, loss, 3, tmp_path / "net.pt")
    stopped = {name: value.clone() for name, value in network.state_dict().items()}
    torch.nn.init.zeros_(network.weight)
    fit("test", network, loss, 3, tmp_path / "net.pt")
    assert len(seen) == 3 and all(torch.equal(stopped[name], value) for name, value in network.state_dict().items())
    fit("test", network, loss, 5, tmp_path / "net.pt")
    assert len(set(seen)) == 5, "the resumed steps must not repeat earlier batches"
    assert torch.load(tmp_path / "net.pt", weights_only=True)["step"] == 5
