"""LoRAs in every layout come out as ``W + weight * alpha / rank * up @ down``, and what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from consistory_ray.adapters import LoRA, adapter_file, bundled_loras
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.consistory.models import loading
from consistory_ray.errors import InputError
from tests.consistory import lora_files
from tests.consistory.lora_files import ALPHA, CONVOLUTIONS, RANK, SHORT, module_of, write_lora
from tests.consistory.original_layout import write_original_layout

UNET = SHORT[:4]
OUTPUTS = tuple(f"{part}.text_model.encoder.layers.0.self_attn.out_proj" for part in ("text_encoder", "text_encoder_2"))
"""Without these diffusers does not know what kind of a file it is."""


@pytest.fixture(scope="module")
def base(diffusers_pipe: StableDiffusionXLPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    diffusers_pipe.save_pretrained(folder)
    return folder


def load(base: Path, *loras: LoRA | str | Path, **more: Any) -> ConsiStoryPipeline:
    return ConsiStoryPipeline.from_pretrained(base, loras=loras, device="cpu", **more)


def refused(base: Path, *loras: Any, **more: Any) -> str:
    with pytest.raises(InputError) as error:
        load(base, *loras, **more)
    assert all(problem.path.startswith("loras") and problem.fix for problem in error.value.problems)
    return "\n".join([error.value.message, *map(str, error.value.problems)])


def assert_changed(loaded: Any, original: Any, changes: dict[str, Tensor]) -> None:
    """Exactly these weights differ from the original's, by so much."""
    changed = {id(module_of(loaded, name).weight): change for name, change in changes.items()}
    assert len(changed) == len(changes)
    for part in ("unet", "text_encoder", "text_encoder_2", "vae"):
        before = getattr(original, part).state_dict()
        for key, weight in getattr(loaded, part).state_dict(keep_vars=True).items():
            wanted = before[key]
            if id(weight) in changed:
                wanted = wanted + changed.pop(id(weight))
                assert torch.allclose(weight, wanted, atol=1e-5, rtol=1e-5), key
            else:
                assert torch.equal(weight, wanted), key
    assert not changed


@pytest.mark.parametrize(
    ("write", "modules", "scale"),
    [
        (lora_files.kohya, SHORT, ALPHA / RANK),
        (lora_files.kohya, (*SHORT, *CONVOLUTIONS), ALPHA / RANK),
        (lora_files.kohya_original, (*SHORT, *CONVOLUTIONS), ALPHA / RANK),
        (lora_files.comfy, (*SHORT, *CONVOLUTIONS), 1),
        (lora_files.diffusers, (*SHORT, *CONVOLUTIONS), 1),
        (lora_files.diffusers_plain, SHORT, 1),
        (lora_files.diffusers_old, SHORT, 1),
        (lora_files.peft, (*UNET, *CONVOLUTIONS), 1),
    ],
    ids=["kohya", "locon", "original", "comfy", "diffusers", "plain", "old", "peft"],
)
def test_layouts(
    base: Path,
    tmp_path: Path,
    diffusers_pipe: StableDiffusionXLPipeline,
    write: lora_files.Write,
    modules: Sequence[str],
    scale: float,
) -> None:
    products = write_lora(diffusers_pipe, tmp_path / "style.safetensors", write, modules)
    loaded = load(base, LoRA(str(tmp_path / "style.safetensors"), -0.7)).pipe
    assert_changed(loaded, diffusers_pipe, {name: -0.7 * scale * each for name, each in products.items()})
    assert not any("lora" in name for name, _ in loaded.unet.named_modules())


def test_the_same_as_diffusers_makes_of_it(
    base: Path, tmp_path: Path, diffusers_pipe: StableDiffusionXLPipeline
) -> None:
    path = tmp_path / "style.safetensors"
    write_lora(diffusers_pipe, path, lora_files.kohya, (*SHORT, *OUTPUTS))
    plain = ConsiStoryPipeline.from_pretrained(base, device="cpu").pipe
    plain.load_lora_weights(str(tmp_path), weight_name=path.name, adapter_name="style")
    plain.set_adapters(["style"], [0.5])
    plain.fuse_lora()
    plain.unload_lora_weights()
    ours = load(base, LoRA(str(path), 0.5)).pipe
    for part in ("unet", "text_encoder", "text_encoder_2"):
        theirs = getattr(plain, part).state_dict()
        for key, weight in getattr(ours, part).state_dict().items():
            assert torch.allclose(weight, theirs[key], atol=1e-6), key


