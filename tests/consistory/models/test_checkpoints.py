"""Where models come from, and what is refused."""

from __future__ import annotations

import json
import shutil
import warnings
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionXLPipeline
from huggingface_hub import hf_hub_download

from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.models import checkpoints
from consistory_ray.consistory.models.checkpoints import load_checkpoint
from consistory_ray.errors import CheckpointError, InputError
from consistory_ray.settings import MethodSettings
from tests.consistory.models.test_model_refusals import hub_cache
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


def test_both_names_of_the_dtype(folder: Path) -> None:
    load = partial(ConsiStoryPipeline.from_pretrained, folder, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(dtype=torch.float16).pipe.unet.dtype == torch.float16
        assert load(torch_dtype=torch.float16).pipe.unet.dtype == torch.float16
    with pytest.raises(InputError, match="torch_dtype: leave it out"):
        load(dtype=torch.float16, torch_dtype=torch.float32)


# Kinds of weight files ------------------------------------------------------------------------------------------------


def renamed(folder: Path, target: Path, variant: str, *, halved: bool = True) -> Path:
    """A copy of a model whose weights are of a variant, rounded to float16 so that it shows which were read."""
    copy = Path(shutil.copytree(folder, target))
    for weights in copy.rglob("*.safetensors"):
        tensors = safetensors.torch.load_file(weights)
        tensors = {key: value.half() if halved else value for key, value in tensors.items()}
        safetensors.torch.save_file(tensors, weights.with_suffix(f".{variant}.safetensors"), {"format": "pt"})
        weights.unlink()
    return copy


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["fp16", "bf16", "ema", "non_ema"])
def test_a_folder_with_one_kind_of_files(
    folder: Path, tmp_path: Path, pipe: ConsiStoryPipeline, variant: str, dtype: torch.dtype
) -> None:
    copy = renamed(folder, tmp_path / "model", variant, halved=variant.endswith("16"))
    loaded = ConsiStoryPipeline.from_pretrained(copy, device="cpu", dtype=dtype)
    assert loaded.pipe.unet.dtype == loaded.pipe.text_encoder.dtype == dtype
    assert loaded.fingerprint == pipe.fingerprint
    rounded = dtype == torch.float32 and variant.endswith("16")
    assert any("only weights in half precision are there: unet" in notice for notice in loaded.notices) == rounded


@pytest.mark.parametrize(("dtype", "halved"), [(torch.float16, True), (torch.float32, False), (torch.bfloat16, False)])
def test_float16_reads_the_smaller_files(folder: Path, tmp_path: Path, dtype: torch.dtype, halved: bool) -> None:
    copy = renamed(folder, tmp_path / "model", "fp16")
    for weights in folder.rglob("*.safetensors"):
        target = copy / weights.relative_to(folder)
        target.write_bytes(b"not read" if halved else weights.read_bytes())
    if not halved:
        for weights in copy.rglob("*.fp16.safetensors"):
            weights.write_bytes(b"not read")
    loaded = ConsiStoryPipeline.from_pretrained(copy, device="cpu", dtype=dtype)
    assert loaded.pipe.unet.dtype == dtype and loaded.notices == []


def test_kinds_may_differ_from_part_to_part(folder: Path, tmp_path: Path, pipe: ConsiStoryPipeline) -> None:
    copy = renamed(folder, tmp_path / "model", "fp16")
    shutil.copy(folder / "vae" / "diffusion_pytorch_model.safetensors", copy / "vae")
    (copy / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    for dtype in (torch.float16, torch.float32):
        assert ConsiStoryPipeline.from_pretrained(copy, device="cpu", dtype=dtype).fingerprint == pipe.fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sharded_files(folder: Path, tmp_path: Path, pipe: ConsiStoryPipeline, dtype: torch.dtype) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    shutil.rmtree(copy / "unet")
    pipe.pipe.unet.save_pretrained(copy / "unet", max_shard_size="100KB", variant="fp16")
    assert len(list((copy / "unet").glob("*.fp16-*.safetensors"))) > 1
    assert ConsiStoryPipeline.from_pretrained(copy, device="cpu", dtype=dtype).fingerprint == pipe.fingerprint


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_weights_that_are_missing_are_not_made_up(folder: Path, tmp_path: Path, part: str) -> None:
    """diffusers and transformers fill in random numbers and go on."""
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    (file,) = (copy / part).glob("*.safetensors")
    tensors = safetensors.torch.load_file(file)
    gone = next(key for key in tensors if key.endswith("weight") and ("mid" in key or "layers.1" in key))
    del tensors[gone]
    safetensors.torch.save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"the model is incomplete\n.*{part}: download the model again"):
        load_checkpoint(copy, torch.float32)


def test_a_part_that_is_missing(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "model"))
    shutil.rmtree(copy / "text_encoder_2")
    with pytest.raises(CheckpointError, match="could not be loaded"):
        load_checkpoint(copy, torch.float32)


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("~/no/such/folder", "no such folder"),
        ("./model", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("models/of/mine", "no such folder"),
        ("file:///no/such/folder", "no such folder"),
        ("file:/no/such/folder", "no such folder"),
        ("m" * 300, "no such folder"),
        ("m/" * 300, "no such folder"),
        ("C:\\models\\sdxl", "no such folder"),
        ("somebody/", "no such folder"),
        ("a name with spaces", "no such folder"),
        ("s3://bucket/model", "not read from URLs"),
        ("https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0", "give the hub id"),
        ("model.gguf", "a format that is not read"),
        ("model.CKPT", "a pickle"),
        ("~/model.safetensors", "is missing"),
        ("model.SAFETENSORS", "is missing"),
    ],
)
def test_what_cannot_be_a_model_is_told_without_a_network(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(checkpoints, "hf_hub_download", asked)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(name, torch.float32)


def test_models_as_people_name_them(folder: Path, pipe: ConsiStoryPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    for name in ("~/tiny", f"file://{folder}", f"{folder}/"):
        assert ConsiStoryPipeline.from_pretrained(name, device="cpu").fingerprint == pipe.fingerprint


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_hub_model_from_the_cache(
    folder: Path,
    tmp_path: Path,
    pipe: ConsiStoryPipeline,
    monkeypatch: pytest.MonkeyPatch,
    variant: str | None,
    dtype: torch.dtype,
) -> None:
    model = folder if variant is None else renamed(folder, tmp_path / "model", variant)
    hub_cache(model, tmp_path, monkeypatch)
    loaded = ConsiStoryPipeline.from_pretrained("somebody/model", device="cpu", dtype=dtype)
    assert loaded.fingerprint == pipe.fingerprint


@pytest.mark.parametrize(
    ("dtype", "there", "asked"),
    [
        (torch.float16, ("fp16",), ["fp16"]),
        (torch.float32, (None,), [None]),
        (torch.float32, ("fp16",), [None, "fp16"]),
        (torch.bfloat16, (None, "fp16"), [None]),
        (torch.float16, (None,), ["fp16", None]),
    ],
)
def test_only_the_files_that_are_read_are_fetched(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    there: tuple[str | None, ...],
    asked: list[str | None],
) -> None:
    hub_cache(folder, tmp_path, monkeypatch)
    variants: list[str | None] = []

    def download(name: str, *, variant: str | None, use_safetensors: bool, revision: str | None) -> Path:
        variants.append(variant)
        if variant not in there:
            raise OSError(f"no files of the variant {variant}")
        assert use_safetensors and revision is None
        return folder

    monkeypatch.setattr(checkpoints._PIPELINE, "download", download)
    load_checkpoint("somebody/model", dtype)
    assert variants == asked


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
