"""How much of a prompt a model's text encoders read, found out without loading the model, and without torch.

Where the model's tokenizer lies on this machine its tokens are counted; otherwise those of CLIP are estimated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from consistory_ray.concepts.matching import Span
from consistory_ray.settings import BUNDLED_MODEL

CLIP_TOKENS = 77
_SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
_SPECIAL = 2
_MAX_BYTES = 64 << 20
_PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)
_LONGEST_TOKEN = 11
_BYTES_PER_TOKEN = 3


class PromptReader:
    """What the text encoders of a model read; its tokenizer is built once a prompt is long enough to need it.

    Args:
        model: the bundled one, a folder, a hub id whose tokenizer may be in the local cache, or a single file, which
            has none and is read with that of ``config``, or of the first SDXL where that is in the cache.
        config: the folder or hub id with the tokenizers of a single file.

    Attributes:
        visible: how many tokens are read, without the special ones.
    """

    def __init__(self, model: str, config: str | None = None) -> None:
        source = (config or _SDXL) if model.lower().endswith(".safetensors") else model
        self._find = _finder(source)
        self.visible = (_limit(self._find) if _is_here(source) else CLIP_TOKENS) - _SPECIAL

    @property
    def measured(self) -> bool:
        """Whether tokens are counted by the model's own tokenizer, or CLIP's are estimated."""
        return self._tokenizer is not None

    def end(self, prompt: str) -> int | None:
        """Where a prompt is cut off: how many of its characters are read, None if it is read to its end."""
        if len(prompt.encode("utf-8", "replace")) <= self.visible:  # a token is a byte at least
            return None
        spans = self._tokenizer(prompt) if self._tokenizer is not None else estimated_spans(prompt)
        return spans[self.visible - 1][1] if len(spans) > self.visible else None

    @cached_property
    def _tokenizer(self) -> Callable[[str], list[Span]] | None:
        found = (_tokenizer(self._find, part) for part in ("tokenizer", "tokenizer_2"))
        return next((spans for spans in found if spans is not None), None)


def estimated_spans(text: str) -> list[Span]:
    """The characters of CLIP's tokens, roughly: a common word is one, a long or foreign one several."""
    spans: list[Span] = []
    for piece in _PIECES.finditer(text):
        start, end = piece.span()
        word = piece.group()
        count = 1 + (len(word) > _LONGEST_TOKEN)
        if not word.isascii():
            count = math.ceil(len(word.encode("utf-8", "replace")) / _BYTES_PER_TOKEN)
        spans += [(start, end)] * count
    return spans


def _is_here(model: str) -> bool:
    try:
        return model == BUNDLED_MODEL or Path(model).is_dir()
    except (OSError, ValueError):
        return False


def _finder(model: str) -> Callable[[str], Any]:
    """Gives a file of the model by its name, None where it is not on this machine."""
    if _is_here(model):
        bundled = model == BUNDLED_MODEL
        folder: Any = resources.files("consistory_ray.miniature").joinpath("weights") if bundled else Path(model)
        return lambda name: found if (found := folder.joinpath(*name.split("/"))).is_file() else None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return lambda name: None

    def cached(name: str) -> Any:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(model, name)
        return Path(found) if isinstance(found, str) else None

    return cached


def _tokenizer(find: Callable[[str], Any], part: str) -> Callable[[str], list[Span]] | None:
    try:
        tokenizer = _built(find, part)
    except Exception:  # whatever is wrong with a model is told by whoever loads it
        return None
    if tokenizer is None:
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: [(start, end) for start, end in tokenizer.encode(text, add_special_tokens=False).offsets]


def _built(find: Callable[[str], Any], part: str) -> Any:
    whole = find(f"{part}/tokenizer.json")
    if whole is not None:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(_text(whole))
    vocab, merges = find(f"{part}/vocab.json"), find(f"{part}/merges.txt")
    if vocab is None or merges is None:
        return None
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    pairs: Any = [
        tuple(line.split()) for line in _text(merges).splitlines() if line and not line.startswith("#version")
    ]
    tokenizer: Any = Tokenizer(
        models.BPE(
            vocab=json.loads(_text(vocab)),
            merges=pairs,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token="<|endoftext|>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def _limit(find: Callable[[str], Any]) -> int:
    """Tokens that are read, special ones included: the smallest of what the tokenizers and encoders say."""
    given = [
        _number(find, name, key)
        for number in ("", "_2")
        for name, key in (
            (f"tokenizer{number}/tokenizer_config.json", "model_max_length"),
            (f"text_encoder{number}/config.json", "max_position_embeddings"),
        )
    ]
    return min([number for number in given if number is not None and number > _SPECIAL], default=CLIP_TOKENS)


def _number(find: Callable[[str], Any], name: str, key: str) -> int | None:
    path = find(name)
    try:
        values = json.loads(_text(path)) if path is not None else None
    except (OSError, ValueError, RecursionError):
        return None
    value = values.get(key) if isinstance(values, dict) else None
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value < 1e30 else None


def _text(path: Any) -> str:
    with path.open("rb") as stream:
        content: bytes = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError("too large")
    return content.decode("utf-8")