def test_ranks_and_alphas_may_differ_within_a_file(
    base: Path, tmp_path: Path, diffusers_pipe: StableDiffusionXLPipeline
) -> None:
    path = tmp_path / "style.safetensors"
    products = write_lora(diffusers_pipe, path, lora_files.kohya, SHORT)
    weights = load_file(path)
    stem = "lora_unet_up_blocks_0_attentions_0_proj_in"
    down, up = weights[f"{stem}.lora_down.weight"], weights[f"{stem}.lora_up.weight"]
    weights |= {f"{stem}.lora_down.weight": down.repeat(3, 1), f"{stem}.lora_up.weight": up.repeat(1, 3)}
    weights[f"{stem}.alpha"] = torch.tensor(1.0)
    save_file(weights, path)
    changes = {name: ALPHA / RANK * each for name, each in products.items()}
    changes["unet.up_blocks.0.attentions.0.proj_in"] = 3 / 6 * products["unet.up_blocks.0.attentions.0.proj_in"]
    assert_changed(load(base, path).pipe, diffusers_pipe, changes)


def test_alphas_in_metadata_and_beside_the_file(
    base: Path, tmp_path: Path, diffusers_pipe: StableDiffusionXLPipeline
) -> None:
    told = json.dumps({"unet.r": RANK, "unet.lora_alpha": 5, "unet.alpha_pattern": {"to_k": 7}})
    path = tmp_path / "pytorch_lora_weights.safetensors"
    products = write_lora(diffusers_pipe, path, lora_files.diffusers, SHORT, lora_adapter_metadata=told)
    scales = {name: 7 / RANK if name.endswith("to_k") else 5 / RANK if "unet" in name else 1 for name in SHORT}
    changes = {name: scales[name] * each for name, each in products.items()}
    assert_changed(load(base, tmp_path).pipe, diffusers_pipe, changes)
    folder = tmp_path / "peft"
    folder.mkdir()
    products = write_lora(diffusers_pipe, folder / "adapter_model.safetensors", lora_files.peft, UNET)
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 6, "use_rslora": True}))
    changes = {name: 6 / RANK**0.5 * each for name, each in products.items()}
    assert_changed(load(base, folder).pipe, diffusers_pipe, changes)


def test_several_add_up_in_any_order(base: Path, tmp_path: Path, diffusers_pipe: StableDiffusionXLPipeline) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    one = write_lora(diffusers_pipe, first, lora_files.kohya, UNET, seed=1)
    two = write_lora(diffusers_pipe, second, lora_files.diffusers, SHORT[1:], seed=2)
    loras = LoRA(str(first), 0.5, "one"), LoRA(second.as_uri(), 2)
    loaded, turned = load(base, *loras), load(base, *reversed(loras))
    changes = {name: 2 * two[name] if name in two else torch.zeros(()) for name in SHORT}
    changes = {name: each + (0.5 * ALPHA / RANK * one[name] if name in one else 0) for name, each in changes.items()}
    assert_changed(loaded.pipe, diffusers_pipe, changes)
    assert loaded.fingerprint == turned.fingerprint
    theirs = turned.pipe.unet.state_dict()
    assert all(torch.equal(weight, theirs[key]) for key, weight in loaded.pipe.unet.state_dict().items())


def test_a_weight_of_nothing_changes_nothing(
    base: Path, tmp_path: Path, pipe: ConsiStoryPipeline, diffusers_pipe: StableDiffusionXLPipeline
) -> None:
    path = tmp_path / "style.safetensors"
    write_lora(diffusers_pipe, path, lora_files.kohya)
    loaded = load(base, LoRA(str(path), 0))
    assert_changed(loaded.pipe, diffusers_pipe, {})
    assert loaded.fingerprint == pipe.fingerprint


