"""Models of other kinds are refused from their configurations, before any weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionXLPipeline
from huggingface_hub import hf_hub_download

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.models import checkpoints
from consistory_ray.consistory.models.checkpoints import load_checkpoint
from consistory_ray.consistory.models.model_checks import scheduler_problems
from consistory_ray.errors import CheckpointError
from consistory_ray.settings import MethodSettings
from tests.consistory.conftest import make_diffusers_pipeline
from tests.consistory.original_layout import write_original_layout

FEW = MethodSettings(num_inference_steps=3, freeu=None)
ROOT = "model.diffusion_model"


@pytest.fixture(scope="module")
def folder(diffusers_pipe: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    diffusers_pipe.save_pretrained(folder)
    return folder


def edit(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        values.update(changes)
        (folder / file).write_text(json.dumps(values))

    return change


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for each in changes:
            each(folder)

    return change


def scheduler(name: str, **changes: Any) -> Callable[[Path], None]:
    return both(
        edit("model_index.json", scheduler=["diffusers", name]),
        edit("scheduler/scheduler_config.json", _class_name=name, **changes),
    )


def damage(path: Path) -> None:
    path.write_text("{")


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "SD 1.5": (edit("model_index.json", _class_name="StableDiffusionPipeline"), "StableDiffusionPipeline"),
    "SD 3": (edit("model_index.json", _class_name="StableDiffusion3Pipeline"), "StableDiffusion3Pipeline"),
    "Flux": (
        edit("model_index.json", _class_name="FluxPipeline", transformer=["diffusers", "FluxTransformer2DModel"]),
        "FluxPipeline",
    ),
    "refiner": (
        edit(
            "model_index.json",
            _class_name="StableDiffusionXLImg2ImgPipeline",
            text_encoder=[None, None],
            tokenizer=[None, None],
            requires_aesthetics_score=True,
        ),
        "refiner",
    ),
    "refiner without its mark": (edit("model_index.json", text_encoder=[None, None]), "refiner"),
    "refiner's UNet": (edit("unet/config.json", projection_class_embeddings_input_dim=24 + 5 * 8), "refiner"),
    "inpainting pipeline": (edit("model_index.json", _class_name="StableDiffusionXLInpaintPipeline"), "Inpaint"),
    "inpainting UNet": (edit("unet/config.json", in_channels=9), "inpainting"),
    "instruct-pix2pix": (edit("unet/config.json", in_channels=8), "instruct-pix2pix"),
    "ControlNet": (edit("model_index.json", controlnet=["diffusers", "ControlNetModel"]), "this network is not used"),
    "Playground v2.5": (scheduler("EDMDPMSolverMultistepScheduler", sigma_data=0.5), "EDM"),
    "Playground v2.5 with Euler": (scheduler("EDMEulerScheduler"), "EDM"),
    "flow matching": (scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0), "flow-matching"),
    "flow matching in disguise": (
        edit("scheduler/scheduler_config.json", prediction_type="flow_prediction"),
        "flow-matching",
    ),
    "flow sigmas": (scheduler("DPMSolverMultistepScheduler", use_flow_sigmas=True), "flow-matching"),
    "another noise schedule": (edit("scheduler/scheduler_config.json", beta_schedule="sigmoid"), "beta_schedule"),
    "a narrower text": (edit("unet/config.json", cross_attention_dim=24), "widths of the text encoders"),
    "another UNet": (edit("model_index.json", unet=["diffusers", "UNetSpatioTemporalConditionModel"]), "UNet2DCond"),
    "damaged configuration": (lambda folder: damage(folder / "unet" / "config.json"), "cannot be read"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_folders_are_refused_before_their_weights_are_read(folder: Path, tmp_path: Path, kind: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    change, named = REFUSED[kind]
    change(copy)
    for weights in copy.rglob("*.safetensors"):
        weights.write_bytes(b"never read")
    with pytest.raises(CheckpointError, match=named) as caught:
        load_checkpoint(copy, torch.float32)
    assert caught.value.problems, "field, value and fix are named"


@pytest.mark.parametrize("kind", ["refiner", "refiner's UNet", "Playground v2.5"])
def test_hub_models_are_refused_before_their_weights_are_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The hub's cache holds the configurations alone: whoever read on would miss the rest."""
    snapshot = hub_cache(folder, tmp_path, monkeypatch)
    change, named = REFUSED[kind]
    change(snapshot)
    for weights in snapshot.rglob("*.safetensors"):
        weights.unlink()
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint("somebody/model", torch.float32)


