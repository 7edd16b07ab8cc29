"""Textual inversions: both encoders read their vectors, and concepts keep their places behind several of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

from consistory_ray.adapters import Embedding, LoRA
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.models import loading
from consistory_ray.errors import InputError
from tests.consistory import lora_files
from tests.consistory.lora_files import write_lora

WIDTHS = (16, 24)
TOKEN = "<moss>"


@pytest.fixture(scope="module")
def base(diffusers_pipe: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    diffusers_pipe.save_pretrained(folder)
    return folder


def vectors(count: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, width, generator=random) for width in WIDTHS)
    return first, second


def write(path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, path)
    return path


def load(base: Path, *embeddings: Embedding, **more: Any) -> ConsiStoryPipeline:
    return ConsiStoryPipeline.from_pretrained(base, embeddings=embeddings, device="cpu", **more)


def refused(base: Path, *embeddings: Any, **more: Any) -> str:
    with pytest.raises(InputError) as error:
        load(base, *embeddings, **more)
    assert all(problem.path.startswith("embeddings[") and problem.fix for problem in error.value.problems)
    return "\n".join([error.value.message, *map(str, error.value.problems)])


def rows(loaded: ConsiStoryPipeline, text: str) -> list[torch.Tensor]:
    """What each encoder reads of a text, without its special tokens."""
    pipe = loaded.pipe
    found = []
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        ids = tokenizer(pipe.maybe_convert_prompt(text, tokenizer), add_special_tokens=False)["input_ids"]
        found.append(encoder.get_input_embeddings().weight[ids])
    return found


@pytest.mark.parametrize(
    "names",
    [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"), None],
    ids=["webui", "trainers", "two files"],
)
def test_layouts(
    base: Path,
    tmp_path: Path,
    pipe: ConsiStoryPipeline,
    diffusers_pipe: StableDiffusionXLPipeline,
    names: tuple[str, str] | None,
) -> None:
    first, second = vectors()
    if names is None:  # one for each encoder, as diffusers' training script writes them
        given = [
            write(tmp_path / "a.safetensors", **{TOKEN: second}),
            write(tmp_path / "b.safetensors", emb_params=first),
        ]
    else:
        given = [write(tmp_path / "moss.safetensors", **dict(zip(names, (first, second), strict=True)))]
    loaded = load(base, *(Embedding(str(path), TOKEN) for path in given))
    for row, each in zip(rows(loaded, TOKEN), (first, second), strict=True):
        assert torch.equal(row, each)
    for row, each in zip(rows(loaded, "red cat"), rows(pipe, "red cat"), strict=True):
        assert torch.equal(row, each)
    text, _, pooled, _ = loaded.pipe.encode_prompt(f"a {TOKEN} cat", do_classifier_free_guidance=False)
    plain, *_ = diffusers_pipe.encode_prompt("a cat", do_classifier_free_guidance=False)
    assert text.isfinite().all() and pooled.isfinite().all() and not torch.equal(text, plain)


def test_concepts_keep_their_places(base: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "moss.safetensors", **dict(zip(("clip_l", "clip_g"), vectors(), strict=True)))
    backbone = load(base, Embedding(str(path), TOKEN)).backbone
    prompts = [f"a photo of {TOKEN} cat in snow", "a cat in snow", f"red {TOKEN} in snow with cat"]
    assert backbone.concept_positions(prompts, ["cat"]) == [[[7]], [[2]], [[8]]]
    assert backbone.concept_positions(prompts[:1], [f"{TOKEN} cat"]) == [[[4, 5, 6, 7]]]
    assert backbone.concept_positions(prompts[2:], [TOKEN]) == [[[2, 3, 4]]]


def test_fingerprints(base: Path, tmp_path: Path, pipe: ConsiStoryPipeline) -> None:
    names = ("clip_l", "clip_g")
    one = write(tmp_path / "one.safetensors", **dict(zip(names, vectors(), strict=True)))
    other = write(tmp_path / "other.safetensors", **dict(zip(names, vectors(seed=1), strict=True)))
    first = load(base, Embedding(str(one), TOKEN))
    found = {pipe.fingerprint, first.fingerprint, load(base, Embedding(str(one), "<fern>")).fingerprint}
    found.add(load(base, Embedding(str(other), TOKEN)).fingerprint)
    assert len(found) == 4
    before = first.fingerprint
    first.hold_fingerprint()
    tensors = list(vectors(seed=1))
    for tensor, part in zip(tensors, ("text_encoder", "text_encoder_2"), strict=True):
        tokenizer = getattr(first.pipe, part.replace("text_encoder", "tokenizer"))
        options = {"token": "<fern>", "text_encoder": getattr(first.pipe, part), "tokenizer": tokenizer}
        first.pipe.load_textual_inversion(tensor, **options)
    assert first.fingerprint != before


def test_beside_a_lora(
    base: Path, tmp_path: Path, diffusers_pipe: StableDiffusionXLPipeline, pipe: ConsiStoryPipeline
) -> None:
    path = write(tmp_path / "moss.safetensors", **dict(zip(("clip_l", "clip_g"), vectors(), strict=True)))
    write_lora(diffusers_pipe, tmp_path / "style.safetensors", lora_files.kohya)
    loaded = load(base, Embedding(str(path), TOKEN), loras=[LoRA(str(tmp_path / "style.safetensors"), 0.5)])
    assert torch.equal(rows(loaded, TOKEN)[0], vectors()[0])
    subject = loaded.create_subject([f"a {TOKEN} cat"], "cat", [1], num_inference_steps=2, output_type="latent")
    assert subject.images.isfinite().all()


def test_refusals_before_the_model_is_loaded(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(loading, "load_checkpoint")
    first, second = vectors()
    wrong = write(tmp_path / "sd15.safetensors", emb_params=torch.ones(2, 768))
    text = refused(base, Embedding(str(wrong), TOKEN))
    assert "width 768" in text and "16" in text and "24" in text
    swapped = write(tmp_path / "swapped.safetensors", clip_l=second, clip_g=first)
    assert "clip_g has vectors of width 16" in refused(base, Embedding(str(swapped), TOKEN))
    uneven = write(tmp_path / "uneven.safetensors", clip_l=first[:2], clip_g=second)
    assert "clip_g 3, clip_l 2" in refused(base, Embedding(str(uneven), TOKEN))
    long = write(tmp_path / "long.safetensors", clip_l=torch.ones(76, 16), clip_g=torch.ones(76, 24))
    assert "75" in refused(base, Embedding(str(long), TOKEN))
    other = write(tmp_path / "other.safetensors", a=first, b=second)
    assert "it holds a, b" in refused(base, Embedding(str(other), TOKEN))
    assert "pickle" in refused(base, Embedding(str(tmp_path / "moss.pt"), TOKEN))
    assert "missing" in refused(base, Embedding(str(tmp_path / "moss.safetensors"), TOKEN))
    assert "Embedding(path, token)" in refused(base, "moss.safetensors")
    for token in ("", "two words", "tab\t"):
        with pytest.raises(InputError) as error:
            Embedding("moss.safetensors", token)
        assert error.value.problems[0].path == "token"


def test_refusals_of_a_loaded_model(base: Path, tmp_path: Path) -> None:
    first, second = vectors()
    both = write(tmp_path / "both.safetensors", clip_l=first, clip_g=second)
    half = write(tmp_path / "half.safetensors", emb_params=first)
    assert "no vectors for the second text encoder" in refused(base, Embedding(str(half), TOKEN))
    assert "already" in refused(base, Embedding(str(both), TOKEN), Embedding(str(half), TOKEN))
    assert "the model has a token 'cat'" in refused(base, Embedding(str(both), "cat"))
    nan = write(tmp_path / "nan.safetensors", clip_l=first / 0, clip_g=second)
    assert "not finite" in refused(base, Embedding(str(nan), TOKEN))