def test_fingerprints(
    base: Path, tmp_path: Path, pipe: ConsiStoryPipeline, diffusers_pipe: StableDiffusionXLPipeline
) -> None:
    path, other = tmp_path / "style.safetensors", tmp_path / "other.safetensors"
    write_lora(diffusers_pipe, path, lora_files.kohya)
    (tmp_path / "copy.safetensors").write_bytes(path.read_bytes())
    write_lora(diffusers_pipe, other, lora_files.kohya, seed=1)
    one = load(base, path)
    same = load(base, LoRA(str(tmp_path / "copy.safetensors"), name="another name"), dtype=torch.bfloat16)
    assert one.fingerprint == same.fingerprint
    others = [load(base, LoRA(str(path), 0.999999)), load(base, LoRA(str(path), -1)), load(base, other)]
    assert len({pipe.fingerprint, one.fingerprint, *(each.fingerprint for each in others)}) == 5
    found = one.fingerprint
    one.pipe.unet.conv_in.weight.data.neg_()
    assert one.fingerprint not in (found, pipe.fingerprint)
    one.pipe.unet.conv_in.weight.data.neg_()
    assert one.fingerprint == found


def sd15(path: Path) -> None:
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{stem}.lora_down.weight": torch.ones(2, 768), f"{stem}.lora_up.weight": torch.ones(16, 2)}, path)


def written(*more: tuple[str, tuple[int, ...]], keep: bool = True) -> Callable[[Path, Any], None]:
    def write(path: Path, pipe: Any) -> None:
        write_lora(pipe, path, lora_files.kohya)
        weights = load_file(path) if keep else {}
        save_file(weights | {key: torch.ones(shape) for key, shape in more}, path)

    return write


