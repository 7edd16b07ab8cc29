"""Reproduce the bundled model: ``python -m training.train all --run FOLDER`` in the repository's root.

The stages, each resumable by running the same command again (checkpoints lie in the run folder):

    draw          pictures with captions and masks by :mod:`training.world`
    autoencoder   AutoencoderKL on crops, then whitening of its latents
    encode        latents of all pictures, of half and of full size
    denoiser      UNet and text encoders: first on half-size pictures, then at full size
    decoder       more training of the decoder alone; the latents stay as they are
    judge         the classifier and segmenter that measures pictures
    second-judge  another one of other seeds, for gates (no other stage is needed)
    export        everything as a diffusers pipeline folder, bfloat16 safetensors
    controlnet    a ControlNet of the exported pipeline (no other stage is needed), float16 safetensors
    paths         the exported pipeline's guided sampling paths (no other stage is needed)
    distil        LoRAs with which it takes 8 and 4 steps, from the paths, float16 safetensors
    style         a LoRA of a style (no other stage is needed), float16 safetensors
    ip-adapter    an IP-Adapter to compare with (needs the second judge), float16 safetensors

The seeds are fixed, but averaging over processes makes runs equal only up to rounding.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from consistory_ray.miniature.architecture import assemble, build_tokenizer
from consistory_ray.miniature.judge import SECOND_WEIGHTS
from consistory_ray.miniature.judge import WEIGHTS as JUDGE_WEIGHTS
from training.autoencoder import encode, train_autoencoder, trained_autoencoder
from training.controlnet import export_controlnet, open_pipeline, train_controlnet
from training.dataset import TRAIN_SEED, draw_pictures, open_pictures
from training.denoiser import Denoiser, Stage, train_stage
from training.distillation import PATHS, Sampler, export_student, sample_paths, train_student
from training.distillation import STAGES as STUDENTS
from training.ip_adapter import export_ip_adapter, train_ip_adapter
from training.judge import SECOND_SEED, train_judge
from training.parallel import launch
from training.style import export_style, train_style

PICTURES = 48_000
AUTOENCODER_STEPS, DECODER_STEPS, JUDGE_STEPS = 2000, 6000, 6000
STAGES = (
    Stage("half", pixels=64, steps=1000, batch=32, learning_rate=1.5e-3, final_rate=1e-3),
    Stage("full", pixels=128, steps=5600, batch=32, learning_rate=1e-3, final_rate=2e-5),
)
WEIGHTS = JUDGE_WEIGHTS.parent / "weights"
CONTROLNET = JUDGE_WEIGHTS.parent / "controlnet"
LORAS = JUDGE_WEIGHTS.parent / "loras"
IP_ADAPTER = Path(__file__).parents[1] / "benchmarks" / "paper" / "ip_adapter.safetensors"


def stage_draw(run: Path, options: argparse.Namespace) -> None:
    """Draw the training pictures."""
    draw_pictures(run / "pictures", options.pictures, TRAIN_SEED, options.processes)


def stage_autoencoder(run: Path, options: argparse.Namespace) -> None:
    """Train the autoencoder."""
    launch(train_autoencoder, options.processes, str(run), options.autoencoder_steps, 2e-3)


def stage_decoder(run: Path, options: argparse.Namespace) -> None:
    """Train the decoder further."""
    launch(train_autoencoder, options.processes, str(run), options.decoder_steps, 1e-3, True)


def stage_encode(run: Path, options: argparse.Namespace) -> None:
    """Encode all pictures at half and full size."""
    for size in [options.latent_size] if options.latent_size else (16, 32):
        encode_all(run, size)


def encode_all(run: Path, size: int) -> None:
    """Write ``latents-<size>.npy``, float16 ``[N, 4, size, size]``."""
    path = run / f"latents-{size}.npy"
    if path.exists():
        return
    vae = trained_autoencoder(run)
    images = open_pictures(run / "pictures").images[:PICTURES]
    latents = np.empty((len(images), 4, size, size), np.float16)
    for first in range(0, len(images), 32):
        block = images[first : first + 32]
        if size == 16:
            block = block.reshape(len(block), 64, 2, 64, 2, 3).mean((2, 4)).round().astype(np.uint8)
        latents[first : first + 32] = encode(vae, block).numpy()
        if first % 6400 == 0:
            print(f"encoded {first}/{len(images)} at {size}", flush=True)
    np.save(path.with_suffix(".tmp.npy"), latents)
    path.with_suffix(".tmp.npy").replace(path)


def stage_denoiser(run: Path, options: argparse.Namespace) -> None:
    """Train UNet and text encoders through all stages."""
    before = options.warm_start
    for stage in STAGES:
        if options.only_stage not in (None, stage.name):
            before = str(run / f"{stage.name}.pt")
            continue
        launch(train_stage, options.processes, str(run), stage, before)
        before = str(run / f"{stage.name}.pt")


def stage_judge(run: Path, options: argparse.Namespace) -> None:
    """Train the judge."""
    train_judge(run, options.judge_steps)


def stage_second_judge(run: Path, options: argparse.Namespace) -> None:
    """Train the judge of gates."""
    train_judge(run, options.judge_steps, SECOND_WEIGHTS, SECOND_SEED)


def stage_export(run: Path, options: argparse.Namespace) -> None:
    """Write the pipeline folder from the newest checkpoints, with averaged (EMA) weights."""
    newest = next(run / f"{stage.name}.pt" for stage in reversed(STAGES) if (run / f"{stage.name}.pt").exists())
    export(run, newest, Path(options.out))


def export(run: Path, checkpoint: Path, out: Path) -> None:
    """Write one checkpoint as a diffusers pipeline folder in bfloat16."""
    model = Denoiser(run)
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict({**state["model"], **state["ema"]["shadow"]})
    vae = trained_autoencoder(run)
    tokenizer = build_tokenizer(run / "tokenizer")
    model.unet.set_attn_processor(AttnProcessor2_0())  # type: ignore[no-untyped-call]
    pipeline = assemble(vae, model.unet, (model.text_encoder, model.text_encoder_2), tokenizer)
    pipeline.to(torch.bfloat16).save_pretrained(out, safe_serialization=True)
    print(f"{checkpoint.name} at step {state['step']} written to {out}")


def stage_controlnet(run: Path, options: argparse.Namespace) -> None:
    """Train a ControlNet of the exported pipeline, and write it."""
    launch(train_controlnet, options.processes, str(run), options.out)
    export_controlnet(run, Path(options.out), Path(options.controlnet_out))


def stage_paths(run: Path, options: argparse.Namespace) -> None:
    """Sample the teacher's paths."""
    torch.set_num_threads(1)
    sample_paths(run, Sampler(open_pipeline(options.out)), options.paths)


