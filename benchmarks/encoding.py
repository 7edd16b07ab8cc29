"""What does it take to turn a picture into a file? Time and size by PNG level, and of lossless WebP for comparison.

    python benchmarks/encoding.py            # 1024 px, some seconds of one core

The picture is made up: like in a somewhat soft photograph coarse structures are much stronger than fine ones, colours
hang together, and there is a little noise. Its file has the 1.8 bytes a pixel that ``plan`` forecasts with. Times are of one thread's CPU, the
fastest of some; metadata as a run writes it is included. Pictures are encoded beside the device, by as many threads as
that takes (``consistory_ray/engine/workers/writing.py``): a device that makes one in a second needs a thread for every
1000 ms of the table.

The last line of stdout is JSON: for each of ``png_0`` ... ``png_9`` and ``webp`` its ``ms`` and ``kb`` (1000 bytes),
``default``, the one that is written if nobody says otherwise, and the versions of zlib and libwebp.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image, features

from benchmarks.model_options import say
from consistory_ray.output.assets import PNG_LEVEL, encode_png

PARAMETERS = {"asset_id": "0" * 32, "prompt": "a photo of a dragon in the snow", "seed": 7}
SLOPE = 1.5
"""Amplitudes fall with this power of the frequency."""
CONTRAST, COLOUR, NOISE = 50.0, 12.0, 1.0
"""Standard deviations, of 255: of the brightness, of each channel about it, and of what differs from pixel to pixel."""


def natural_picture(side: int) -> Image.Image:
    """A picture with such a spectrum, the same one every time."""
    generator = np.random.default_rng(0)
    across, down = np.fft.rfftfreq(side), np.fft.fftfreq(side)
    frequency = np.hypot(down[:, None], across[None])
    frequency[0, 0] = np.inf

    def plane(deviation: float) -> Any:
        phase = np.exp(2j * np.pi * generator.random(frequency.shape))
        values = np.fft.irfft2(phase / frequency**SLOPE, (side, side))
        return deviation * values / values.std()

    brightness = 128 + plane(CONTRAST)
    channels = [brightness + plane(COLOUR) + generator.normal(0, NOISE, (side, side)) for _ in range(3)]
    return Image.fromarray(np.stack(channels, axis=2).clip(0, 255).astype(np.uint8))


def webp(picture: Image.Image) -> bytes:
    """As lossless WebP by its fastest method."""
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=True, method=0, quality=0)
    return file.getvalue()


def fastest(action: Callable[[], bytes], repeats: int) -> tuple[float, int]:
    """Milliseconds of this thread, and bytes."""
    times, size = [], 0
    for _ in range(repeats):
        started = time.thread_time()
        size = len(action())
        times.append(time.thread_time() - started)
    return 1000 * min(times), size


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print the table; returns what the last line holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--levels", type=int, nargs="+", default=[0, 1, 3, 6, 9])
    options = parser.parse_args(arguments)
    picture = natural_picture(options.side)
    ways: dict[str, Callable[[], bytes]] = {
        f"png_{level}": lambda level=level: encode_png(picture, PARAMETERS, level) for level in options.levels
    }
    ways["webp"] = lambda: webp(picture)
    found: dict[str, Any] = {}
    for name, action in ways.items():
        taken, size = fastest(action, options.repeats)
        found[name] = {"ms": round(taken, 1), "kb": round(size / 1000, 1)}
        say(f"{name:8} {taken:7.1f} ms {size / 1000:8.1f} kB")
    versions = {"zlib": zlib.ZLIB_RUNTIME_VERSION, "libwebp": features.version_module("webp")}
    versions |= {"zlib_ng": features.version_feature("zlib_ng")}
    found |= {"default": f"png_{PNG_LEVEL}", "side": options.side, **versions}
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    main()
