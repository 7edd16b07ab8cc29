"""CLIP and DINOv2 in the hub's layout, tiny and random: deterministic, picture by picture, refused when not whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
)

from consistory_ray.errors import CheckpointError
from consistory_ray.quality.metrics import Metric, MetricOptions, PatchMetric, TextMetric, load_metric
from consistory_ray.testing import FakeRenderer

SIZE = {"height": 32, "width": 32}
PICTURES = [FakeRenderer(size=(48, 48)).picture(name) for name in "abc"]
TEXTS = ["a cat", "a dog", "a cat"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=520, max_position_embeddings=16, eos_token_id=519, bos_token_id=518, **sizes)
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **sizes)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    CLIPModel(config).save_pretrained(folder, safe_serialization=True)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE).save_pretrained(folder)
    words = [chr(code) for code in range(33, 290)][:256]
    vocabulary = [*words, *(f"{word}</w>" for word in words), "<|startoftext|>", "<|endoftext|>"]
    vocabulary += [f"spare{n}" for n in range(518 - len(vocabulary) + 2)]
    places = {word: n for n, word in enumerate(dict.fromkeys(vocabulary))}
    places["<|startoftext|>"], places["<|endoftext|>"] = 518, 519
    (folder / "vocab.json").write_text(json.dumps(places))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(2)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder, safe_serialization=True)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def test_clip_sees_and_reads(clip: Path) -> None:
    metric = load_metric("clip", MetricOptions({"clip": str(clip)}))
    assert isinstance(metric, Metric) and isinstance(metric, TextMetric) and not isinstance(metric, PatchMetric)
    seen, shown = metric.embed(PICTURES), metric.align(PICTURES, TEXTS)
    assert seen.shape == (3, 8) and np.linalg.norm(seen, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    model, tokens = CLIPModel.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip)
    with torch.inference_mode():
        words = tokens(TEXTS, padding=True, return_tensors="pt")
        pixels = CLIPImageProcessor.from_pretrained(clip)(images=PICTURES, return_tensors="pt")
        whole = model(**words, **pixels)
        cosines = (whole.image_embeds * whole.text_embeds).sum(1).numpy()
    assert shown == pytest.approx(2.5 * np.maximum(cosines, 0), abs=1e-5), "CLIP-T is not 2.5 max(cos, 0)"
    for number in range(3):
        assert metric.embed(PICTURES[number : number + 1])[0] == pytest.approx(seen[number], abs=1e-5)
    assert metric.embed([]).shape == (0, 8) and metric.align([], []).shape == (0,)
    assert metric.align(PICTURES[:1], ["many " * 50]).shape == (1,), "long prompts are cut off"


def test_dinov2_sees_wholes_and_patches(dino: Path) -> None:
    metric = load_metric("dinov2", MetricOptions({"dinov2": str(dino)}))
    assert isinstance(metric, Metric) and isinstance(metric, PatchMetric) and not isinstance(metric, TextMetric)
    seen, patches = metric.embed(PICTURES), metric.patches(PICTURES)
    assert seen.shape == (3, 16) and patches.shape == (3, 2, 2, 16)
    assert np.linalg.norm(patches, axis=-1) == pytest.approx(np.ones((3, 2, 2)), abs=1e-5)
    again = load_metric("dinov2", MetricOptions({"dinov2": str(dino)}))
    assert again.version == metric.version and isinstance(again, Metric) and (again.embed(PICTURES) == seen).all()


def test_other_weights_are_another_version(dino: Path, tmp_path: Path) -> None:
    for path in dino.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.manual_seed(3)
    Dinov2Model(Dinov2Config.from_pretrained(dino)).save_pretrained(tmp_path, safe_serialization=True)
    versions = {load_metric("dinov2", MetricOptions({"dinov2": str(folder)})).version for folder in (dino, tmp_path)}
    assert len(versions) == 2


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_weights_have_to_be_named_whole_and_of_that_kind(name: str, clip: Path, dino: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"{name} needs weights"):
        load_metric(name)
    with pytest.raises(CheckpointError, match=f"{name} cannot be loaded"):
        load_metric(name, MetricOptions({name: str(tmp_path)}))
    other = dino if name == "clip" else clip
    with pytest.raises(CheckpointError, match=f"{name} cannot be loaded"):
        load_metric(name, MetricOptions({name: str(other)}))


def test_a_picture_of_one_colour_does_no_harm(clip: Path) -> None:
    metric = load_metric("clip", MetricOptions({"clip": str(clip)}))
    assert isinstance(metric, Metric) and np.isfinite(metric.embed([Image.new("RGB", (8, 8))])).all()
