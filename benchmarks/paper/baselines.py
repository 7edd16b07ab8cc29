"""Other ways to a subject, what it costs and how consistent it then is: baselines on the very anchors of the method."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from sys import stderr
from typing import Any

import numpy as np

from benchmarks.consistency import rounded
from benchmarks.model_options import say, synchronise
from benchmarks.paper.bench import Bench
from benchmarks.paper.ip_adapter import ImagePrompts, adapted_scenes
from benchmarks.paper.per_subject import RANK, RATES, TOKEN, PerSubject, learn_lora, learn_word
from benchmarks.paper.plots import variants_sheet
from consistory_ray.adapters.names import Embedding, LoRA
from consistory_ray.consistory import ConsiStoryPipeline
from consistory_ray.doctor.flops import count_flops
from consistory_ray.evaluation.bootstrap import mean_interval
from consistory_ray.evaluation.evidence import Way as Measured
from consistory_ray.evaluation.prompts import SubjectPrompts
from consistory_ray.evaluation.rendering import PictureStore, Rendered, stacked

BUDGETS = (50, 200)
BATCH = 2


@dataclass
class Way:
    """One way to a subject, for all subjects.

    Attributes:
        pictures: the scenes of each.
        seconds: until the first scene could be rendered, for each; a training that was stopped and goes on tells those
            of its last part.
        flops: for the same, of one subject.
        training_seconds: of what was trained once for all subjects, which ``seconds`` do not count.
    """

    pictures: list[list[Rendered]]
    seconds: list[float]
    flops: list[float]
    training_seconds: float | None = None


def baselines(bench: Bench) -> dict[str, Any]:
    """ConsiStory, IP-Adapter, Textual Inversion, DreamBooth-LoRA: likeness to the anchors and among scenes, and cost.

    All are given the same two anchors: to the method they are its anchors, to the IP-Adapter given pictures, to the
    others training pictures. Scenes have the same words and seeds; only Textual Inversion's say the new word in the
    place of the kind.
    """
    made = [bench.renderer().subject(subject) for subject in bench.subjects]
    anchors = [own for own, _ in made]
    ways = {"vanilla": Way(bench.vanilla, [], []), "consistory": Way([scenes for _, scenes in made], [], [])}
    ways["consistory"].seconds, ways["consistory"].flops = _cost_of_anchors(bench)
    adapter = ImagePrompts(device=bench.pipeline.device, dtype=_dtype(bench))
    for scale in bench.options.scales:
        say(f"ip adapter, scale {scale:g}")
        ways[f"ip adapter, scale {scale:g}"] = _adapted(bench, anchors, adapter, scale)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(bench.options.cache or temporary) / "baselines"
        for steps in bench.options.budgets:
            for name, learn in (("textual inversion", _word), ("dreambooth lora", _lora)):
                say(f"{name}, {steps} steps")
                ways[f"{name}, {steps} steps"] = _trained(bench, anchors, name, steps, learn, folder)
    measured = {name: bench.measured(way.pictures) for name, way in ways.items()}
    variants = {name: _numbers(bench, way, measured[name], anchors) for name, way in ways.items()}
    report = {"variants": variants, "rows": bench.rows(measured), "batch": BATCH, "rank": RANK, "learning_rates": RATES}
    report["ip_adapter"] = {"sha256": adapter.sha256, **adapter.notes}
    report["time_to_a_consistent_subject"] = consistent = _first_as_good(variants)
    bench.write("baselines", report, variants_sheet(bench, {name: way.pictures for name, way in ways.items()}))
    keys = (
        "identity_gap_ratio",
        "hard_attribute_ratio",
        "to_anchors",
        "seconds",
        "training_seconds",
        "layout_diversity_ratio",
        "scene_accuracy",
    )
    told = {name: {key: numbers[key] for key in keys if key in numbers} for name, numbers in variants.items()}
    return {**told, "time_to_a_consistent_subject": consistent}


Learn = Callable[[PerSubject, SubjectPrompts, int, Path], Path]


def _word(pictures: PerSubject, subject: SubjectPrompts, steps: int, folder: Path) -> Path:
    return learn_word(pictures, subject.kind, steps, BATCH, folder)


def _lora(pictures: PerSubject, subject: SubjectPrompts, steps: int, folder: Path) -> Path:
    return learn_lora(pictures, steps, BATCH, folder)


def _trained(bench: Bench, anchors: list[list[Rendered]], name: str, steps: int, learn: Learn, folder: Path) -> Way:
    """Every subject trained on its anchors, and its scenes."""
    way = Way([], [], [])
    for subject, own in zip(bench.subjects, anchors, strict=True):
        place = folder / f"{name}-{steps}-{subject.kind}-{subject.anchor_seeds[0]}".replace(" ", "-")
        file, spent = place / "done.safetensors", place / "seconds.txt"
        pictures = [one.image for one in own]
        if not file.exists():
            started = _clock(bench)
            with redirect_stdout(stderr):
                made = learn(PerSubject(pictures, subject.anchors), subject, steps, place)
            spent.write_text(f"{_clock(bench) - started}")
            made.rename(file)
        way.seconds.append(float(spent.read_text()))
        way.pictures.append(_scenes(bench, subject, name, file))
    with count_flops() as counter:
        PerSubject([one.image for one in anchors[0]], bench.subjects[0].anchors).losses("0", BATCH)
    way.flops = [3.0 * counter.get_total_flops() * steps]  # backward is about two forwards
    return way


def _adapted(bench: Bench, anchors: list[list[Rendered]], adapter: ImagePrompts, scale: float) -> Way:
    """Every subject's anchors shown to the IP-Adapter, and its scenes."""
    way = Way([], [], [], float(adapter.notes["training_seconds"]))
    for subject, own in zip(bench.subjects, anchors, strict=True):
        pictures = [one.image for one in own]
        started = _clock(bench)
        embedded = adapter.embedded(pictures)
        way.seconds.append(_clock(bench) - started)
        way.pictures.append(adapted_scenes(bench, adapter, subject, embedded, scale))
    with count_flops() as counter:
        adapter.embedded([one.image for one in anchors[0]])
    way.flops = [float(counter.get_total_flops())]
    return way


