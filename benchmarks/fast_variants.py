"""The ways of making scenes that ``benchmarks/fast.py`` compares, what their caches hold, and what they cost of SDXL.

A way's name says what it is. ``exact``, ``fast`` and ``turbo`` are the profiles. ``exact+reuse_deep`` is exact with
that setting of ``fast`` (``exact+reuse_deep@turbo``: with that of ``turbo``, where it is another one);
``fast-reuse_deep`` is ``fast`` without it; ``vanilla`` are pictures without the method. What only tunes a setting goes
with it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.cost import anchor_cache, hollow_pipeline, rendering, scene_flops, stock_call_flops, vanilla_flops
from benchmarks.model_options import say
from benchmarks.random_sdxl import Topology
from consistory_ray.consistory.cache.contents import packed_for
from consistory_ray.consistory.method.steps import StepPlan
from consistory_ray.settings import PROFILES, MethodSettings

VANILLA, EXACT = "vanilla", "exact"
SAVING = ("fast", "turbo")
"""Profiles other than exact, in the order in which their settings name the single ones."""
COMPANIONS = {"first_pass": ("lookahead", "lookahead_maps")}
"""Settings that only tune another one."""
MORE: Mapping[str, Mapping[str, Any]] = {
    "exact+first_pass@live": {"first_pass": "live"},
    "exact+guidance_interval@0.8": {"guidance_interval": (0.0, 0.8)},
    "exact+cache_codec@fp8": {"cache_codec": "fp8"},
    "exact+cache_codec@int4": {"cache_codec": "int4"},
}
"""Single settings that no profile has."""

Settings = Mapping[str, Any]


def parts(profile: Settings) -> dict[str, dict[str, Any]]:
    """What a profile changes of exact: setting -> itself and what tunes it."""
    exact, tuning = PROFILES[EXACT], {name for names in COMPANIONS.values() for name in names}
    return {
        name: {field: profile[field] for field in (name, *COMPANIONS.get(name, ()))}
        for name in profile
        if name not in tuning and profile[name] != exact[name]
    }


def singles() -> dict[str, Settings]:
    """Single settings on top of exact, and ``fast`` without each of its own: name -> changes of exact."""
    found: dict[str, Settings] = {}
    for profile in SAVING:
        for name, changes in parts(PROFILES[profile]).items():
            if changes not in found.values():
                found[f"exact+{name}" if f"exact+{name}" not in found else f"exact+{name}@{profile}"] = changes
    found |= {name: changes for name, changes in MORE.items() if changes not in found.values()}
    for name, changes in parts(PROFILES["fast"]).items():
        reset = {field: PROFILES[EXACT][field] for field in changes}
        found[f"fast-{name}"] = {**PROFILES["fast"], **reset}
    return found


def variants(names: Iterator[str] | list[str], settings: MethodSettings) -> dict[str, MethodSettings]:
    """Each way's settings on top of the model's; vanilla's are the model's own.

    Raises:
        KeyError: there is no such way.
    """
    known: dict[str, Settings] = {VANILLA: {}, **PROFILES, **singles()}
    return {name: settings.exact.replace(**known[name]) for name in names}


# Caches ---------------------------------------------------------------------------------------------------------------


@contextmanager
def everything_recorded() -> Iterator[None]:
    """Exact anchors made inside leave what scenes of any profile read: the features of live correspondences too."""
    live = vars(StepPlan)["live_features"].fget

    def features(plan: StepPlan) -> Any:
        return live(dataclasses.replace(plan, first_pass="live"))

    with mock.patch.object(StepPlan, "live_features", property(features)):
        yield


# What they cost of a large model --------------------------------------------------------------------------------------


def counted_costs(
    topology: Topology, ways: Mapping[str, MethodSettings], folder: Path | None
) -> dict[str, dict[str, float]]:
    """FLOPs and cache bytes of each way, counted while hollow pictures of a topology are rendered.

    Args:
        topology: of the UNet.
        ways: their settings; ``vanilla`` is what the others are compared with.
        folder: where counts are kept, by settings; None keeps nothing.

    Returns:
        ``flops_ratio``: a scene over a stock vanilla picture; ``vanilla_flops_ratio``: a vanilla picture with the same
        savings (deep reuse, guidance) over a stock one; ``flops_ratio_alike``: a scene over that; ``cache_gb``: 10^9
        bytes in half precision of what the scenes read of a subject.
    """
    found: dict[str, dict[str, float]] = {}
    places = {name: _place(folder, topology, settings) for name, settings in ways.items() if name != VANILLA}
    for name, place in places.items():
        if place is not None and place.exists():
            found[name] = json.loads(place.read_text())
    absent = [name for name in places if name not in found]
    if not absent:
        return found
    pipe, steps, started = hollow_pipeline(topology), ways[absent[0]].num_inference_steps, time.monotonic()
    stock = steps * stock_call_flops(topology, pipe.pipe.unet, 1)
    with everything_recorded(), rendering():  # nobody asks for their FLOPs: counting takes as long again
        cache = anchor_cache(pipe, ways[absent[0]].exact)
    plain: dict[tuple[Any, Any], int] = {}
    for name in absent:
        settings = ways[name]
        own = packed_for(cache, settings)
        saved = settings.reuse_deep, settings.guidance_interval
        if saved not in plain:
            plain[saved] = vanilla_flops(pipe, settings.exact.replace(reuse_deep=saved[0], guidance_interval=saved[1]))
        scene = scene_flops(pipe, own, settings)
        found[name] = {
            "flops_ratio": scene / stock,
            "flops_ratio_alike": scene / plain[saved],
            "vanilla_flops_ratio": plain[saved] / stock,
            "cache_gb": own.nbytes / 1e9,
        }
        say(f"counted {name}: {found[name]}, {time.monotonic() - started:.0f} s")
        place = places[name]
        if place is not None:
            place.write_text(json.dumps(found[name]))
    return {name: found[name] for name in places}


def _place(folder: Path | None, topology: Topology, settings: MethodSettings) -> Path | None:
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"flops-{topology.channels[0]}x{topology.latent_size}-{settings.digest()[:24]}.json"
