"""The concepts' tokens in prompts: those that overlap the characters at which a concept stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from consistory_ray.concepts.matching import Match, Span, find_concepts
from consistory_ray.consistory.models.token_spans import token_spans
from consistory_ray.errors import Problem, PromptError

CLIP_TOKENS = 77
"""What CLIP's text encoders read, special tokens included; for a model that does not say."""


def concept_positions(
    pipe: Any, prompts: Sequence[str], concepts: Sequence[str], *, every: bool = False, exact_suffices: bool = False
) -> list[list[list[int]]]:
    """:func:`concept_tokens` in what the text encoders of a pipeline see.

    A textual inversion of several vectors is several tokens there. The positions are those of both encoders, which are
    the same unless their tokenizers differ.

    Raises:
        PromptError: as :func:`concept_tokens`.
    """
    limit = text_tokens(pipe)
    found: list[list[list[int]]] = []
    for tokenizer in _distinct([pipe.tokenizer, pipe.tokenizer_2]):
        texts, words = ([_expanded(pipe, text, tokenizer) for text in given] for given in (prompts, concepts))
        positions = concept_tokens(
            tokenizer, texts, words, limit=limit, every=every, exact_suffices=exact_suffices, told=(prompts, concepts)
        )
        found = _united(found, positions) if found else positions
    return found


def text_tokens(pipe: Any) -> int:
    """How many tokens the text encoders read, special ones included: a tokenizer's own limit may be missing."""
    limits = [int(tokenizer.model_max_length) for tokenizer in (pipe.tokenizer, pipe.tokenizer_2) if tokenizer]
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        limits.append(int(getattr(getattr(encoder, "config", None), "max_position_embeddings", CLIP_TOKENS)))
    return min(limits)


@contextmanager
def bounded_tokenizers(pipe: Any) -> Iterator[None]:
    """Tokenizers pad to what the text encoders read and not, without a limit of their own, to 10**30 tokens."""
    limit = text_tokens(pipe)
    before = [(one, one.model_max_length) for one in (pipe.tokenizer, pipe.tokenizer_2) if one is not None]
    try:
        for tokenizer, _ in before:
            tokenizer.model_max_length = limit
        yield
    finally:
        for tokenizer, length in reversed(before):
            tokenizer.model_max_length = length


def concept_tokens(
    tokenizer: Any,
    prompts: Sequence[str],
    concepts: Sequence[str],
    *,
    limit: int | None = None,
    every: bool = False,
    exact_suffices: bool = False,
    told: tuple[Sequence[str], Sequence[str]] | None = None,
) -> list[list[list[int]]]:
    """Positions of every concept's tokens in every prompt.

    A concept may be several tokens and may occur several times; :mod:`consistory_ray.concepts.matching` says where.

    Args:
        tokenizer: a CLIP tokenizer whose positions the text encoders see.
        prompts, concepts: texts.
        limit: how many tokens the text encoders read, special ones included; the tokenizer's own limit when None.
        every, exact_suffices: as in :func:`~consistory_ray.concepts.matching.find_concepts`.
        told: prompts and concepts as messages name them.

    Returns:
        For each prompt, for each concept, its token positions (the start token is 0); empty where it is lacking.

    Raises:
        PromptError: with every prompt that holds none of the concepts, and every concept cut off by the tokenizer.
    """
    shown_prompts, shown_concepts = told or (prompts, concepts)
    problems = [
        Problem(f"concepts[{index}]", repr(concept), "must not be empty")
        for index, concept in enumerate(concepts)
        if not concept.strip()
    ]
    if not concepts:
        problems.append(Problem("concepts", "[]", "name at least one concept, e.g. ['cat']"))
    if problems:
        raise PromptError("the concepts cannot be used", problems)
    visible = min(limit or int(tokenizer.model_max_length), int(tokenizer.model_max_length)) - 2  # without special ones
    found = []
    for index, prompt in enumerate(prompts):
        matches = find_concepts(prompt, concepts, every=every, exact_suffices=exact_suffices)
        spans = token_spans(tokenizer, prompt) if any(matches) else []
        places = [_occurrences(spans, match, visible) if match else [] for match in matches]
        for name, occurrences in zip(shown_concepts, places, strict=True):
            if occurrences and min(max(tokens, default=0) for tokens in occurrences) >= visible:
                fix = f"move {name!r} to the front: the text encoder reads only the first {visible} tokens"
                problems.append(Problem(f"prompts[{index}]", repr(shown_prompts[index]), fix))
        if not any(tokens for occurrences in places for tokens in occurrences):
            problems.append(Problem(f"prompts[{index}]", repr(shown_prompts[index]), must_contain(shown_concepts)))
        found.append([_visible(occurrences, visible) for occurrences in places])
    if problems:
        raise PromptError("the subject's concepts are not in every prompt", problems)
    return found


def must_contain(concepts: Sequence[str]) -> str:
    return f"must contain {' or '.join(repr(concept) for concept in concepts)} as a word of its own"


def _occurrences(tokens: Sequence[Span], match: Match, visible: int) -> list[list[int]]:
    """The tokens of each place of a concept; of words that stand apart those count that are not cut off."""
    places = [overlapping(tokens, place) for place in match.places]
    if match.exact or any(max(place, default=visible) < visible for place in places):
        return places
    return [overlapping(tokens, [span]) for place in match.places for span in place]


def overlapping(tokens: Sequence[Span], place: Sequence[Span]) -> list[int]:
    """The tokens that share a character with a concept."""
    return [
        index for index, (start, end) in enumerate(tokens) if any(start < last and first < end for first, last in place)
    ]


def _visible(occurrences: Sequence[Sequence[int]], visible: int) -> list[int]:
    """Positions of the tokens of all occurrences that are not cut off; the start token is before them."""
    seen = {token + 1 for tokens in occurrences if max(tokens, default=visible) < visible for token in tokens}
    return sorted(seen)


def _distinct(tokenizers: Sequence[Any]) -> list[Any]:
    first, *others = [tokenizer for tokenizer in tokenizers if tokenizer is not None]
    return [first, *(other for other in others if other is not first)]


def _expanded(pipe: Any, text: str, tokenizer: Any) -> str:
    """A text as diffusers hands it to the tokenizer."""
    convert = getattr(pipe, "maybe_convert_prompt", None)
    return text if convert is None else str(convert(text, tokenizer))


def _united(some: list[list[list[int]]], others: list[list[list[int]]]) -> list[list[list[int]]]:
    return [
        [sorted({*mine, *theirs}) for mine, theirs in zip(left, right, strict=True)]
        for left, right in zip(some, others, strict=True)
    ]
