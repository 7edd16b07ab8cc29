"""Pydantic's errors in plain words: where in the file, what was found there, what to write instead."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from consistory_ray.errors import Problem

Loc = tuple[str | int, ...]

MAX_PROBLEMS = 1000
_SHOWN = 60
_CUSTOM = "consistory"

_SHARE = "write a number from 0 to 1"
_SWITCH = "write true or false"
_SIZE = "write height and width in pixels such as [1024, 1024], or null for the picture's own"
_PIXELS = "write a multiple of 8 from 64 to 8192"
_SEED = "write a whole number from 0 to 9223372036854775807"
_TEXT = "write text, in quotes if it looks like a number or true or false"

FIXES: Mapping[str, str] = {
    "name": "write a name of 1 to 200 characters, in quotes if it looks like a number",
    "model": 'write "miniature", a Hugging Face id, a folder or a .safetensors file',
    "config": "write a folder or a Hugging Face id with the configurations of a .safetensors file",
    "variant": 'write the ending of the files that are wanted, such as "fp16"',
    "revision": "write a branch, a tag or a commit of the model on the Hugging Face hub, in quotes",
    "vae": "write a Hugging Face id such as madebyollin/sdxl-vae-fp16-fix, a folder or a .safetensors file",
    "loras": "write a list of up to 32 LoRAs such as [{path: pixel-art.safetensors, weight: 0.8}]",
    "embeddings": "write a list of up to 64 embeddings such as [{path: mood.safetensors, token: mood}]",
    "path": "write a .safetensors file (path or URL), a folder with one, or a Hugging Face id",
    "weight": "write a number from -100 to 100 such as 0.8; 1 is usual",
    "token": "write one word without spaces, by which prompts name the embedding",
    "sha256": "write the 64 hexadecimal digits of the file's SHA-256, or leave it out",
    "settings": "write a mapping such as {num_inference_steps: 50, seed: 7}",
    "subjects": "write a list with at least one subject",
    "id": "write text, in quotes if it looks like a number",
    "concept": 'write the word that names the subject in its prompts, such as "dragon", or a list of 1 to 16 words',
    "style": 'write text such as "a drawing of"',
    "subject": 'write text such as "a dragon"',
    "anchors": 'write a list of 1 to 64 scenes such as ["in the forest", "on the beach"]; two are usual',
    "details": 'write text such as "with purple glasses"',
    "pictures": "write a list of 1 to 8 pictures such as [{image: mia-1.png, prompt: in the forest}]",
    "image": "write the path or URL of a PNG, JPEG or WebP file",
    "mask": "write the path or URL of a picture of the same size: the subject white, all else black",
    "fit": 'write "crop" or "letterbox"',
    "scenes": 'write a list with at least one scene such as ["in space"]',
    "matrix": "write a mapping of axes such as {pose: [sitting, running], place: [in the forest, on the beach]}",
    "checks": "write a list of up to 16 functions such as [house.rules:no_text]",
    "on_missing_concept": 'write "fail" (the job is refused) or "skip" (those pictures fail, the others are made)',
    "dynamic_prompts": _SWITCH,
    "wildcards": "write the path or URL of a folder of lists, or the lists: {animals: [cat, dog]}",
    "expand": 'write "draw" (each picture draws its own words) or "all" (every text that is possible)',
    "prompt": _TEXT,
    "prompt_2": _TEXT,
    "from": "write the folder or URL of a stored subject such as s3://bucket/run/anchors/moss-dragon, or 2 to 8",
    "count": "write a whole number from 1 to 100000",
    "seed": _SEED,
    "torch_dtype": 'write "auto", "float32", "bfloat16" or "float16"',
    "batch_size": 'write "auto" or a whole number from 1 to 256',
    "png_level": "write a whole number from 0 (fast, large files) to 9",
    "num_inference_steps": "write a whole number from 1 to 1000",
    "guidance_scale": "write a number from 0 to 100",
    "height": _PIXELS,
    "width": _PIXELS,
    "negative_prompt": 'write text, "" for the empty text, or null for none',
    "mask_dropout": _SHARE,
    "led_anchors": _SWITCH,
    "anchor_weight": "write a number above 0 and up to 16; 1 is the paper's",
    "sdsa": _SWITCH,
    "query_blending": _SWITCH,
    "injection": _SWITCH,
    "freeu": "write four numbers above 0 and up to 10 such as [0.6, 0.4, 1.1, 1.2], or null for off",
    "query_blend": "write two numbers from 0 to 1 such as [0.9, 0.8]",
    "query_blend_until": _SHARE,
    "injection_window": "write two numbers from 0 to 1, the smaller one first, such as [0.1, 0.33]",
    "injection_alpha": _SHARE,
    "map_steps": "write a whole number from 1 to 1000",
    "dift_timestep": "write a whole number from 0 to 999",
    "profile": 'write "exact", "fast" or "turbo"',
    "strength": 'write "paper" or "strong"',
    "first_pass": 'write "full", "lookahead" or "live"',
    "lookahead": "write 1 to 16 timesteps from 999 to 0, each below the one before it, such as [651, 451, 251]",
    "lookahead_maps": "write a whole number from 1 to 16",
    "reuse_deep": "write a share of the steps and a period from 1 to 16 such as [0.35, 2], or null for off",
    "shared_every": "write a whole number from 1 to 16",
    "scene_blending": _SWITCH,
    "guidance_interval": "write two numbers from 0 to 1, the smaller one first, such as [0, 0.6]",
    "cache_codec": 'write "none", "int8", "fp8" or "int4"',
    "scheduler": 'write "ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "tcd" or "model"',
    "sigma_schedule": 'write "karras" or "exponential", or null for the timesteps as they are',
    "timestep_spacing": 'write "leading", "trailing" or "linspace", or null for the model\'s own',
    "timesteps": "write timesteps from 999 to 0, each below the one before it, such as [999, 749, 499, 249], or null",
    "eta": _SHARE,
    "guidance_rescale": _SHARE,
    "prompt_syntax": 'write "plain" or "compel"',
    "negative_prompt_2": 'write text, "" for the empty text, or null for that of negative_prompt',
    "clip_skip": "write a whole number from 1 to 24, or null for none",
    "original_size": _SIZE,
    "crops_coords_top_left": "write two whole numbers from 0, pixels from the top and from the left, such as [0, 0]",
    "target_size": _SIZE,
    "controlnets": 'write a list of up to 8 ControlNets: "miniature", Hugging Face ids, folders or .safetensors files',
    "guess_mode": _SWITCH,
    "control": "write the path or URL of a hint, or a mapping such as {image: pose.png, scale: 0.8}, or a list of them",
    "poses": "write the path or URL of a folder of hints, a list of up to 1000 hints, or {folder: poses, scale: 0.8}",
    "scale": "write a number from 0 to 10, 1 is usual",
    "start": "write a number from 0 to below 1, a share of the steps",
    "end": "write a number above start and up to 1, a share of the steps",
    "preprocess": 'write "none" for a hint, or what makes one of a photo: "canny"',
    "net": "write the place of one of the controlnets, from 0, or its name",
    "quality": "write a mapping such as {metric: judge, threshold: 0.8, max_takes: 3}",
    "metric": 'write "judge-2", "judge", "colours", "clip", "dinov2", "dreamsim", or package.module:Class of your own',
    "measure": 'write "identity" (like its anchors) or "alignment" (as its prompt says)',
    "weights": "write the folder or the Hugging Face id of the metric's weights",
    "threshold": "write a number such as 0.8: pictures with a lower score are rendered again",
    "within": "write a number from 0 such as 0.1: how far below the subject's median a score may be",
    "max_takes": "write a whole number from 1 to 64",
    "takes": "write a whole number from 1 to 64",
    "keep": 'write "best"',
    "when_none_passes": 'write "fail" (exit code 1) or "accept"',
    "mode": "write the kind of hint of a ControlNet union, by its name or number, or leave it out",
}
IN_QUOTES = "put text in quotes if it begins with a sign or has a colon in it"
_TEXTS = ("anchors", "scenes")
_ITEM_FIXES: Mapping[str, str] = {
    "subjects": "write a mapping with the keys id, concept, style, subject, anchors (or pictures) and scenes",
    "anchors": "write text, or a mapping with the keys prompt and seed",
    "pictures": "write an address, or a mapping with the keys image, prompt, mask, fit and seed",
    "scenes": "write text, or a mapping with the keys id, prompt, seed and count",
    "concept": _TEXT,
    "controlnets": "write a name, or a mapping with the keys model and name",
    "loras": "write an address, or a mapping with the keys path, weight and name",
    "embeddings": "write an address, or a mapping with the keys path and token",
}


def fault(fix: str) -> PydanticCustomError:
    """An error for pydantic's validators that already says what to do."""
    return PydanticCustomError(_CUSTOM, "{fix}", {"fix": fix})