def _scenes(bench: Bench, subject: SubjectPrompts, name: str, file: Path) -> list[Rendered]:
    """A trained subject's scenes, rendered as vanilla pictures by the model that has the file loaded."""
    concept, loaded = subject.kind, dict[str, Any](loras=[LoRA(str(file))])
    if name == "textual inversion":
        concept, loaded = TOKEN, {"embeddings": [Embedding(str(file), TOKEN)]}
    pipeline = ConsiStoryPipeline.from_pretrained(
        bench.options.model, torch_dtype=_dtype(bench), device=bench.pipeline.device, **loaded
    )
    prompts = [prompt.replace(subject.kind, concept) for prompt in subject.prompts]
    return bench.renderer(pipeline).vanilla(prompts, subject.seeds, [concept])


def _dtype(bench: Bench) -> Any:
    unet: Any = bench.pipeline.pipe.unet
    return unet.dtype


def _cost_of_anchors(bench: Bench) -> tuple[list[float], list[float]]:
    """Seconds and FLOPs of making one subject, the first one, without a store."""
    renderer, bare = bench.renderer(), dataclasses.replace(bench.subjects[0], prompts=(), seeds=(), scenes=())
    renderer.store = PictureStore(None, bench.pipeline.fingerprint)
    started = _clock(bench)
    renderer.subject(bare)
    seconds = _clock(bench) - started
    with count_flops() as counter:
        renderer.subject(bare)
    return [seconds], [float(counter.get_total_flops())]


def _clock(bench: Bench) -> float:
    """Seconds: on a CPU those that this process computed, whatever else the machine does."""
    if bench.pipeline.device.type == "cpu":
        return time.process_time()
    synchronise(bench.pipeline.device)
    return time.monotonic()


def _numbers(bench: Bench, way: Way, measured: Measured, anchors: list[list[Rendered]]) -> dict[str, Any]:
    """Consistency among scenes and with the anchors, and cost."""
    likeness = np.array([_likeness(bench, own, scenes) for own, scenes in zip(anchors, way.pictures, strict=True)])
    found = {**bench.numbers(measured), "to_anchors": float(likeness.mean())}
    found["to_anchors_interval"] = list(mean_interval(likeness))
    if way.seconds:
        found |= {"seconds": float(np.mean(way.seconds)), "flops": way.flops[0], "timed_subjects": len(way.seconds)}
    if way.training_seconds is not None:
        found["training_seconds"] = way.training_seconds
    return {key: rounded(value) for key, value in found.items()}


def _likeness(bench: Bench, anchors: list[Rendered], scenes: list[Rendered]) -> float:
    """Mean cosine of the scenes' identity embeddings with the anchors'."""
    found = []
    for pictures in (anchors, scenes):
        images = stacked(pictures)
        masks = [reading.foreground for reading in bench.judge.read(images)]
        found.append(np.stack([one.embedding for one in bench.judge.portray(images, masks)]))
    return float((found[1] @ found[0].T).mean())


def _first_as_good(variants: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Seconds of each baseline's smallest budget whose scenes are as like the anchors as the method's, if any."""
    wanted = variants["consistory"]["to_anchors"]
    found: dict[str, float | None] = {"consistory": variants["consistory"]["seconds"]}
    for name, numbers in variants.items():
        way, _, budget = name.partition(",")
        if budget and found.get(way) is None:
            found[way] = numbers["seconds"] if numbers["to_anchors"] >= wanted else None
    return found