def hub_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the hub's cache, and no network."""
    place = tmp_path / "hub" / "models--somebody--model"
    snapshot = Path(shutil.copytree(folder, place / "snapshots" / ("a" * 40)))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(checkpoints, "hf_hub_download", partial(hf_hub_download, cache_dir=tmp_path / "hub"))
    download = checkpoints._PIPELINE.download
    monkeypatch.setattr(checkpoints._PIPELINE, "download", partial(download, cache_dir=tmp_path / "hub"))
    return snapshot


def test_the_cosine_schedule_is_edm() -> None:
    """Its class needs a library of its own to be made."""
    config = {"sigma_data": 1.0, "prediction_type": "v_prediction"}
    assert "EDM" in str(scheduler_problems("CosineDPMSolverMultistepScheduler", config)[0])


# Loaded pipelines -----------------------------------------------------------------------------------------------------


def test_a_loaded_refiner_and_other_odd_pipelines(tmp_path: Path) -> None:
    model = make_diffusers_pipeline(tmp_path)
    model.unet.register_to_config(projection_class_embeddings_input_dim=24 + 5 * 8)
    with pytest.raises(CheckpointError, match="refiner"):
        ConsiStoryPipeline(model)
    model = make_diffusers_pipeline(tmp_path)
    model.register_to_config(requires_aesthetics_score=True)
    with pytest.raises(CheckpointError, match="refiner"):
        ConsiStoryPipeline(model)
    model = make_diffusers_pipeline(tmp_path)
    model.vae.register_to_config(latent_channels=16)
    with pytest.raises(CheckpointError, match="this VAE belongs to another model"):
        ConsiStoryPipeline(model)
    model = make_diffusers_pipeline(tmp_path)
    model.vae = None
    with pytest.raises(CheckpointError, match="vae: the pipeline needs this component"):
        ConsiStoryPipeline(model)
    model = make_diffusers_pipeline(tmp_path)
    model.tokenizer = None
    with pytest.raises(CheckpointError, match="tokenizer: the pipeline's text_encoder needs it"):
        ConsiStoryPipeline(model)
    model = make_diffusers_pipeline(tmp_path)
    model.controlnet = torch.nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match="controlnet: this network would be ignored"):
        ConsiStoryPipeline(model)


# Single files ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(diffusers_pipe: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    write_original_layout(diffusers_pipe, path)
    return safetensors.torch.load_file(path)


