"""LoRAs of the bundled model's UNet: made, trained, and written as diffusers loads them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from consistory_ray.miniature.architecture import build_unet
from consistory_ray.settings import model_revision
from training.checkpoints import Ema, restore, save_atomically, snapshot
from training.denoiser import Stage, TrainingAttention
from training.parallel import average

WARM_UP = 30
WEIGHT_DECAY = 1e-4


class LowRank(nn.Module):
    """A layer's weight with what a LoRA adds to it.

    Adding the product to the weight, and not its output to the layer's, makes training a quarter faster at this size.
    """

    def __init__(self, layer: nn.Module, rank: int) -> None:
        super().__init__()
        weight = layer.get_parameter("weight")
        outputs, inputs, *kernel = weight.shape
        self.lora_A = nn.Parameter(torch.empty(rank, inputs, *kernel))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, *(1 for _ in kernel)))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)  # as peft starts

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The whole weight."""
        return weight + (self.lora_B.flatten(1) @ self.lora_A.flatten(1)).view_as(weight)


class Adapter(nn.Module):
    """The matrices of a new LoRA on a UNet whose own weights stay as they are; it changes nothing at first.

    Args:
        unet: diffusers' UNet; takes the LoRA up, in every linear layer and convolution.
        rank: of the LoRA; its scale is 1.
        seed: of the matrices that do not start at zero.
    """

    def __init__(self, unet: Any, rank: int, seed: int = 7) -> None:
        super().__init__()
        torch.manual_seed(seed)
        unet.requires_grad_(False)
        unet.set_attn_processor({name: TrainingAttention(None) for name in unet.attn_processors})
        layers = {name: layer for name, layer in unet.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
        added = [LowRank(layer, rank) for layer in layers.values()]
        for layer, low_rank in zip(layers.values(), added, strict=True):
            parametrize.register_parametrization(layer, "weight", low_rank)
        self.names = [f"{name}.{half}.weight" for name in layers for half in ("lora_A", "lora_B")]
        self.matrices = nn.ParameterList(matrix for pair in added for matrix in (pair.lora_A, pair.lora_B))

    @torch.no_grad()
    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take up the matrices of a LoRA of the same layers and rank, by their names in the file."""
        for name, value in zip(self.names, self.matrices, strict=True):
            value.copy_(weights[f"unet.{name}"])

    def weights(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Matrices by their names in the file, float16.

        Args:
            values: by this module's parameter names, as a checkpoint's moving average has them.
        """
        numbered = [values[f"matrices.{index}"] for index in range(len(self.names))]
        halves = [value.detach().half().contiguous() for value in numbered]
        return {f"unet.{name}": value for name, value in zip(self.names, halves, strict=True)}


def write_lora(weights: Mapping[str, torch.Tensor], made: Mapping[str, Any], path: Path) -> None:
    """Write a LoRA as ``pipe.load_lora_weights`` reads it.

    Args:
        weights: as :meth:`Adapter.weights` gives them.
        made: what it was made with: the file's metadata, each value as JSON.
        path: of the safetensors file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    notes = {name: value if isinstance(value, str) else json.dumps(value) for name, value in made.items()}
    save_file(dict(weights), temporary, {"format": "pt"} | notes)
    temporary.chmod(0o644)
    temporary.replace(path)


def export_lora(checkpoint: Path, pipeline: Path, rank: int, made: Mapping[str, Any], folder: Path) -> Path:
    """Write a checkpoint's averaged (EMA) matrices as ``folder/<name of the checkpoint>.safetensors``.

    Args:
        checkpoint: of :func:`train_lora`.
        pipeline: the folder it was trained against; the file says which weights that holds.
        rank: of the LoRA.
        made: what else the file says of how it was made.
        folder: to write into.
    """
    state = torch.load(checkpoint, weights_only=True)
    notes = {"base_revision": model_revision(str(pipeline)), "rank": rank, "training_steps": state["step"], **made}
    path = folder / f"{checkpoint.stem}.safetensors"
    write_lora(Adapter(build_unet(), rank).weights(state["ema"]["shadow"]), notes, path)
    print(f"{checkpoint.name} at step {state['step']} written to {path}")
    return path


def train_lora(
    rank: int,
    checkpoint: Path,
    adapter: Adapter,
    losses: Callable[[str, int], torch.Tensor],
    stage: Stage,
    told: Callable[[], str] = lambda: "",
    report: int = 50,
) -> None:
    """One process of the training of a LoRA; resumes from ``checkpoint``.

    Args:
        rank: of this process.
        checkpoint: written after every ``report`` steps.
        adapter: trained.
        losses: of each picture of a batch, from the batch's name and size.
        stage: of the training; the learning rate falls along a line.
        told: what else to say in a report.
        report: progress is printed after so many steps.
    """
    optimizer = torch.optim.AdamW(adapter.parameters(), betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY)
    ema = Ema(adapter, 0.99)
    first = restore(checkpoint, adapter, optimizer, ema)
    dist.barrier()
    started, seen = time.time(), []
    for step in range(first, stage.steps):
        rate = stage.final_rate + (stage.learning_rate - stage.final_rate) * (1 - step / stage.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / WARM_UP)
        found = losses(f"{rank}/{step}", stage.batch)
        optimizer.zero_grad()
        found.mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 5 == 0:
            average(adapter.parameters())
        ema.update(adapter)
        seen.append(float(found.detach().mean()))
        if rank == 0 and ((step + 1) % report == 0 or step + 1 == stage.steps):
            save_atomically(snapshot(step + 1, adapter, optimizer, ema), checkpoint)
            print(
                f"{stage.name} {step + 1}/{stage.steps} loss {sum(seen) / len(seen):.4f} {told()} lr {rate:.1e} "
                f"{time.time() - started:.0f} s",
                flush=True,
            )
            seen.clear()
    dist.barrier()
