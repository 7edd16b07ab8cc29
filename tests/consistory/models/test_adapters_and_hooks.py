"""What users do to a pipeline between calls: LoRAs are scaled and switched off, weights are offloaded, hooks added."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import StableDiffusionXLPipeline
from diffusers.hooks import HookRegistry, apply_group_offloading
from diffusers.hooks import ModelHook as DiffusersHook
from peft import IA3Config, LoraConfig

from consistory_ray.consistory import ConsiStoryPipeline, SubjectResult
from consistory_ray.errors import CacheMismatchError, CheckpointError
from consistory_ray.settings import MethodSettings
from tests.consistory.conftest import make_diffusers_pipeline

FEW = MethodSettings(num_inference_steps=3, freeu=None)
PROMPTS = ["a cat in the garden", "a cat on the beach"]


@pytest.fixture
def model(tmp_path: Path) -> StableDiffusionXLPipeline:
    return make_diffusers_pipeline(tmp_path)


def made(pipe: ConsiStoryPipeline) -> SubjectResult:
    return pipe.create_subject(PROMPTS, "cat", [1, 2], settings=FEW, output_type="latent")


def add_lora(model: Any, part: str = "unet", name: str = "style", **options: Any) -> None:
    """A LoRA with random weights, as PEFT makes it."""
    network = getattr(model, part)
    targets = ["q_proj", "v_proj"] if part.startswith("text") else ["to_q", "to_v", "to_out.0"]
    config = LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False, **options)
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        network.add_adapter(config, adapter_name=name)
    network.eval()


CHANGES: dict[str, Callable[[Any], object]] = {
    "scale": lambda model: model.set_adapters(["style"], [0.3]),
    "switched off": lambda model: model.disable_lora(),
    "the unet's switched off": lambda model: model.unet.disable_adapters(),
    "scale of a layer": lambda model: next(
        part for part in model.unet.modules() if hasattr(part, "merged_adapters")
    ).set_scale("style", 0.5),
    "merged": lambda model: model.fuse_lora(),
    "merged at a scale": lambda model: model.fuse_lora(lora_scale=0.5),
    "another one on top": lambda model: add_lora(model, name="second"),
    "one of the text encoder": lambda model: add_lora(model, "text_encoder"),
    "removed": lambda model: model.unload_lora_weights(),
}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.parametrize(
    ("change", "held"), [*((change, False) for change in CHANGES), ("scale", True), ("switched off", True)]
)
def test_caches_belong_to_what_adapters_do(model: StableDiffusionXLPipeline, change: str, held: bool) -> None:
    add_lora(model)
    pipe = ConsiStoryPipeline(model)
    if held:
        pipe.hold_fingerprint()
    subject = made(pipe)
    pipe.render(PROMPTS[:1], subject, [3])
    before = pipe.fingerprint
    CHANGES[change](model)
    assert pipe.fingerprint != before
    with pytest.raises(CacheMismatchError, match="another model"):
        pipe.render(PROMPTS[:1], subject, [3])


@pytest.mark.parametrize("held", [False, True])
def test_what_was_merged_and_let_go_still_counts(tmp_path: Path, held: bool) -> None:
    """So small a change turns no sign among those that are looked at."""
    found = set()
    for scale in (1.0, 0.9):
        model = make_diffusers_pipeline(tmp_path / str(scale))
        pipe = ConsiStoryPipeline(model)
        if held:
            pipe.hold_fingerprint()
        found.add(pipe.fingerprint)
        add_lora(model)
        with torch.no_grad():
            for name, weight in model.unet.named_parameters():
                if "lora_B" in name:
                    weight.mul_(1e-6)
        model.fuse_lora(lora_scale=scale)
        model.unload_lora_weights()
        found.add(pipe.fingerprint)
    assert len(found) == 3


def test_another_adapter_in_ones_place_is_seen_while_held(model: StableDiffusionXLPipeline) -> None:
    add_lora(model, name="style")
    pipe = ConsiStoryPipeline(model)
    pipe.hold_fingerprint()
    before = pipe.fingerprint
    model.unload_lora_weights()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        targets = ["to_q", "to_v", "to_out.0"]
        config = LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False)
        model.unet.add_adapter(config, adapter_name="style")
    model.unet.eval()
    assert pipe.fingerprint != before


def test_what_is_put_back_has_its_old_fingerprint(model: StableDiffusionXLPipeline) -> None:
    plain = ConsiStoryPipeline(model).fingerprint
    add_lora(model)
    pipe = ConsiStoryPipeline(model)
    first = pipe.fingerprint
    model.set_adapters(["style"], [0.3])
    second = pipe.fingerprint
    model.set_adapters(["style"], [1.0])
    assert pipe.fingerprint == first and len({plain, first, second}) == 3
    model.unload_lora_weights()
    assert pipe.fingerprint == plain


@pytest.mark.parametrize("option", ["use_dora", "use_rslora"])
def test_kinds_of_lora_differ(tmp_path: Path, option: str) -> None:
    found = set()
    for number, options in enumerate(({}, {option: True})):
        model = make_diffusers_pipeline(tmp_path / str(number))
        add_lora(model, **options)
        found.add(ConsiStoryPipeline(model).fingerprint)
    assert len(found) == 2


def test_other_adapters_of_peft_count_too(model: StableDiffusionXLPipeline) -> None:
    config = IA3Config(target_modules=["to_k", "to_v"], feedforward_modules=[], init_ia3_weights=False)
    model.unet.add_adapter(config, adapter_name="style")
    model.unet.eval()
    pipe = ConsiStoryPipeline(model)
    before = pipe.fingerprint
    model.unet.disable_adapters()
    assert pipe.fingerprint != before


def test_the_strength_of_adapters_counts_where_no_sign_changes(tmp_path: Path) -> None:
    """A slider's files differ in strength alone, and DoRA's and IA3's vectors are all positive."""
    found = set()
    for number, (kind, factor) in enumerate((("lora_B", 1.0), ("lora_B", 0.3), ("lora_magnitude_vector", 1.1))):
        model = make_diffusers_pipeline(tmp_path / str(number))
        add_lora(model, use_dora=True)
        with torch.no_grad():
            for name, weight in model.unet.named_parameters():
                if kind in name:
                    weight.mul_(factor)
        found.add(ConsiStoryPipeline(model).fingerprint)
    assert len(found) == 3