def explain(
    error: ValidationError, data: Any, locate: Callable[[Loc], str], keys: Callable[[Loc], Iterable[str]]
) -> list[Problem]:
    """All problems of a document, at most one for each place.

    Args:
        error: what pydantic found in ``data``.
        data: the plain data.
        locate: gives the name of a place in the author's own file.
        keys: gives the known keys of the mapping at a place.
    """
    problems: dict[str, Problem] = {}
    for line in error.errors(include_url=False):
        loc = _real(line["loc"], data)
        if line["type"] == "missing" and isinstance(loc[-1] if loc else "", int):
            loc = loc[:-1]  # a list of fixed length that is too short
        if line["type"] == "too_short" and len(line["input"]) >= line["ctx"]["min_length"]:
            continue  # its entries have problems of their own
        if line["type"] == "missing" and _is_unquoted_text(line["input"], keys(loc[:-1])):
            continue  # its only key has a problem of its own
        where = locate(loc)
        if where not in problems:
            problems[where] = Problem(where, _found(line), _fix(line, loc, data, keys))
        if len(problems) == MAX_PROBLEMS:
            break
    return list(problems.values())


def as_problems(error: ValidationError) -> list[Problem]:
    """What pydantic found in a request, in its own words: for programs, and pages of ours, that have sent it."""
    found = error.errors(include_url=False)[:MAX_PROBLEMS]
    return [Problem(".".join(map(str, one["loc"])), str(one["input"])[:200], one["msg"]) for one in found]


