"""Which characters of a text each of its tokens stands for, whatever the kind of CLIP tokenizer."""

from __future__ import annotations

import unicodedata
from itertools import accumulate
from typing import Any

from consistory_ray.concepts.matching import Span
from consistory_ray.errors import Problem, PromptError

_WORD_END = "</w>"


def token_spans(tokenizer: Any, text: str) -> list[Span]:
    """First and last (exclusive) character of every token of a text, without special tokens or a limit on length.

    Raises:
        PromptError: the tokenizer makes something else of the text, so that its tokens cannot be placed.
    """
    options = {"add_special_tokens": False, "truncation": False, "verbose": False}
    if getattr(tokenizer, "is_fast", False):
        offsets = tokenizer(text, return_offsets_mapping=True, **options)["offset_mapping"]
        return [(int(start), int(end)) for start, end in offsets]
    return _aligned(tokenizer, text, tokenizer(text, **options)["input_ids"])


def _aligned(tokenizer: Any, text: str, ids: list[int]) -> list[Span]:
    """The spans of a tokenizer without offsets: its tokens' bytes, one after another, are the text without blanks."""
    data, origins = _bytes_of(text)
    decoder, added = tokenizer.byte_decoder, tokenizer.get_added_vocab()
    pieces = [
        piece.lower().encode() if piece in added else bytes(decoder[mark] for mark in piece.removesuffix(_WORD_END))
        for piece in map(str, tokenizer.convert_ids_to_tokens(ids))
    ]
    if b"".join(pieces) != data:
        fix = "use a fast tokenizer (transformers.CLIPTokenizerFast), this one rewrites the text before it reads it"
        raise PromptError("the prompt's tokens cannot be placed", [Problem("prompt", repr(text), fix)])
    ends = list(accumulate(map(len, pieces)))
    return [(origins[end - len(piece)], origins[end - 1] + 1) for piece, end in zip(pieces, ends, strict=True)]


def _bytes_of(text: str) -> tuple[bytes, list[int]]:
    """A text as a CLIP tokenizer reads it, in UTF-8 without blanks, and from which character each byte comes."""
    data, origins = bytearray(), []
    start = 0
    while start < len(text):
        end = start + 1
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        piece = "".join(unicodedata.normalize("NFC", text[start:end]).lower().split()).encode()
        data += piece
        origins += [start] * len(piece)
        start = end
    return bytes(data), origins
