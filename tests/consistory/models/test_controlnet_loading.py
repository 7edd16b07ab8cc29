"""Where ControlNets come from, and which are refused before any weights are read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionXLPipeline
from safetensors.torch import save_file

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.models.controlnet_checks import config_of, controlnet_problems
from consistory_ray.errors import CheckpointError, InputError
from consistory_ray.miniature.architecture import build_unet
from tests.consistory.models.test_control import QUICK, make_net, make_union

SD15 = {"_class_name": "ControlNetModel", "cross_attention_dim": 768, "block_out_channels": [320, 640, 1280, 1280]}
SDXL_UNET = {
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SDXL_VAE = {"block_out_channels": [128, 256, 512, 512]}


@pytest.fixture(scope="module")
def net(diffusers_pipe: StableDiffusionXLPipeline) -> Any:
    return make_net(diffusers_pipe.unet, 1)


def fingerprints(pipe: StableDiffusionXLPipeline, *given: Any) -> tuple[str, ...]:
    return ConsiStoryPipeline(pipe, QUICK, controlnets=given).control_fingerprints


def test_all_ways_lead_to_the_same_net(diffusers_pipe: StableDiffusionXLPipeline, net: Any, tmp_path: Path) -> None:
    expected = fingerprints(diffusers_pipe, net)
    net.save_pretrained(tmp_path / "plain")
    half = ControlNetModel.from_pretrained(tmp_path / "plain", torch_dtype=torch.float16)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    file = tmp_path / "plain" / "diffusion_pytorch_model.safetensors"
    alone = shutil.copy(file, tmp_path / "alone.safetensors")
    for given in (tmp_path / "plain", str(tmp_path / "half"), file, alone, f"file://{tmp_path}/plain"):
        assert fingerprints(diffusers_pipe, given) == expected
        assert config_of("net", str(given).removeprefix("file://"), diffusers_pipe.unet.config) is not None
    assert (
        ConsiStoryPipeline(diffusers_pipe, controlnets=tmp_path / "half").backbone.controlnets[0].dtype == torch.float32
    )
    changed = ControlNetModel.from_pretrained(tmp_path / "plain")
    changed.conv_in.weight.data.neg_()
    assert fingerprints(diffusers_pipe, changed) != expected


def test_a_union_from_a_file_alone(diffusers_pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    union = make_union(diffusers_pipe.unet, heads=8)
    save_file(union.state_dict(), tmp_path / "union.safetensors")
    pipe = ConsiStoryPipeline(diffusers_pipe, QUICK, controlnets=[tmp_path / "union.safetensors"])
    assert pipe.control_fingerprints == fingerprints(diffusers_pipe, union)
    assert pipe.backbone.control_modes == (("openpose", "depth", "scribble", "canny", "normal", "segment"),)


def test_smaller_nets_fit_too() -> None:
    """The "small" ones of SDXL have no attention at all, and blocks by other names."""
    small = {"down_block_types": ["DownBlock2D"] * 3, "mid_block_type": "UNetMidBlock2D", **SDXL_UNET}
    assert controlnet_problems("net", small, SDXL_UNET, SDXL_VAE) == []


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (SD15, ["block_out_channels", "cross_attention_dim", "addition_embed_type", "made for Stable Diffusion 1"]),
        ({**SDXL_UNET, "layers_per_block": 1}, ["layers_per_block: must be 2, as in the model (got 1)"]),
        (
            {**SDXL_UNET, "conditioning_embedding_out_channels": [16, 32, 96]},
            ["conditioning_embedding_out_channels: must have 4 entries: the model's latents are 8 times smaller"],
        ),
        ({**SDXL_UNET, "conditioning_channels": 1}, ["conditioning_channels: must be 3"]),
        ({"_class_name": "T2IAdapter"}, ["adapters act inside"]),
        ({"_class_name": "FluxControlNetModel"}, ["a ControlNetModel or ControlNetUnionModel of diffusers"]),
    ],
    ids=range(6),
)
def test_what_does_not_fit_is_told_by_its_configuration(config: dict[str, Any], named: list[str]) -> None:
    told = "\n".join(map(str, controlnet_problems("controlnets[0]", config, SDXL_UNET, SDXL_VAE)))
    assert all(part in told for part in named), told
    assert controlnet_problems("net", SDXL_UNET, SDXL_UNET, SDXL_VAE) == []


def with_config(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tensors(path: Path, *names: str) -> Path:
    save_file({name: torch.zeros(2) for name in names}, path)
    return path


def test_nothing_is_loaded_for_a_net_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("consistory_ray.consistory.pipeline.load_model", fail)
    given = {
        with_config(tmp_path / "sd15", SD15): "made for Stable Diffusion 1",
        with_config(tmp_path / "adapter", {"_class_name": "T2IAdapter"}): "adapters act inside",
        tmp_path / "nowhere": "there is no such folder",
        tensors(tmp_path / "lllite.safetensors", "lllite_unet_input.weight"): "ControlNet-LLLite",
        tensors(tmp_path / "original.safetensors", "control_model.input_blocks.0.weight"): "in the original layout",
        tmp_path / "net.ckpt": "pickle",
        "https://huggingface.co/xinsir/controlnet-openpose-sdxl-1.0": "give the hub id",
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights")
    given |= {tmp_path / "empty": "not a ControlNet", tmp_path / "text.safetensors": "no safetensors file"}
    for place, named in given.items():
        with pytest.raises(CheckpointError, match=named) as caught:
            ConsiStoryPipeline.from_pretrained("miniature", device="cpu", controlnets=[place])
        assert all("controlnets[0]" in problem.path for problem in caught.value.problems)
    with pytest.raises(InputError, match=r"controlnets\[1\]: give 'miniature'"):
        ConsiStoryPipeline.from_pretrained("miniature", device="cpu", controlnets=[tmp_path, 3])


def test_a_loaded_net_of_another_model_is_refused(diffusers_pipe: StableDiffusionXLPipeline, net: Any) -> None:
    other = ControlNetModel.from_unet(build_unet(), conditioning_embedding_out_channels=(8, 16))
    with pytest.raises(CheckpointError, match=r"controlnets\[1\]: block_out_channels: must be \[8, 16, 32\]"):
        ConsiStoryPipeline(diffusers_pipe, controlnets=[net, other])
    with pytest.raises(CheckpointError, match="a ControlNetModel or ControlNetUnionModel of diffusers"):
        ConsiStoryPipeline(diffusers_pipe, controlnets=[torch.nn.Linear(1, 1)])


def test_weights_that_lack_are_told(diffusers_pipe: StableDiffusionXLPipeline, net: Any, tmp_path: Path) -> None:
    net.save_pretrained(tmp_path / "net")
    file = tmp_path / "net" / "diffusion_pytorch_model.safetensors"
    weights = {key: tensor for key, tensor in net.state_dict().items() if not key.startswith("controlnet_mid_block")}
    save_file(weights, file, {"format": "pt"})
    for given in (tmp_path / "net", file):
        with pytest.raises(CheckpointError, match=r"controlnet_mid_block\.(bias|weight)"):
            ConsiStoryPipeline(diffusers_pipe, controlnets=[given])
