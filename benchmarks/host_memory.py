"""How much host memory does it take to make and save a subject, against the size of its anchor cache?

    python benchmarks/host_memory.py                  # SDXL's layers and dtype, a cache of half a gigabyte
    python benchmarks/host_memory.py --megabytes 5500 # as large as at 1024 px and 50 steps
    python benchmarks/host_memory.py --codec int8     # packed while it is recorded, as for the profiles fast and turbo

Nothing is rendered: what the anchors would leave on a device is made up, a step after the other, and goes the package's
own way through the recorder into the one array that the engine is handed, then to a folder, and back. *Peak* is the
largest resident set of a process of its own in each stage, less what was resident before the first one, over the
cache's bytes. The step at hand is in there, since here the device is the host.

In a run Ray then copies the array into its object store, which has its own budget; ``plan`` forecasts it.

The last line of stdout is JSON: ``codec``, ``cache_mb``, and ``record``, ``pack``, ``save``, ``load`` and ``peak``,
their maximum. ``checked`` says that the file is byte for byte that of the library's own writer of the format.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.engine_model.apart import Meter, apart
from benchmarks.result_stamp import stamped
from consistory_ray.consistory import AnchorCache
from consistory_ray.consistory.cache.codec_sizes import packed_bytes
from consistory_ray.consistory.cache.codecs import CODECS
from consistory_ray.consistory.cache.recorder import CacheRecorder
from consistory_ray.consistory.method.steps import Pass
from consistory_ray.consistory.models.sdxl_layout import (
    COARSE,
    FINE,
    LEVELS,
    SDXL_UNET_CONFIG,
    expected_layer_names,
    level_channels,
    read_layers,
)
from consistory_ray.engine.workers.anchor_store import load_cache, save_cache
from consistory_ray.output.storage import open_output
from consistory_ray.settings import CacheCodec, MethodSettings

STEP_BYTES = 55e6
"""Of SDXL at 1024 px with two anchors and quarter masks: a step's kept tokens in float16."""
TOKENS = {COARSE: 256, FINE: 1024}


def recorded(megabytes: float, codec: CacheCodec = "none", dtype: torch.dtype = torch.float16) -> AnchorCache:
    """A cache of about that size, of steps as large as SDXL's, by way of the recorder."""
    layers = read_layers(expected_layer_names(SDXL_UNET_CONFIG), len(SDXL_UNET_CONFIG["down_block_types"]))
    recorder = CacheRecorder(LEVELS, CODECS[codec])
    channels, item = level_channels(SDXL_UNET_CONFIG, FINE), dtype.itemsize
    step_bytes = STEP_BYTES * packed_bytes(codec, channels, item) / (channels * item)
    steps = max(1, round(megabytes * 1e6 / step_bytes))
    for step in range(steps):
        for layer in layers:
            if layer.shared_slot is not None and layer.level is not None:
                shape = 2, TOKENS[layer.level], level_channels(SDXL_UNET_CONFIG, layer.level)
                recorder.add_shared(layer, torch.full(shape, float(step), dtype=dtype))
        recorder.end_step(Pass(1, step))
    masks = {level: torch.ones(2, 4 * TOKENS[level], dtype=torch.bool) for level in LEVELS.names}
    features = torch.ones(2 * TOKENS[FINE], level_channels(SDXL_UNET_CONFIG, COARSE), dtype=dtype)
    return AnchorCache(
        settings=MethodSettings(),
        fingerprint="0" * 64,
        concepts=("cat",),
        prompts=("a cat", "a cat"),
        seeds=(1, 2),
        grids={COARSE: (32, 32), FINE: (64, 64)},
        tensors=recorder.finish(masks, features),
        codec=codec,
    )


def measure(megabytes: float, folder: str, codec: CacheCodec = "none") -> dict[str, Any]:
    """Peaks of the stages over the cache's bytes; to be called in a process of its own."""
    recorded(1.0, codec).into_buffer()  # what is loaded and allocated once, by whatever size
    before = resident()
    with Meter() as record:
        cache = recorded(megabytes, codec)
    size = cache.nbytes
    with Meter() as packing:
        buffer, digest = cache.into_buffer()
    del cache
    store = open_output(folder)
    with Meter() as saving:
        save_cache(store, "cache.safetensors", buffer, digest)
    del buffer
    with Meter() as loading:
        found = load_cache(store, "cache.safetensors")
    assert found.buffer is not None, found.problem
    meters = {"record": record, "pack": packing, "save": saving, "load": loading}
    peaks = {name: round((meter.peak - before) / size, 3) for name, meter in meters.items()}
    seconds = {f"{name}_seconds": round(meter.wall, 3) for name, meter in meters.items()}
    return {"codec": codec, "cache_mb": round(size / 1e6, 1), **peaks, "peak": max(peaks.values()), **seconds}


def same_bytes(megabytes: float, folder: str, codec: CacheCodec = "none") -> bool:
    """Whether the array is what :meth:`AnchorCache.save` writes tensor by tensor."""
    cache = recorded(megabytes, codec)
    path = Path(folder) / "plain.safetensors"
    cache.save(path)
    return cache.into_buffer()[0].tobytes() == path.read_bytes()


def resident() -> int:
    """Resident set of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status does not tell the resident set (VmRSS)")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the peaks; returns what the last line holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=500.0, help="of the cache")
    parser.add_argument("--codec", choices=get_args(CacheCodec), default="none", help="how it is packed")
    parser.add_argument("--out", type=Path, help="folder whose host_memory.json gets this run (default: none)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = apart(measure, options.megabytes, folder, options.codec)
        found["checked"] = same_bytes(60.0, folder, options.codec)
    print(json.dumps(found))
    if options.out is not None:
        keep(found, options.out / "host_memory.json")
    return found


def keep(run: dict[str, Any], path: Path) -> None:
    """Add a run to those of a file, in the place of an earlier one of the same codec and size."""
    told = json.loads(path.read_text()) if path.exists() else {"runs": []}
    others = [one for one in told["runs"] if (one["codec"], one["cache_mb"]) != (run["codec"], run["cache_mb"])]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stamped({"runs": [*others, run]}), indent=1) + "\n")


if __name__ == "__main__":
    main()