NOWHERE = "lora_unet_down_blocks_7_attentions_0_proj_in"
PROJ = "lora_unet_up_blocks_0_attentions_0_proj_in"
WRONG: dict[str, tuple[Callable[[Path, Any], object], Sequence[str]]] = {
    "of SD 1.5": (lambda path, _: sd15(path), ["Stable Diffusion 1", "768", "40"]),
    "nothing of it fits": (
        written((f"{NOWHERE}.lora_down.weight", (2, 8)), (f"{NOWHERE}.lora_up.weight", (8, 2)), keep=False),
        ["nothing of it", NOWHERE],
    ),
    "a part of it fits": (
        written((f"{NOWHERE}.lora_down.weight", (2, 8)), (f"{NOWHERE}.lora_up.weight", (8, 2))),
        ["1 of its 7 changes", NOWHERE],
    ),
    "another width": (
        written((f"{PROJ}.lora_down.weight", (2, 9))),
        ["1 of its 6 changes", PROJ],
    ),
    "a factor alone": (written((f"{NOWHERE}.lora_down.weight", (2, 8))), ["only a part", NOWHERE]),
    "ranks that differ": (written((f"{PROJ}.lora_down.weight", (3, 32))), ["[3, 32]"]),
    "an unknown tensor": (written(("lora_unet_surprise", (2,))), ["only a part", "lora_unet_surprise"]),
    "no LoRA": (written(("weight", (2,)), keep=False), ["not a LoRA", "weight"]),
    "DoRA": (written((f"{PROJ}.dora_scale", (32, 1))), ["DoRA"]),
    "LoHa": (written((f"{PROJ}.hada_w1_a", (32, 1)), keep=False), ["LoHa"]),
    "LoKr": (written((f"{PROJ}.lokr_w1", (32, 1)), keep=False), ["LoKr"]),
    "Flux": (written(("lora_unet_double_blocks_0_img_mlp_0.lora_down.weight", (2, 8)), keep=False), ["Flux"]),
    "no safetensors": (lambda path, _: path.write_bytes(b"PK\3\4" + bytes(90)), ["no safetensors file"]),
    "cut off": (
        lambda path, pipe: (written()(path, pipe), path.write_bytes(path.read_bytes()[:-9])),
        ["no safetensors file", "ends too early"],
    ),
    "missing": (lambda path, _: None, ["missing"]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_refusals_come_before_the_model_is_loaded(
    base: Path,
    tmp_path: Path,
    diffusers_pipe: StableDiffusionXLPipeline,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, told = WRONG[kind]
    path = tmp_path / "style.safetensors"
    write(path, diffusers_pipe)
    monkeypatch.delattr(loading, "load_checkpoint")
    text = refused(base, path)
    assert all(word in text for word in [*told, str(path), "loras[0].path"]), text


def test_a_single_file_is_looked_at_once_it_is_loaded(
    base: Path, tmp_path: Path, diffusers_pipe: StableDiffusionXLPipeline
) -> None:
    write_original_layout(diffusers_pipe, model := tmp_path / "model.safetensors")
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    products = write_lora(diffusers_pipe, good, lora_files.kohya)
    WRONG["a part of it fits"][0](bad, diffusers_pipe)
    changes = {name: ALPHA / RANK * each for name, each in products.items()}
    assert_changed(load(model, good, config=base).pipe, diffusers_pipe, changes)
    assert NOWHERE in refused(model, bad, config=base)


def test_numbers_that_are_not_finite(base: Path, tmp_path: Path, diffusers_pipe: StableDiffusionXLPipeline) -> None:
    path = tmp_path / "style.safetensors"
    write_lora(diffusers_pipe, path, lora_files.kohya)
    weights = load_file(path)
    weights[f"{PROJ}.lora_up.weight"][0, 0] = torch.nan
    save_file(weights, path)
    assert "not finite" in refused(base, path)


def test_pickles_are_refused_by_their_names(base: Path, tmp_path: Path) -> None:
    for suffix in ("bin", "pt", "ckpt", "pkl"):
        assert "pickle" in refused(base, f"somewhere/else.{suffix}")
        assert "pickle" in refused(base, f"https://127.0.0.1:9/else.{suffix}")
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"")
    assert "only pickles" in refused(base, tmp_path)


def test_what_cannot_be_a_lora() -> None:
    for weight in (float("nan"), float("inf"), True, "1"):
        with pytest.raises(InputError) as error:
            LoRA("a", weight)  # type: ignore[arg-type]
        assert error.value.problems[0].path == "weight"
    for path in ("", " ", "a\0b"):
        with pytest.raises(InputError) as error:
            LoRA(path)
        assert error.value.problems[0].path == "path"


def test_which_file_is_meant(base: Path, tmp_path: Path, diffusers_pipe: StableDiffusionXLPipeline) -> None:
    assert "bundled are" in refused(base, "miniature/no-such-style")
    assert "no .safetensors file" in refused(base, tmp_path)
    for name in ("one", "two"):
        write_lora(diffusers_pipe, tmp_path / f"{name}.safetensors", lora_files.kohya)
    assert "one.safetensors, two.safetensors" in refused(base, tmp_path)
    assert "LoRA(path" in refused(base, 5)


def test_urls_are_fetched_once(
    base: Path, tmp_path: Path, diffusers_pipe: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "style.safetensors"
    products = write_lora(diffusers_pipe, path, lora_files.kohya)
    files = fsspec.filesystem("memory")
    files.pipe("/loras/style.safetensors", path.read_bytes())
    url = "memory://loras/style.safetensors"
    changes = {name: ALPHA / RANK * each for name, each in products.items()}
    for _ in range(2):
        assert_changed(load(base, url).pipe, diffusers_pipe, changes)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    files.rm("/loras/style.safetensors")
    assert "could not be fetched" in refused(base, url)


def test_a_lora_in_half_precision(base: Path, tmp_path: Path, diffusers_pipe: StableDiffusionXLPipeline) -> None:
    path = tmp_path / "style.safetensors"
    write_lora(diffusers_pipe, path, lora_files.kohya)
    halves = {key: value.half() for key, value in load_file(path).items()}
    save_file(halves, path)
    weight = load(base, path).pipe.unet.up_blocks[0].attentions[0].proj_in.weight
    down, up = (halves[f"{PROJ}.lora_{name}.weight"].float() for name in ("down", "up"))
    wanted = diffusers_pipe.unet.up_blocks[0].attentions[0].proj_in.weight + ALPHA / RANK * up @ down
    assert weight.dtype == torch.float32 and torch.allclose(weight, wanted, atol=1e-5)


def test_a_bundled_lora_is_of_the_bundled_model() -> None:
    name = "miniature/distilled-8"
    assert name in bundled_loras()
    plain, loaded = (ConsiStoryPipeline.from_pretrained(loras=given, device="cpu") for given in ((), (name,)))
    before = plain.pipe.unet.state_dict()
    changed = [key for key, each in loaded.pipe.unet.state_dict().items() if not torch.equal(each, before[key])]
    assert len(changed) == len(load_file(adapter_file("loras", name) or "")) // 2
    assert loaded.fingerprint != plain.fingerprint