def test_how_the_empty_prompt_is_encoded_counts(model: StableDiffusionXLPipeline) -> None:
    """SDXL base takes zeros; the pictures of the unconditional half differ."""
    pipe = ConsiStoryPipeline(model)
    before = pipe.fingerprint
    model.register_to_config(force_zeros_for_empty_prompt=False)
    assert pipe.fingerprint != before


def test_in_another_dtype_adapters_are_the_same(model: StableDiffusionXLPipeline) -> None:
    add_lora(model)
    before = ConsiStoryPipeline(model).fingerprint
    assert ConsiStoryPipeline(model.to(torch.bfloat16)).fingerprint == before


def test_a_held_fingerprint_costs_next_to_nothing(model: StableDiffusionXLPipeline) -> None:
    pipe = ConsiStoryPipeline(model)
    looked: list[int] = []
    state_dict = model.unet.state_dict
    model.unet.state_dict = lambda *given, **more: (looked.append(1), state_dict(*given, **more))[1]
    expected = pipe.fingerprint
    pipe.hold_fingerprint()
    looked.clear()
    started = time.process_time()
    assert all(pipe.fingerprint == expected for _ in range(10)) and looked == []
    assert time.process_time() - started < 1


# Hooks ----------------------------------------------------------------------------------------------------------------


class Watching(ModelHook):
    """An offloading hook of accelerate that only counts."""

    def __init__(self) -> None:
        self.before = self.after = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.before += 1
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        self.after += 1
        return output


class WatchingDiffusers(DiffusersHook):
    """The same of diffusers."""

    before = after = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.before += 1
        return args, kwargs

    def post_forward(self, module: Any, output: Any) -> Any:
        self.after += 1
        return output