def path(loc: Loc) -> str:
    """A place as a reader would write it: ``subjects[2].scenes[0].prompt``."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and len(part) <= _SHOWN:
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text or "the file"


def shown(value: Any) -> str:
    """A value, short and printable."""
    if isinstance(value, str):
        text = value[:_SHOWN] + "…" if len(value) > _SHOWN else value
        return json.dumps(text, ensure_ascii=not text.isprintable())
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, Sequence):
        return f"a list of {len(value)}" if value else "an empty list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int) and value.bit_length() > 128:
        return "a huge number"
    return str(value)[:_SHOWN]


_SETTING = "write it as {} under settings"
_LORAS = "write a list as loras at the top of the file, such as [{path: pixel-art.safetensors, weight: 0.8}]"
_EMBEDDINGS = "write a list as embeddings at the top of the file, such as [{path: mood.safetensors, token: mood}]"
_COUNT = (
    "write count (how many pictures) and seed (of the first) at a scene, as in {prompt: in space, count: 4, seed: 3}"
)
_CONTROLNETS = "write a list as controlnets at the top of the file, such as [miniature]"
_GIVEN = "write it as pictures in a subject: [{image: FILE, prompt: in the forest}]"
_WORDS_ALONE = "there is no such setting: scenes are made from words alone, guidance_scale says how closely"
_COMMAND_LINE = "leave it out and give it to render on the command line: --device, --workers, --output"
_OTHER_NAMES = (
    ("steps num_steps sampling_steps inference_steps step n_steps ddim_steps", _SETTING.format("num_inference_steps")),
    ("cfg cfg_scale cfgscale guidance true_cfg", _SETTING.format("guidance_scale")),
    ("negative negative_text neg neg_prompt negativeprompt negative_prompts", _SETTING.format("negative_prompt")),
    ("size resolution image_size dimensions ar aspect aspect_ratio", "write height and width in pixels under settings"),
    ("w image_width", _SETTING.format("width")),
    ("h image_height", _SETTING.format("height")),
    ("dtype precision half fp16", _SETTING.format("torch_dtype")),
    ("dropout attention_dropout", _SETTING.format("mask_dropout")),
    ("batch batchsize", _SETTING.format("batch_size")),
    ("n n_iter batch_count num_images num_images_per_prompt num_samples repeat images seeds", _COUNT),
    ("sampler sampler_name sampling_method sampler_index", _SETTING.format("scheduler")),
    ("schedule schedule_type karras use_karras_sigmas use_exponential_sigmas", _SETTING.format("sigma_schedule")),
    ("spacing", _SETTING.format("timestep_spacing")),
    ("sigmas", "there is no such setting: write timesteps under settings"),
    ("lora lora_weights lora_path loras_path lyco adapter adapters", _LORAS),
    ("lora_scale lora_weight lora_strength", "write it as weight at one of the loras"),
    ("embedding textual_inversion textual_inversions", _EMBEDDINGS),
    ("vae_path vae_name sd_vae", "write it as vae at the top of the file"),
    ("unet text_encoder", "there is no such setting: put it into a folder of the model"),
    ("clipskip", _SETTING.format("clip_skip")),
    ("prompt_strength denoise denoising_strength init_image img2img", _WORDS_ALONE),
    ("photo photos picture reference_image reference_images images_of input_images face", _GIVEN),
    ("controlnet control_net controlnet_model controlnet_model_name", _CONTROLNETS),
    ("controls hint hints control_image pose pose_image", "write it as control at a scene or an anchor, or as poses"),
    ("controlnet_conditioning_scale conditioning_scale control_weight", "write it as scale at a control"),
    ("control_guidance_start guidance_start", "write it as start at a control"),
    ("control_guidance_end guidance_end", "write it as end at a control"),
    ("preprocessor processor control_mode", "write it as preprocess, or as mode for a ControlNet union, at a control"),
    ("ip_adapter ip_adapter_scale t2i_adapter", "there is no such setting yet"),
    ("refiner refiner_checkpoint hires_fix enable_hr upscale upscaler", "there is no such setting"),
    ("checkpoint ckpt model_id base_model model_name sd_model", "write it as model at the top of the file"),
    ("device workers gpus num_gpus output out output_dir", _COMMAND_LINE),
    ("concepts concept_token trigger trigger_word class noun", "write it as concept in each of the subjects"),
    ("prompts", "write a list as scenes in each of the subjects"),
    ("dynamic dynamicprompts dynamic_prompt variants", "write it as dynamic_prompts: true at the top of the file"),
    ("combinatorial combinatorial_generation", "write expand: all at a scene, and dynamic_prompts: true at the top"),
    ("wildcard wildcard_dir wildcards_dir wildcard_path lists", "write it as wildcards at the top of the file"),
    ("anchor anchor_prompts references reference", "write a list as anchors in each of the subjects"),
    ("prefix style_prompt", "write it as style in each of the subjects"),
    ("description character id_prompt subject_prompt", "write it as subject in each of the subjects"),
    ("characters people individuals", "write a list as subjects at the top of the file"),
)
MEANT: Mapping[str, str] = {name: told for names, told in _OTHER_NAMES for name in names.split()}
"""What people write who come from other programs, and what it is called here; in small letters, with underscores."""


def meant(key: str, known: Iterable[str]) -> str:
    """What to do about a key that is not known: its name here, a known key that is spelled alike, or all known ones."""
    known = list(known)
    name = _name(key)
    if name in known:
        return f'remove this key, did you mean "{name}"?'
    if (told := MEANT.get(name)) is not None:
        return told
    if name == "strength" and (own := next((each for each in _STRENGTHS_OF_OTHERS if each in known), None)):
        return f"write it as {own}"
    elsewhere = next((where for keys, where in _ELSEWHERE if name in keys), None)
    if elsewhere is not None and not difflib.get_close_matches(name, known, n=1):
        return elsewhere
    return f"remove this key{did_you_mean(key, known) or ', known are ' + ', '.join(known)}"


def _name(key: str) -> str:
    return re.sub(r"[\s-]+", "_", key.strip()[:_SHOWN].lower())


_OF_SETTINGS = (
    *("num_inference_steps", "guidance_scale", "height", "width", "negative_prompt", "mask_dropout", "torch_dtype"),
    *("batch_size", "png_level", "sdsa", "injection", "query_blending", "freeu", "query_blend", "query_blend_until"),
    *("injection_window", "injection_alpha", "map_steps", "dift_timestep", "strength", "led_anchors", "anchor_weight"),
    *("scheduler", "sigma_schedule", "timestep_spacing", "timesteps", "eta", "guidance_rescale", "clip_skip"),
    *("prompt_syntax", "negative_prompt_2", "original_size", "crops_coords_top_left", "target_size"),
)
_STRENGTHS_OF_OTHERS = ("scale", "weight")
"""What hints and LoRAs call what other programs call their strength; here it is a setting."""
_ELSEWHERE = (
    (_OF_SETTINGS, "write this key under settings, at the top of the file"),
    (
        ("concept", "style", "subject", "details", "anchors", "pictures", "scenes", "matrix", "from"),
        "write this key in each of the subjects",
    ),
    (("count", "prompt", "prompt_2", "expand"), "write this key in each of the scenes"),
    (("image",), "write this key at a control, or in each of a subject's pictures"),
    (("mask", "fit"), "write this key in each of a subject's pictures"),
    (
        (
            *("model", "config", "variant", "revision", "vae", "loras", "embeddings"),
            *("name", "subjects", "settings", "controlnets", "guess_mode", "checks", "quality", "takes"),
        ),
        "write this key at the top of the file",
    ),
    (
        ("metric", "measure", "weights", "threshold", "within", "max_takes", "keep", "when_none_passes"),
        "write this key under quality, at the top of the file",
    ),
    (("weight",), "write this key at one of the loras"),
    (("token",), "write it as concept in each of the subjects, or at one of the embeddings"),
    (("path", "sha256"), "write this key at one of the loras or embeddings"),
    (("wildcards", "dynamic_prompts"), "write this key at the top of the file"),
    (("control",), "write this key at a scene, an anchor or a picture"),
    (("poses",), "write this key in each of the subjects"),
    (("scale", "start", "end", "preprocess", "net", "mode"), "write this key at a control"),
    (("seed",), "write this key under settings, or at an anchor or a scene"),
)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``, did you mean "scenes"?`` or nothing."""
    close = difflib.get_close_matches(word[:_SHOWN].lower(), list(known), n=1)
    return f', did you mean "{close[0]}"?' if close else ""


