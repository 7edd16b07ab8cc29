"""Training goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from consistory_ray.miniature.architecture import LATENT_SIZE, build_autoencoder
from consistory_ray.miniature.vocabulary import PICTURE_SIZE
from training.autoencoder import encode, train_autoencoder
from training.checkpoints import Ema, save_atomically
from training.dataset import draw_pictures, open_pictures
from training.denoiser import Stage, TrainingSet, train_stage
from training.judge import fit

COUNT = 8

pytestmark = [
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning"),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a few pictures."""
    draw_pictures(tmp_path / "run" / "pictures", COUNT, 1, processes=1, two_subjects=0.5)
    return tmp_path / "run"


def made_up_latents(run: Path, size: int) -> None:
    """Noise in place of the pictures' latents."""
    noise = np.random.default_rng(0).standard_normal((COUNT, 4, size, size))
    np.save(run / f"latents-{size}.npy", noise.astype(np.float16))


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
    for size in (LATENT_SIZE // 2, LATENT_SIZE):
        made_up_latents(run, size)
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


def test_every_subject_s_word_is_found_in_its_captions(run: Path) -> None:
    made_up_latents(run, LATENT_SIZE)
    data = TrainingSet(run, LATENT_SIZE)
    pictures = open_pictures(run / "pictures")
    shown = [pictures.kinds(index) for index in range(COUNT)]
    batch = data.batch(np.random.default_rng(0), 64)
    found = [
        [data.tokenizer.decode(tokens[position]).strip() for position in positions if position >= 0]
        for tokens, positions in zip(batch.tokens, batch.positions, strict=True)
    ]
    assert {len(kinds) for kinds in found} == {1, 2} and all(kinds in shown for kinds in found)


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
