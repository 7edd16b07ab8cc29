"""Prompts with weights and of any length: compel reads and encodes them, as it does for SDXL.

A long prompt is encoded in chunks, one after another in the embedding, each as long as the text encoders read and with
special tokens of its own. Cross-attention sees all chunks, also empty ones, so that a picture depends on how many there
are: it is as many as its own texts need, whatever the others in a batch have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from consistory_ray.concepts.compel_syntax import INSTALL, Reading, SyntaxFault, compel_is_here, read_prompt
from consistory_ray.concepts.matching import Span, find_concepts
from consistory_ray.consistory.models.prompts import bounded_tokenizers, must_contain, overlapping, text_tokens
from consistory_ray.consistory.models.token_spans import token_spans
from consistory_ray.errors import InputError, Problem, PromptError


class Weights:
    """The texts of a pipeline as compel encodes them.

    Args:
        pipe: the user's pipeline; its tokenizers are bounded, see :func:`bounded_tokenizers`.

    Raises:
        InputError: compel is not installed.
    """

    def __init__(self, pipe: Any) -> None:
        if not compel_is_here():
            raise InputError("the settings cannot be used", [Problem("prompt_syntax", "'compel'", INSTALL)])
        self._pipe = pipe
        self.chunk = text_tokens(pipe)
        self._counting = [_counting(tokenizer, self.chunk) for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)]

    def lengths(
        self, prompts: Sequence[str], prompts_2: Sequence[str], unwanted: Sequence[tuple[str, str]]
    ) -> list[int]:
        """How many tokens each image's texts are, in whole chunks.

        Args:
            prompts, prompts_2: for both encoders.
            unwanted: what both read of the unconditional half; empty where there is none.

        Raises:
            PromptError: naming every text that cannot be read.
        """
        texts = {"prompts": list(prompts), "prompts_2": list(prompts_2)}
        if unwanted:
            firsts, seconds = zip(*unwanted, strict=True)
            texts |= {"negative_prompts": list(firsts), "negative_prompt_2": list(seconds)}
        readings = [self._read(name, some) for name, some in texts.items()]
        with bounded_tokenizers(self._pipe):
            return [
                max(self._length(number % 2, one) for number, one in enumerate(of_image))
                for of_image in zip(*readings, strict=True)
            ]

    def _length(self, encoder: int, reading: Reading) -> int:
        return sum(max(len(self._chunked(encoder, one)) for one in part) for part in reading.parts) * self.chunk

    def _chunked(self, encoder: int, fragments: Sequence[Any]) -> list[int]:
        """How many tokens of a text are in each of its chunks, special ones aside."""
        texts, weights = [one.text for one in fragments], [one.weight for one in fragments]
        _, _, mask = self._counting[encoder].get_token_ids_and_expand_weights(texts, weights, device="cpu")
        return [int(count) - 2 for count in mask.reshape(-1, self.chunk).sum(dim=1)]

    def _read(self, name: str, texts: Sequence[str]) -> list[Reading]:
        readings, problems = [], []
        for index, text in enumerate(texts):
            try:
                readings.append(read_prompt(text))
            except SyntaxFault as fault:
                problems.append(Problem(f"{name}[{index}]", repr(text)[:200], str(fault)))
        if problems:
            raise PromptError("the prompts cannot be read by compel", problems)
        return readings

    def positions(
        self, prompts: Sequence[str], concepts: Sequence[str], *, every: bool, exact_suffices: bool
    ) -> list[list[list[int]]]:
        """For each prompt, for each concept, the positions of its tokens in the whole embedding.

        Raises:
            PromptError: naming every prompt that cannot be read or holds none of the concepts.
        """
        found, problems = [], []
        for index, reading in enumerate(self._read("prompts", prompts)):
            matches = find_concepts(reading.text, concepts, every=every, exact_suffices=exact_suffices)
            places: list[set[int]] = [set() for _ in concepts]
            with bounded_tokenizers(self._pipe):
                for encoder in range(2) if any(matches) else ():
                    spans, positions = self._placed(encoder, reading)
                    for match, mine in zip(matches, places, strict=True):
                        for place in match.places if match else ():
                            mine.update(positions[token] for token in overlapping(spans, place))
            if not any(places):
                problems.append(Problem(f"prompts[{index}]", repr(prompts[index]), must_contain(concepts)))
            found.append([sorted(mine) for mine in places])
        if problems:
            raise PromptError("the subject's concepts are not in every prompt", problems)
        return found

    def _placed(self, encoder: int, reading: Reading) -> tuple[list[Span], list[int]]:
        """Of every token its characters in the prompt's text, and its position in the embedding."""
        spans: list[Span] = []
        positions: list[int] = []
        base = 0
        for part in reading.parts:
            longest = 0
            for fragments in part:
                counts = self._chunked(encoder, fragments)
                inside = [span for one in fragments for span in self._spans(encoder, one.text, one.start)]
                where = [
                    base + number * self.chunk + 1 + token
                    for number, count in enumerate(counts)
                    for token in range(count)
                ]
                if len(where) != len(inside):
                    fix = "use a fast tokenizer (transformers.CLIPTokenizerFast)"
                    raise PromptError("the prompt's tokens cannot be placed", [Problem("prompt", reading.text, fix)])
                spans += inside
                positions += where
                longest = max(longest, len(counts))
            base += longest * self.chunk
        return spans, positions

    def _spans(self, encoder: int, text: str, start: int) -> list[Span]:
        provider = self._counting[encoder]
        expanded = provider.textual_inversion_manager
        spans = token_spans(provider.tokenizer, text)
        ids = provider.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        return [
            (first + start, last + start)
            for (first, last), token in zip(spans, ids, strict=True)
            for _ in expanded.vectors(token)
        ]

    def encoded(
        self,
        prompts: Sequence[str],
        prompts_2: Sequence[str],
        unwanted: Mapping[int, tuple[str, str]],
        clip_skip: int | None,
        device: torch.device,
    ) -> tuple[Tensor, Tensor, dict[int, tuple[Tensor, Tensor]]]:
        """Texts [images, tokens, channels], what is pooled of them [images, channels], both of unconditional halves.

        All are as long as the longest.

        Args:
            prompts, prompts_2: as for :meth:`lengths`.
            unwanted: by image what both encoders read of its unconditional half.
            clip_skip: see :class:`~consistory_ray.settings.MethodSettings`.
            device: of the text encoders.
        """
        positive = _Side(self._pipe, self.chunk, device, clip_skip or 0)
        negative = _Side(self._pipe, self.chunk, device, 0) if clip_skip else positive
        shown = [positive(*both) for both in zip(prompts, prompts_2, strict=True)]
        others = {image: negative(*both) for image, both in unwanted.items()}
        most = max(half.shape[1] for texts, _ in (*shown, *others.values()) for half in texts)
        text = torch.cat([positive.filled(texts, most) for texts, _ in shown])
        halves = {image: (negative.filled(texts, most), pooled) for image, (texts, pooled) in others.items()}
        return text, torch.cat([pooled for _, pooled in shown]), halves