def _real(loc: Loc, data: Any) -> Loc:
    """A place without the steps pydantic adds for branches of a union and for a string that stands for a mapping."""
    kept: list[str | int] = []
    for part in loc:
        if isinstance(data, Mapping) and isinstance(part, int):
            continue  # one thing where a list of them may be
        if isinstance(data, Mapping):
            data = data.get(part)
        elif isinstance(data, Sequence) and not isinstance(data, str) and isinstance(part, int):
            data = data[part] if part < len(data) else None
        else:
            break
        kept.append(part)
    return tuple(kept)


def _found(line: Any) -> str:
    return "" if line["type"] == "missing" and isinstance(line["loc"][-1], str) else shown(line["input"])


def _at(data: Any, loc: Loc) -> Any:
    """The value at a place that is there."""
    for part in loc:
        data = data[part]
    return data


def _fix(line: Any, loc: Loc, data: Any, keys: Callable[[Loc], Iterable[str]]) -> str:
    kind, last = line["type"], loc[-1] if loc else ""
    if kind == _CUSTOM:
        return str(line["ctx"]["fix"])
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known, key = list(keys(loc[:-1])), str(last)
        owner = next((part for part in reversed(loc[:-1]) if isinstance(part, str)), "")
        if owner in _TEXTS and _unquoted(key, _at(data, loc[:-1]), known):
            value = "" if line["input"] is None else f" {line['input']}"
            return f"put text with a colon in quotes: {shown(f'{key}:{value}')}"
        return meant(key, known)
    if kind == "missing" and isinstance(line["loc"][-1], str):
        return f"this key is missing, {_known_fix(loc)}"
    if isinstance(last, int):
        owner = str(loc[-2])
        return _ITEM_FIXES.get(owner, FIXES.get(owner, ""))
    return _known_fix(loc)


def _unquoted(key: str, item: Any, known: Iterable[str]) -> bool:
    """Whether a key is the beginning of a text with a colon, as YAML reads ``- in the city: at night``."""
    value = item.get(key) if isinstance(item, Mapping) else None
    if isinstance(value, (Mapping, list)) or key in known:
        return False
    alike = _name(key) in MEANT or difflib.get_close_matches(_name(key), list(known), n=1)
    return " " in key.strip() or (len(item) == 1 and not alike)


def _is_unquoted_text(item: Any, known: Iterable[str]) -> bool:
    """Whether a whole anchor or scene is such a text."""
    return isinstance(item, Mapping) and len(item) == 1 and any(_unquoted(str(key), item, known) for key in item)


def _known_fix(loc: Loc) -> str:
    """What to write at a place, or at the innermost one around it that is known."""
    known = (FIXES[part] for part in reversed(loc) if isinstance(part, str) and part in FIXES)
    return next(known, "write a mapping with the keys name, model, settings and subjects")