def without(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {key: value for key, value in weights.items() if not key.startswith(prefix)}


def with_keys(**extra: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {**weights, **{key.replace("__", "."): value for key, value in extra.items()}}


ONE = torch.zeros(1)
SINGLE: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, str], str]] = {
    "CosXL": (with_keys(edm_vpred__sigma_max=ONE, edm_vpred__sigma_min=ONE), {}, "EDM"),
    "Playground v2.5": (with_keys(edm_mean=ONE, edm_std=ONE), {}, "EDM"),
    "inpainting": (
        with_keys(**{f"{ROOT}.input_blocks.0.0.weight".replace(".", "__"): torch.zeros(8, 9, 3, 3)}),
        {},
        "inpainting",
    ),
    "instruct-pix2pix": (
        with_keys(**{f"{ROOT}.input_blocks.0.0.weight".replace(".", "__"): torch.zeros(8, 8, 3, 3)}),
        {},
        "instruct-pix2pix",
    ),
    "guidance embedding": (
        with_keys(**{f"{ROOT}.time_embed.cond_proj.weight".replace(".", "__"): ONE}),
        {},
        "guidance",
    ),
    "SD 1": (
        lambda weights: {"cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": ONE},
        {},
        "Stable Diffusion 1",
    ),
    "SD 2": (lambda weights: {"cond_stage_model.model.positional_embedding": ONE}, {}, "Stable Diffusion 2"),
    "Flux": (lambda weights: {"double_blocks.0.img_attn.qkv.weight": ONE}, {}, "Flux"),
    "refiner": (
        lambda weights: {
            **without("conditioner.embedders")(weights),
            "conditioner.embedders.0.model.positional_embedding": ONE,
        },
        {},
        "refiner",
    ),
    "LoRA": (lambda weights: {"lora_unet_down_blocks_1.lora_up.weight": ONE}, {}, "an adapter"),
    "flow": (lambda weights: weights, {"modelspec.prediction_type": "flow"}, "only epsilon and v work"),
    "no second text encoder": (without("conditioner.embedders.1"), {}, "lacks the second text encoder"),
    "no text encoder": (without("conditioner.embedders.0"), {}, "lacks the first text encoder"),
    "no VAE": (without("first_stage_model"), {}, "lacks the VAE"),
    "UNet only": (
        lambda weights: {key: value for key, value in weights.items() if key.startswith(ROOT)},
        {},
        "lacks the VAE",
    ),
    "some keys of a text encoder": (
        without("conditioner.embedders.1.model.transformer.resblocks.1.mlp"),
        {},
        "the model is incomplete",
    ),
    "some keys of the UNet": (without(f"{ROOT}.middle_block.1"), {}, "the model is incomplete|could not be loaded"),
    "some keys of the VAE": (
        without("first_stage_model.decoder.up.0.block.0"),
        {},
        "the model is incomplete|could not be loaded",
    ),
    "wrong shapes": (
        with_keys(**{f"{ROOT}.out.2.bias".replace(".", "__"): torch.zeros(7)}),
        {},
        "could not be loaded",
    ),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_single_files_are_refused(weights: dict[str, Any], folder: Path, tmp_path: Path, kind: str) -> None:
    change, metadata, named = SINGLE[kind]
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({key: value.clone() for key, value in change(weights).items()}, path, metadata)
    with pytest.raises(CheckpointError, match=named):
        ConsiStoryPipeline.from_pretrained(path, device="cpu", config=folder)


V_PREDICTION: dict[str, tuple[dict[str, Any], dict[str, str], bool]] = {
    "v_pred": ({"v_pred": ONE}, {}, False),
    "v_pred and ztsnr": ({"v_pred": ONE, "ztsnr": ONE}, {}, True),
    "empty markers": ({"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, {"modelspec.predict_key": "v"}, True),
    "modelspec": ({}, {"modelspec.prediction_type": "v"}, False),
    "modelspec under another key": ({}, {"modelspec.predict_key": "V"}, False),
    "modelspec, as others write it": ({"ztsnr": ONE}, {"modelspec.prediction_type": "v_prediction"}, True),
}


@pytest.mark.parametrize("kind", V_PREDICTION)
def test_v_prediction_files_are_sampled_as_v(weights: dict[str, Any], folder: Path, tmp_path: Path, kind: str) -> None:
    markers, metadata, zero_snr = V_PREDICTION[kind]
    path = tmp_path / "model.safetensors"
    markers = {key: value.clone() for key, value in markers.items()}
    safetensors.torch.save_file({**weights, **markers}, path, metadata)
    loaded = ConsiStoryPipeline.from_pretrained(path, device="cpu", config=folder)
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero_snr else {}
    theirs = make_diffusers_pipeline(tmp_path / "theirs", prediction_type="v_prediction", **options)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    given: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent"}
    expected = theirs(["a cat"], latents=latents, **given).images
    found = loaded.render_vanilla(["a cat"], latents=latents, settings=FEW, output_type="latent").images
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    plain = make_diffusers_pipeline(tmp_path / "plain")
    assert loaded.fingerprint != ConsiStoryPipeline(plain).fingerprint
    made = loaded.create_subject(["a cat"], "cat", [1], settings=FEW, output_type="latent")
    assert torch.isfinite(loaded.render(["a cat"], made, [2], output_type="latent").images).all()


@pytest.mark.parametrize("metadata", [{}, {"modelspec.prediction_type": "epsilon"}])
def test_other_files_stay_as_they_were(
    weights: dict[str, Any], folder: Path, tmp_path: Path, pipe: ConsiStoryPipeline, metadata: dict[str, str]
) -> None:
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata)
    loaded = ConsiStoryPipeline.from_pretrained(tmp_path / "model.safetensors", device="cpu", config=folder)
    assert loaded.fingerprint == pipe.fingerprint


def test_configurations_of_a_single_file_bring_no_code(weights: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    copy = Path(shutil.copytree(folder, tmp_path / "config"))
    edit("model_index.json", unet=["evil", "Evil"])(copy)
    with pytest.raises(CheckpointError, match="brings code of its own"):
        load_checkpoint(tmp_path / "model.safetensors", torch.float32, copy)
    for config in (tmp_path / "nowhere" / "at" / "all", tmp_path):
        with pytest.raises(CheckpointError, match="config"):
            load_checkpoint(tmp_path / "model.safetensors", torch.float32, config)
    with pytest.raises(CheckpointError, match="config: leave it out"):
        load_checkpoint(folder, torch.float32, folder)