def stage_distil(run: Path, options: argparse.Namespace) -> None:
    """Train the students, the one with more steps first, and write them."""
    for steps in STUDENTS:
        launch(train_student, options.processes, str(run), options.out, steps)
        export_student(run, Path(options.out), steps, Path(options.loras_out))


def stage_style(run: Path, options: argparse.Namespace) -> None:
    """Train the LoRA of a style, and write it."""
    launch(train_style, options.processes, str(run), options.out)
    export_style(run, Path(options.out), Path(options.loras_out))


def stage_ip_adapter(run: Path, options: argparse.Namespace) -> None:
    """Train the IP-Adapter, and write it."""
    launch(train_ip_adapter, options.processes, str(run), options.out)
    export_ip_adapter(run, Path(options.out), Path(options.ip_adapter_out))


COMMANDS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "draw": stage_draw,
    "autoencoder": stage_autoencoder,
    "encode": stage_encode,
    "denoiser": stage_denoiser,
    "decoder": stage_decoder,
    "judge": stage_judge,
    "second-judge": stage_second_judge,
    "export": stage_export,
    "controlnet": stage_controlnet,
    "paths": stage_paths,
    "distil": stage_distil,
    "style": stage_style,
    "ip-adapter": stage_ip_adapter,
}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*COMMANDS, "all"])
    parser.add_argument(
        "--run", type=Path, required=True, help="folder for pictures, latents and checkpoints (about 4 GB)"
    )
    parser.add_argument("--out", default=str(WEIGHTS), help="where export writes the pipeline folder")
    parser.add_argument("--controlnet-out", default=str(CONTROLNET), help="where controlnet writes its folder")
    parser.add_argument("--loras-out", default=str(LORAS), help="where distil and style write their files")
    parser.add_argument("--ip-adapter-out", default=str(IP_ADAPTER), help="where ip-adapter writes its file")
    parser.add_argument("--warm-start", help="an exported pipeline folder to start the denoiser from")
    parser.add_argument("--processes", type=int, default=2, help="one-thread training processes")
    parser.add_argument("--latent-size", type=int, choices=(16, 32), help="encode only this size")
    parser.add_argument("--only-stage", choices=[stage.name for stage in STAGES], help="train only this denoiser stage")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--autoencoder-steps", type=int, default=AUTOENCODER_STEPS)
    parser.add_argument("--decoder-steps", type=int, default=DECODER_STEPS)
    parser.add_argument("--paths", type=int, default=PATHS)
    parser.add_argument("--judge-steps", type=int, default=JUDGE_STEPS)
    options = parser.parse_args()
    options.run.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS if options.stage == "all" else [options.stage]:
        COMMANDS[name](options.run, options)


if __name__ == "__main__":
    main()
