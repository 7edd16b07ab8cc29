"""Another VAE than the model's own, and which files of a model are taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.models import loading
from consistory_ray.errors import CheckpointError
from tests.consistory.original_layout import write_original_layout, write_original_vae


@pytest.fixture(scope="module")
def base(diffusers_pipe: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    diffusers_pipe.save_pretrained(folder)
    return folder


def another_vae(pipe: StableDiffusionXLPipeline, **changes: Any) -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoencoderKL.from_config({**pipe.vae.config, "force_upcast": False, **changes})


class Holder:
    """What writes VAEs takes pipelines."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self.vae = vae


def load(base: Path, **more: Any) -> ConsiStoryPipeline:
    return ConsiStoryPipeline.from_pretrained(base, device="cpu", **more)


def refused(base: Path, **more: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        load(base, **more)
    assert {problem.path for problem in error.value.problems} <= set(more)
    return "\n".join([error.value.message, *map(str, error.value.problems)])


@pytest.mark.parametrize("kind", ["folder", "of a model", "original file", "file"])
def test_a_vae(
    base: Path, tmp_path: Path, pipe: ConsiStoryPipeline, diffusers_pipe: StableDiffusionXLPipeline, kind: str
) -> None:
    vae = another_vae(diffusers_pipe)
    place = tmp_path / "vae"
    if kind.endswith("file"):
        place = tmp_path / "vae.safetensors"
        write = (
            write_original_vae
            if kind == "original file"
            else lambda holder, path: save_file(holder.vae.state_dict(), path)
        )
        write(Holder(vae), place)
    else:
        vae.save_pretrained(place)
    loaded = load(base, vae=tmp_path if kind == "of a model" else place)
    state = loaded.pipe.vae.state_dict()
    assert all(torch.equal(state[key], weight) for key, weight in vae.state_dict().items())
    assert loaded.pipe.vae.config.force_upcast is kind.endswith("file")  # a file has no configuration of its own
    assert loaded.fingerprint != pipe.fingerprint
    assert loaded.render_vanilla(["a cat"], [1], settings=loaded.default_settings.replace(num_inference_steps=1)).images


def test_vaes_that_do_not_fit(
    base: Path, tmp_path: Path, diffusers_pipe: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    deeper = {"block_out_channels": (8, 8, 8), "down_block_types": ("DownEncoderBlock2D",) * 3}
    deeper |= {"up_block_types": ("UpDecoderBlock2D",) * 3, "norm_num_groups": 4}
    another_vae(diffusers_pipe, **deeper).save_pretrained(tmp_path / "deeper")
    assert "4 times smaller" in refused(base, vae=tmp_path / "deeper")
    write_original_vae(Holder(another_vae(diffusers_pipe)), tmp_path / "half.safetensors")
    weights = load_file(tmp_path / "half.safetensors")
    save_file({key: weight for key, weight in weights.items() if "up.0" not in key}, tmp_path / "half.safetensors")
    assert "weights are missing" in refused(base, vae=tmp_path / "half.safetensors")
    monkeypatch.delattr(loading, "load_checkpoint")
    wide = another_vae(diffusers_pipe, latent_channels=16)
    wide.save_pretrained(tmp_path / "wide")
    write_original_vae(Holder(wide), tmp_path / "wide.safetensors")
    for place in ("wide", "wide.safetensors"):
        assert "latents of 16 channels" in refused(base, vae=tmp_path / place)
    diffusers_pipe.unet.save_pretrained(tmp_path / "unet")
    assert "AutoencoderKL" in refused(base, vae=tmp_path / "unet")
    assert "pickle" in refused(base, vae=tmp_path / "vae.pt")
    assert "missing" in refused(base, vae=tmp_path / "none.safetensors")
    assert "bundled" in refused(base, vae="miniature")


def test_variants_and_revisions(base: Path, tmp_path: Path, diffusers_pipe: StableDiffusionXLPipeline) -> None:
    text = refused(base, variant="fp16")
    assert "'fp16'" in text and "plain files" in text
    diffusers_pipe.save_pretrained(tmp_path / "both")
    diffusers_pipe.save_pretrained(tmp_path / "both", variant="fp16")
    weights = load_file(file := tmp_path / "both" / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    save_file({key: weight + 1 for key, weight in weights.items()}, file, {"format": "pt"})
    plain, marked = load(tmp_path / "both"), load(tmp_path / "both", variant="fp16")
    assert torch.equal(marked.pipe.unet.conv_in.weight, plain.pipe.unet.conv_in.weight + 1)
    assert "revision" in refused(base, revision="main")
    assert "on the hub" in refused(Path("miniature"), revision="main")
    write_original_layout(diffusers_pipe, single := tmp_path / "model.safetensors")
    assert "no variants" in refused(single, variant="fp16")
