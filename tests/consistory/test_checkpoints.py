"""Where models come from, and what is refused."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from huggingface_hub import hf_hub_download

from consistory_ray.consistory import ConsiStoryPipeline, checkpoints
from consistory_ray.consistory.checkpoints import load_checkpoint
from consistory_ray.errors import CheckpointError
from consistory_ray.settings import MethodSettings
from tests.consistory.original_layout import write_original_layout


@pytest.fixture(scope="module")
def folder(diffusers_pipe: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    diffusers_pipe.save_pretrained(folder)
    return folder


def test_a_folder(folder: Path, pipe: ConsiStoryPipeline) -> None:
    loaded = ConsiStoryPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, device="cpu")
    assert loaded.fingerprint == pipe.fingerprint
    assert loaded.device == torch.device("cpu") and loaded.pipe.unet.dtype == torch.bfloat16
    assert loaded.default_settings == MethodSettings()
    assert ConsiStoryPipeline.from_pretrained(str(folder), device="cpu").pipe.unet.dtype == torch.float32


def test_a_folder_with_settings_of_its_own(folder: Path) -> None:
    settings = folder / "consistory.json"
    settings.write_text(json.dumps({"num_inference_steps": 4, "freeu": None, "injection_window": [0.1, 0.5]}))
    loaded = ConsiStoryPipeline.from_pretrained(folder, device="cpu")
    assert loaded.default_settings == MethodSettings(num_inference_steps=4, freeu=None, injection_window=(0.1, 0.5))
    settings.write_text('{"steps": 4}')
    with pytest.raises(CheckpointError, match=r"consistory\.json"):
        ConsiStoryPipeline.from_pretrained(folder, device="cpu")
    settings.unlink()


def test_a_single_file_offline(
    folder: Path, pipe: ConsiStoryPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_original_layout(pipe.pipe, tmp_path / "tiny.safetensors")
    loaded = ConsiStoryPipeline.from_pretrained(tmp_path / "tiny.safetensors", device="cpu", config=folder)
    assert loaded.fingerprint == pipe.fingerprint
    settings = MethodSettings(num_inference_steps=2)
    found, expected = (
        each.render_vanilla(["a cat"], [1], settings=settings, output_type="latent").images for each in (loaded, pipe)
    )
    torch.testing.assert_close(found, expected)
    with pytest.raises(CheckpointError, match="offline with config="):
        ConsiStoryPipeline.from_pretrained(tmp_path / "tiny.safetensors", device="cpu")


@pytest.mark.parametrize("name", ["model.ckpt", "sdxl.bin", "weights.pt"])
def test_pickles_are_never_loaded(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"never read")
    with pytest.raises(CheckpointError, match="convert it to safetensors"):
        load_checkpoint(tmp_path / name, torch.float32)


def test_a_folder_with_pickled_weights_only(folder: Path, diffusers_pipe: StableDiffusionXLPipeline) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    hidden = weights.rename(weights.with_suffix(".away"))
    torch.save(diffusers_pipe.unet.state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    try:
        with pytest.raises(CheckpointError, match="could not be loaded"):
            load_checkpoint(folder, torch.float32)
    finally:
        hidden.rename(weights)
        (folder / "unet" / "diffusion_pytorch_model.bin").unlink()


@pytest.mark.parametrize("entry", ["unet", "_class_name"])
def test_code_that_comes_with_a_model_is_never_run(folder: Path, tmp_path: Path, entry: str) -> None:
    """A component's class may be named after a file in its own folder, a pipeline's after one beside it."""
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    for place in (copy, copy / "unet"):
        (place / "evil.py").write_text(f"open({str(tmp_path / 'was here')!r}, 'w')\nclass Evil: pass\n")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, entry: ["evil", "Evil"]}))
    with pytest.raises(CheckpointError, match="brings code of its own, which is never run"):
        load_checkpoint(copy, torch.float32)
    assert not (tmp_path / "was here").exists()


def test_a_pickle_that_calls_itself_safetensors(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load_checkpoint(tmp_path / "model.safetensors", torch.float32, config=tmp_path)


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        load_checkpoint(tmp_path / "nothing.safetensors", torch.float32)
    with pytest.raises(CheckpointError, match=r"model_index\.json"):
        load_checkpoint(tmp_path, torch.float32)
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load_checkpoint(tmp_path / "nowhere", torch.float32)


def test_code_of_a_hub_model_is_refused_before_its_weights_are_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache holds a model's index alone: whoever read on would miss the rest."""
    snapshot = tmp_path / "models--somebody--model" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--somebody--model" / "refs").mkdir()
    (tmp_path / "models--somebody--model" / "refs" / "main").write_text("a" * 40)
    index = json.loads((folder / "model_index.json").read_text())
    (snapshot / "model_index.json").write_text(json.dumps({**index, "unet": ["evil", "Evil"]}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(checkpoints, "hf_hub_download", partial(hf_hub_download, cache_dir=tmp_path))
    with pytest.raises(CheckpointError, match="brings code of its own, which is never run"):
        load_checkpoint("somebody/model", torch.float32)


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="a hub id that is reachable or cached"):
        load_checkpoint("nobody/no-such-model", torch.float32)


def test_other_architectures(folder: Path, tmp_path: Path, diffusers_pipe: StableDiffusionXLPipeline) -> None:
    unet = diffusers_pipe.unet
    before = unet.config
    try:
        unet.register_to_config(addition_embed_type="text")
        with pytest.raises(CheckpointError, match=r"addition_embed_type: must be 'text_time' \(got 'text'\)"):
            ConsiStoryPipeline(diffusers_pipe)
    finally:
        unet._internal_dict = before