_Encoded = tuple[tuple[Tensor, Tensor], Tensor]


class _Side:
    """Both text encoders of one half: each text is encoded by itself, once."""

    def __init__(self, pipe: Any, chunk: int, device: torch.device, skipped: int) -> None:
        from compel import Compel, ReturnedEmbeddingsType

        self._device = device
        self._compels = [
            Compel(
                tokenizer=tokenizer,
                text_encoder=_Encoder(encoder, device, skipped),
                textual_inversion_manager=_vectors(tokenizer),
                returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
                truncate_long_prompts=False,
                model_max_length=chunk,
                device=device,
            )
            for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2))
        ]
        self._known: dict[tuple[str, str], _Encoded] = {}

    def __call__(self, first: str, second: str) -> _Encoded:
        """[1, tokens, channels] of each encoder, and what the second one pools, [1, channels]."""
        if (first, second) not in self._known:
            try:
                texts = (
                    self._compels[0].build_conditioning_tensor(first),
                    self._compels[1].build_conditioning_tensor(second),
                )
            except RuntimeError as error:
                if "for fragment at index" not in str(error):
                    raise
                raise PromptError("the prompt's weights cannot be placed", [_unplaced(first, error)]) from error
            provider = self._compels[1].conditioning_provider
            self._known[first, second] = texts, provider.get_pooled_embeddings([second], device=self._device)
        return self._known[first, second]

    def filled(self, texts: tuple[Tensor, Tensor], length: int) -> Tensor:
        """Both encoders' texts side by side, with empty chunks at their ends."""
        longer = []
        for compel, text in zip(self._compels, texts, strict=True):
            if text.shape[1] < length:
                empty = compel.build_conditioning_tensor("")
                text = torch.cat([text, *[empty] * ((length - text.shape[1]) // empty.shape[1])], dim=1)
            longer.append(text)
        return torch.cat(longer, dim=-1)


def _unplaced(prompt: str, error: RuntimeError) -> Problem:
    return Problem("prompt", repr(prompt)[:200], f"use other words where weights are ({str(error)[:120]})")


class _Encoder:
    """A text encoder as compel calls it: on the device where it computes, and without some of its last layers."""

    def __init__(self, encoder: Any, device: torch.device, skipped: int) -> None:
        self._encoder = encoder
        self._skipped = skipped
        self.device = device
        self.dtype = encoder.dtype

    def __call__(self, *given: Any, **options: Any) -> Any:
        found = self._encoder(*given, **options)
        if self._skipped and found.hidden_states is not None:
            found.hidden_states = found.hidden_states[: -self._skipped]
        return found


def _counting(tokenizer: Any, chunk: int) -> Any:
    """Cuts texts into chunks without a text encoder; its masks tell padding from text."""
    from compel.embeddings_provider import EmbeddingsProvider, SplitLongTextMode

    return EmbeddingsProvider(
        tokenizer,
        None,
        _vectors(tokenizer),
        truncate=False,
        padding_attention_mask_value=0,
        split_long_text_mode=SplitLongTextMode.SENTENCES,
        model_max_length=chunk,
        device="cpu",
    )


def _vectors(tokenizer: Any) -> Any:
    """Textual inversions of several vectors, ``<x>``, ``<x>_1`` and so on, by the first one's token."""
    from compel.embeddings_provider import BaseTextualInversionManager

    added: dict[str, int] = tokenizer.get_added_vocab()

    def others(name: str) -> list[int]:
        found: list[int] = []
        while (another := added.get(f"{name}_{len(found) + 1}")) is not None:
            found.append(another)
        return found

    known = {token: [token, *others(name)] for name, token in added.items()}

    class Vectors(BaseTextualInversionManager):  # type: ignore[misc]
        def vectors(self, token: int) -> list[int]:
            return known.get(token, [token])

        def expand_textual_inversion_token_ids_if_necessary(self, token_ids: list[int]) -> list[int]:
            return [vector for token in token_ids for vector in self.vectors(token)]

    return Vectors()