@pytest.mark.parametrize("kind", ["accelerate", "diffusers"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_around_the_unet_are_called(model: StableDiffusionXLPipeline, kind: str, when: str) -> None:
    expected = made(ConsiStoryPipeline(model)).images
    pipe = ConsiStoryPipeline(model) if when == "after" else None
    hook: Any = Watching() if kind == "accelerate" else WatchingDiffusers()
    if kind == "accelerate":
        add_hook_to_module(model.unet, hook)
    else:
        HookRegistry.check_if_exists_or_initialize(model.unet).register_hook(hook, "watching")
    pipe = pipe or ConsiStoryPipeline(model)
    subject = made(pipe)
    assert hook.before == hook.after == 3 + 3, "of every step of both passes"
    assert torch.equal(subject.images, expected)
    pipe.render(PROMPTS[:1], subject, [3])
    pipe.render_vanilla(PROMPTS[:1], [3], settings=FEW)
    assert hook.before == hook.after == 6 + 6 + 3


OFFLOADING: dict[str, Callable[[Any], object]] = {
    "model": lambda model: model.enable_model_cpu_offload(device="cpu"),
    "groups of blocks": lambda model: apply_group_offloading(
        model.unet, torch.device("cpu"), torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    ),
    "leaves": lambda model: apply_group_offloading(
        model.unet, torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level"
    ),
}


@pytest.mark.parametrize("kind", OFFLOADING)
def test_offloading_changes_no_picture(model: StableDiffusionXLPipeline, kind: str) -> None:
    pipe = ConsiStoryPipeline(model)
    subject, fingerprint = made(pipe), pipe.fingerprint
    scene = pipe.render(PROMPTS[:1], subject, [3], output_type="np").images
    OFFLOADING[kind](model)
    assert pipe.fingerprint == fingerprint and pipe.device.type == "cpu"
    assert torch.equal(made(pipe).images, subject.images)
    for _ in range(2):
        assert (pipe.render(PROMPTS[:1], subject, [3], output_type="np").images == scene).all()


def test_the_fingerprint_sees_weights_that_are_put_away(model: StableDiffusionXLPipeline) -> None:
    """Rendering this way needs a GPU: accelerate cannot offload from the CPU to the CPU."""
    add_lora(model)
    pipe = ConsiStoryPipeline(model)
    fingerprint = pipe.fingerprint
    model.enable_sequential_cpu_offload(device="cpu")
    assert model.unet.conv_in.weight.is_meta
    assert pipe.fingerprint == fingerprint and pipe.device.type == "cpu"


class Replacing(DiffusersHook):
    """As diffusers' step caches have it."""

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        return self.fn_ref.original_forward(*args, **kwargs)


def replace_forward(unet: Any) -> None:
    forward = unet.forward
    unet.forward = lambda *args, **kwargs: forward(*args, **kwargs)


BYPASSED: dict[str, tuple[Callable[[Any], object], str]] = {
    "forward hook": (lambda unet: unet.register_forward_hook(lambda *_: None), "_forward_hooks"),
    "forward hook with kwargs": (
        lambda unet: unet.register_forward_hook(lambda *_: None, with_kwargs=True),
        "_forward_hooks",
    ),
    "pre-hook": (lambda unet: unet.register_forward_pre_hook(lambda *_: None), "_forward_pre_hooks"),
    "replaced forward": (replace_forward, "bypassed"),
    "replacing hook": (
        lambda unet: HookRegistry.check_if_exists_or_initialize(unet).register_hook(Replacing(), "cache"),
        "Replacing",
    ),
    "IP-Adapter": (lambda unet: unet.register_to_config(encoder_hid_dim_type="ip_image_proj"), "IP-Adapter"),
    "inpainting": (lambda unet: unet.register_to_config(in_channels=9), "inpainting"),
}


@pytest.mark.parametrize("what", BYPASSED)
def test_what_would_be_bypassed_is_refused_at_each_call(model: StableDiffusionXLPipeline, what: str) -> None:
    pipe = ConsiStoryPipeline(model)
    subject = made(pipe)
    change, named = BYPASSED[what]
    change(model.unet)
    for call in (
        lambda: ConsiStoryPipeline(model),
        lambda: made(pipe),
        lambda: pipe.render(PROMPTS[:1], subject, [3]),
        lambda: pipe.render_vanilla(PROMPTS[:1], [3], settings=FEW),
    ):
        with pytest.raises(CheckpointError, match=named):
            call()


def test_hooks_that_are_gone_leave_nothing_behind(model: StableDiffusionXLPipeline) -> None:
    expected = made(ConsiStoryPipeline(model)).images
    model.enable_model_cpu_offload(device="cpu")
    pipe = ConsiStoryPipeline(model)
    made(pipe)
    model.remove_all_hooks()
    registry = HookRegistry.check_if_exists_or_initialize(model.unet)
    registry.register_hook(WatchingDiffusers(), "watching")
    registry.remove_hook("watching")
    handle = model.unet.register_forward_hook(lambda *_: None)
    handle.remove()
    assert torch.equal(made(pipe).images, expected)


def test_hooks_on_parts_of_the_unet_run(model: StableDiffusionXLPipeline) -> None:
    calls: list[int] = []
    handle = model.unet.mid_block.register_forward_hook(lambda *_: calls.append(1))
    ConsiStoryPipeline(model).render_vanilla(PROMPTS[:1], [3], settings=FEW)
    handle.remove()
    assert len(calls) == 3
