"""Training of a small IP-Adapter (Ye et al. 2023) of the bundled model: the baseline that is trained once for everyone.

Pictures of an individual become a few tokens, which every cross-attention of the frozen UNet reads beside the text with
keys and values of their own. What sees the pictures is the second judge's identifier, frozen: it looks at the subject
cut out of them. It was trained to tell the world's individuals apart, as the first judge was that measures; so the
adapter is told, better than CLIP would tell it, what will be asked.

The training draws individuals in several places: two pictures of one are given, another one is denoised, and its
caption names only the kind and the place.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from consistory_ray.miniature.architecture import time_ids
from consistory_ray.miniature.judge import SECOND_WEIGHTS, Judge, cut_out, to_tensor
from consistory_ray.miniature.vocabulary import PICTURE_SIZE, SCENES, STYLES, NamedAttributes, caption
from consistory_ray.settings import model_revision
from training.controlnet import open_pipeline
from training.denoiser import Stage
from training.individuals import Identity, random_identity, random_placement
from training.lora import train_lora
from training.world import PictureSpec, draw

NAME = "ip_adapter"
INDIVIDUALS, BLOCK = 1000, 250
"""Who is drawn for the training, and how many of them lie in one file."""
VIEWS, TARGETS, GIVEN = 4, 2, 2
"""Pictures of each individual in different places; the first are denoised, with so many others given."""
TOKENS = 4
"""Of each given picture; diffusers reads four from files of this layout."""
FEATURES = 320
"""Numbers that the identifier makes of a subject before it names anything."""
DROPPED = 0.05
"""Share of the pictures that are denoised without their caption, without the given pictures, and without either."""
STAGE = Stage(NAME, pixels=PICTURE_SIZE, steps=800, batch=8, learning_rate=2e-3, final_rate=2e-5)
"""Of full size from the start: what was learned on half-size pictures, where that was tried, did not last."""


class Encoder:
    """What the adapter knows of a picture's subject.

    Args:
        judge: whose segmenter finds the subject and whose identifier looks at it.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """float32 ``[pictures, 320]``."""
        masks = np.stack([reading.foreground for reading in self.judge.read(pictures)])
        return self.judge.identifier.features(cut_out(to_tensor(pictures), torch.from_numpy(masks)))


