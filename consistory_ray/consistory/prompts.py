"""Finding the concepts' tokens in prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from consistory_ray.errors import Problem, PromptError

_WORD_END = "</w>"


def concept_tokens(tokenizer: Any, prompts: Sequence[str], concepts: Sequence[str]) -> list[list[list[int]]]:
    """Positions of every concept's tokens in every prompt.

    A concept may be several tokens and may occur several times; it is found at word boundaries only.

    Args:
        tokenizer: the CLIP tokenizer whose positions the text encoders see.
        prompts, concepts: texts.

    Returns:
        For each prompt, for each concept, its token positions (the start token is 0); empty where it is lacking.

    Raises:
        PromptError: with every prompt that holds none of the concepts, and every concept cut off by the tokenizer.
    """
    problems = [
        Problem(f"concepts[{index}]", repr(concept), "must not be empty")
        for index, concept in enumerate(concepts)
        if not _ids(tokenizer, concept)
    ]
    if not concepts:
        problems.append(Problem("concepts", "[]", "name at least one concept, e.g. ['cat']"))
    if problems:
        raise PromptError("the concepts cannot be used", problems)
    visible = int(tokenizer.model_max_length) - 2  # without the start and end tokens
    found = []
    for index, prompt in enumerate(prompts):
        ids = _ids(tokenizer, prompt)
        starts = _word_starts(tokenizer, ids)
        positions = [_occurrences(ids, _ids(tokenizer, concept), starts) for concept in concepts]
        for concept, places in zip(concepts, positions, strict=True):
            if places and min(max(place) for place in places) >= visible:
                fix = f"move {concept!r} to the front: the text encoder reads only the first {visible} tokens"
                problems.append(Problem(f"prompts[{index}]", repr(prompt), fix))
        if not any(positions):
            wanted = " or ".join(repr(concept) for concept in concepts)
            problems.append(Problem(f"prompts[{index}]", repr(prompt), f"must contain {wanted} as a word of its own"))
        seen = [[token + 1 for place in places if max(place) < visible for token in place] for places in positions]
        found.append(seen)
    if problems:
        raise PromptError("the subject's concepts are not in every prompt", problems)
    return found


def concept_columns(positions: Sequence[Sequence[Sequence[int]]], text_tokens: int) -> Tensor:
    """Weights that average attention over each concept's tokens: [prompts, text tokens, concepts] float32."""
    columns = torch.zeros(len(positions), text_tokens, len(positions[0]))
    for prompt, concepts in enumerate(positions):
        for concept, tokens in enumerate(concepts):
            for token in tokens:
                columns[prompt, token, concept] = 1 / len(tokens)
    return columns


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids without the special ones, and without a limit on length."""
    return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])


def _word_starts(tokenizer: Any, ids: Sequence[int]) -> list[bool]:
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    return [index == 0 or str(pieces[index - 1]).endswith(_WORD_END) for index in range(len(pieces))]


def _occurrences(ids: Sequence[int], concept: Sequence[int], starts: Sequence[bool]) -> list[range]:
    size = len(concept)
    return [
        range(start, start + size)
        for start in range(len(ids) - size + 1)
        if starts[start] and list(ids[start : start + size]) == list(concept)
    ]