class ImageAdapter(nn.Module):
    """The parts of an IP-Adapter on a UNet whose own weights stay as they are; it changes nothing at first.

    Args:
        pipe: diffusers' SDXL pipeline; takes the adapter up as ``load_ip_adapter`` does.
        seed: of the image projection. Keys start as those for the text, values at zero.
    """

    seconds: Tensor
    """Computing time of this process that the training has taken; float64 ``[]``, goes on from checkpoints."""

    def __init__(self, pipe: Any, seed: int = 7) -> None:
        super().__init__()
        pipe.unet.requires_grad_(False)
        attach(pipe, untrained(pipe.unet, seed))
        processors = pipe.unet.attn_processors.values()
        self.projection = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        self.layers = nn.ModuleList(one for one in processors if isinstance(one, IPAdapterAttnProcessor2_0))
        self.requires_grad_(True)
        self.register_buffer("seconds", torch.zeros((), dtype=torch.float64))

    @staticmethod
    def weights(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by their names in the file, float16.

        Args:
            values: by this module's parameter names.
        """
        found = {}
        for name, value in values.items():
            part, number, *rest = name.split(".")
            if part == "projection":
                key = f"image_proj.{'proj' if number == 'image_embeds' else number}.{rest[-1]}"
            else:
                key = f"ip_adapter.{2 * int(number) + 1}.{rest[0]}.weight"  # diffusers counts self-attentions too
            found[key] = value.detach().half().contiguous()
        return found


def untrained(unet: Any, seed: int) -> dict[str, dict[str, Tensor]]:
    """An adapter that adds nothing to the attention, in the two parts that ``load_ip_adapter`` takes."""
    width = unet.config.cross_attention_dim
    torch.manual_seed(seed)
    projection = nn.Linear(FEATURES, TOKENS * width)
    image = {"proj.weight": projection.weight.data, "proj.bias": projection.bias.data}
    image |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    layers: dict[str, Tensor] = {}
    for number, name in enumerate(names):
        attention = unet.get_submodule(name)
        layers[f"{2 * number + 1}.to_k_ip.weight"] = attention.to_k.weight.detach().clone()
        layers[f"{2 * number + 1}.to_v_ip.weight"] = torch.zeros_like(attention.to_v.weight)
    return {"image_proj": image, "ip_adapter": layers}


def attach(pipe: Any, weights: Path | dict[str, dict[str, Tensor]]) -> None:
    """Load an adapter, from a file or from its two parts, into a pipeline that has no encoder of images."""
    source, name = (str(weights.parent), weights.name) if isinstance(weights, Path) else (weights, "")
    pipe.load_ip_adapter(source, subfolder="", weight_name=name, image_encoder_folder=None, low_cpu_mem_usage=False)


class Individuals:
    """The drawn individuals: what the encoder sees in all of their pictures, and the latents of those to denoise.

    Args:
        folder: of their files, one for each block; what is absent is drawn.
        pipe: whose autoencoder is used.
        count: how many individuals.
    """

    def __init__(self, folder: Path, pipe: Any, count: int = INDIVIDUALS) -> None:
        self.folder, self.pipe, self.count = folder, pipe, count
        folder.mkdir(parents=True, exist_ok=True)
        files = [self._block(first) for first in range(0, count, BLOCK)]
        parts = [np.load(file) for file in files]
        self.seconds = float(sum(part["seconds"] for part in parts))
        self.arrays = {
            name: torch.from_numpy(np.concatenate([part[name] for part in parts])).float()
            for name in ("features", "latents")
        }

    def _block(self, first: int) -> Path:
        file = self.folder / f"{first:06d}-{min(first + BLOCK, self.count):06d}.npz"
        if not file.exists():
            started, rows = time.process_time(), range(first, min(first + BLOCK, self.count))
            arrays = [self._drawn(index) for index in rows]
            joined: dict[str, Any] = {name: np.stack([one[name] for one in arrays]) for name in arrays[0]}
            temporary = file.with_suffix(".tmp.npz")
            np.savez(temporary, seconds=time.process_time() - started, **joined)
            temporary.replace(file)
            print(f"drawn {rows[-1] + 1}/{self.count} individuals", flush=True)
        return file

    @cached_property
    def encoder(self) -> Encoder:
        """The frozen one."""
        return Encoder(Judge.load(SECOND_WEIGHTS))

    @torch.no_grad()
    def _drawn(self, index: int) -> dict[str, np.ndarray]:
        """``features`` ``[views, 320]`` and ``latents`` ``[targets, 4, h, w]``, float16."""
        who, places, rng = imagined(index)
        specs = [PictureSpec((who,), (random_placement(rng),), place, rng.randrange(2**31)) for place in places]
        pictures = [draw(spec).image for spec in specs]
        colours = to_tensor(pictures[:TARGETS])
        latents = self.pipe.vae.encode(colours).latent_dist.mode() * self.pipe.vae.config.scaling_factor
        return {"features": self.encoder(pictures).half().numpy(), "latents": latents.half().numpy()}


def imagined(index: int) -> tuple[Identity, list[str], random.Random]:
    """An individual, the places of its pictures, and what draws all else about them."""
    rng = random.Random(f"ip-adapter/{index}")
    return random_identity(rng), rng.sample(SCENES, VIEWS), rng


class AdapterTraining:
    """The frozen pipeline, the drawn individuals and the loss."""

    def __init__(self, pipe: Any, adapter: ImageAdapter, individuals: Individuals) -> None:
        self.pipe, self.adapter, self.individuals = pipe, adapter, individuals
        for model in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
            model.requires_grad_(False)
        self.text = lru_cache(None)(self._text)
        self.seen_at = time.process_time()

    @torch.no_grad()
    def _text(self, words: str) -> tuple[Tensor, Tensor]:
        context, _, pooled, _ = self.pipe.encode_prompt(words, device="cpu", do_classifier_free_guidance=False)
        return context, pooled

    def losses(self, seed: str, batch: int) -> Tensor:
        """The v-prediction loss of every picture of a batch; noisy steps, where colours are decided, are more."""
        now = time.process_time()
        self.adapter.seconds += now - self.seen_at
        self.seen_at = now
        rng = random.Random(seed)
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        latents, features, texts, keep = [], [], [], []
        for _ in range(batch):
            index, target = rng.randrange(self.individuals.count), rng.randrange(TARGETS)
            given = rng.sample([view for view in range(VIEWS) if view != target], GIVEN)
            who, places, _ = imagined(index)
            words = caption(rng.choice((*STYLES, "")), [who.kind], [NamedAttributes()], places[target])
            texts.append(self.text(words))
            latents.append(self.individuals.arrays["latents"][index, target])
            features.append(self.individuals.arrays["features"][index, given])
            dice = rng.random() / DROPPED
            keep.append((float(not 0 <= dice < 2), float(not 1 <= dice < 3)))  # text, image
        told, shown = torch.tensor(keep).T
        context = torch.cat([text[0] for text in texts]) * told.view(-1, 1, 1)
        added: dict[str, Any] = {"text_embeds": torch.cat([text[1] for text in texts]) * told.view(-1, 1)}
        added["time_ids"] = time_ids(batch)
        added["image_embeds"] = [torch.stack(features) * shown.view(-1, 1, 1)]
        clean = torch.stack(latents)
        steps = (torch.rand(batch, generator=generator).sqrt() * 999).long()
        noise = torch.randn(clean.shape, generator=generator)
        signal = self.pipe.scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        target_velocity = signal.sqrt() * noise - (1 - signal).sqrt() * clean
        output = self.pipe.unet(noisy, steps, context, added_cond_kwargs=added).sample
        return (output - target_velocity).square().mean((1, 2, 3))  # type: ignore[no-any-return]


def train_ip_adapter(
    rank: int, processes: int, folder: str, pipeline: str, stage: Stage = STAGE, count: int = INDIVIDUALS
) -> None:
    """One process of the training; resumes from ``folder/ip_adapter.pt``.

    Args:
        rank: of this process.
        processes: how many there are.
        folder: the run folder; the first process draws the individuals into it.
        pipeline: an exported pipeline folder.
        stage: of the training.
        count: of the individuals.
    """
    pipe = open_pipeline(pipeline)
    adapter = ImageAdapter(pipe)
    for drawing in (True, False):  # the first process draws, the others find the files
        if drawing == (rank == 0):
            individuals = Individuals(Path(folder, "individuals"), pipe, count)
        dist.barrier()
    adapter.seconds += individuals.seconds
    training = AdapterTraining(pipe, adapter, individuals)
    train_lora(rank, Path(folder, f"{stage.name}.pt"), adapter, training.losses, stage)  # type: ignore[arg-type]


def export_ip_adapter(run: Path, pipeline: Path, path: Path) -> None:
    """Write the checkpoint's averaged (EMA) weights as ``pipe.load_ip_adapter`` reads them, float16.

    Args:
        run: the run folder.
        pipeline: the folder it was trained against; the file says which weights that and the encoder are.
        path: of the file.
    """
    state = torch.load(run / f"{NAME}.pt", weights_only=True)
    made: dict[str, Any] = {"base_revision": model_revision(str(pipeline)), "encoder_sha256": encoder_sha256()}
    made |= {"training_steps": state["step"], "training_seconds": round(float(state["model"]["seconds"]))}
    made |= {"individuals": INDIVIDUALS, "given": GIVEN}
    notes = {name: value if isinstance(value, str) else json.dumps(value) for name, value in made.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(ImageAdapter.weights(state["ema"]["shadow"]), temporary, {"format": "pt"} | notes)
    temporary.chmod(0o644)
    temporary.replace(path)
    print(f"IP-Adapter at step {state['step']} written to {path}")


def encoder_sha256() -> str:
    """Of the weights of what sees the pictures."""
    return hashlib.sha256(SECOND_WEIGHTS.read_bytes()).hexdigest()


def notes_of(path: Path) -> dict[str, str]:
    """What an adapter's file says of how it was made."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata())
