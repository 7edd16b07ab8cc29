"""Words that a model was taught (textual inversion): their vectors become tokens of both text encoders.

An embedding of several vectors is as many tokens. Prompts name the first; diffusers puts the others behind it wherever
a prompt is read, and so do the concepts' positions (:mod:`consistory_ray.consistory.models.prompts`), so both
encoders must get equally many.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from consistory_ray.adapters.embedding_files import Encoder, read_vectors
from consistory_ray.adapters.files import adapter_file, digest_of, read_header, unusable
from consistory_ray.adapters.names import Embedding
from consistory_ray.consistory.models.adapter_hub import from_hub
from consistory_ray.errors import CheckpointError, InputError, Problem

_TOKENIZERS: Mapping[Encoder, str] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
_WORDS: Mapping[Encoder, str] = {"text_encoder": "the first text encoder", "text_encoder_2": "the second text encoder"}


@dataclass(frozen=True)
class EmbeddingFile:
    """An embedding that was found and looked at, none of whose vectors were read.

    Attributes:
        where: the field that it was given in.
        embedding: as it was given.
        file: on this machine.
        tensors: by name, the encoder that each is for (None for what its width decides), its vectors, their width.
        identity: 64 hexadecimal digits for its content and its token.
    """

    where: str
    embedding: Embedding
    file: Path
    tensors: Mapping[str, tuple[Encoder | None, int, int]]
    identity: str


def listed_embeddings(embeddings: Any) -> list[Embedding]:
    """What somebody gave, one by one.

    Raises:
        InputError: it is no list of embeddings.
    """
    given = [embeddings] if isinstance(embeddings, Embedding) else list(embeddings or ())
    problems = [
        Problem(f"embeddings[{number}]", type(each).__name__, "give an Embedding(path, token)")
        for number, each in enumerate(given)
        if not isinstance(each, Embedding)
    ]
    if problems:
        raise InputError("the embeddings cannot be used", problems)
    return given


def read_embeddings(embeddings: Sequence[Embedding]) -> list[EmbeddingFile]:
    """Find the files and look at their headers; those on the hub are downloaded.

    Raises:
        CheckpointError: one is not there, or no embedding.
    """
    return [_read(f"embeddings[{number}]", embedding) for number, embedding in enumerate(embeddings)]


def refuse_wrong_widths(files: Sequence[EmbeddingFile], widths: Mapping[Encoder, int | None]) -> None:
    """Refuse embeddings whose vectors are not those of a model's text encoders.

    Args:
        files: from :func:`read_embeddings`.
        widths: of the encoders' tokens; None where it is not known, 0 where the model has no such encoder.

    Raises:
        CheckpointError: naming the widths.
    """
    if any(width is None for width in widths.values()):
        return
    there = {encoder: width for encoder, width in widths.items() if width}
    for file in files:
        where, path = f"{file.where}.path", file.embedding.path
        for key, (encoder, _, width) in file.tensors.items():
            fitting: list[int | None] = [*there.values()] if encoder is None else [widths[encoder]]
            if width not in fitting:
                wanted = " and ".join(f"{_WORDS[name]} {number}" for name, number in there.items())
                fix = f"{key} has vectors of width {width}; this model reads others: {wanted}"
                raise unusable(where, path, fix, "the embedding does not fit the model")


def add_embeddings(files: Sequence[EmbeddingFile], pipe: Any) -> None:
    """Teach a loaded pipeline its words.

    Args:
        files: from :func:`read_embeddings`.
        pipe: of diffusers, its weights in memory.

    Raises:
        CheckpointError: one does not fit the model, lacks the vectors of one of its encoders, or its token is a word
            that the model knows.
    """
    encoders = [name for name in _TOKENIZERS if getattr(pipe, name, None) is not None]
    widths: dict[Encoder, int | None] = {
        name: int(getattr(pipe, name).get_input_embeddings().weight.shape[1]) if name in encoders else 0
        for name in _TOKENIZERS
    }
    refuse_wrong_widths(files, widths)
    vectors: dict[str, dict[Encoder, Tensor]] = {}
    first: dict[str, EmbeddingFile] = {}
    for file in files:
        token = file.embedding.token
        first.setdefault(token, file)
        _gather(file, encoders, widths, vectors.setdefault(token, {}))
    for token, halves in vectors.items():
        _check_whole(first[token], encoders, halves)
        for name in encoders:
            _check_new(first[token], getattr(pipe, _TOKENIZERS[name]), len(halves[name]))
    for name in encoders:
        words = list(vectors)
        tensors = [vectors[word][name] for word in words]
        with torch.random.fork_rng(devices=[]):  # new rows are drawn before they are overwritten
            pipe.load_textual_inversion(
                tensors, token=words, text_encoder=getattr(pipe, name), tokenizer=getattr(pipe, _TOKENIZERS[name])
            )
    for token, halves in vectors.items():
        for name in encoders:
            _check_read(first[token], pipe, getattr(pipe, _TOKENIZERS[name]), len(halves[name]))


def _gather(
    file: EmbeddingFile,
    encoders: Sequence[Encoder],
    widths: Mapping[Encoder, int | None],
    halves: dict[Encoder, Tensor],
) -> None:
    where, path = f"{file.where}.path", file.embedding.path
    with safe_open(file.file, framework="pt") as tensors:
        for key, (encoder, count, width) in file.tensors.items():
            free = [name for name in encoders if name not in halves and widths[name] == width]
            target = encoder or (free[0] if free else None)
            if target is None or target in halves:
                fix = f"the token {file.embedding.token!r} has vectors of {_WORDS[target or encoders[0]]} already"
                raise unusable(where, path, f"{fix}: give it another token", "an embedding is given twice")
            found = tensors.get_tensor(key).float().reshape(count, width)
            if not found.isfinite().all():
                raise unusable(where, path, f"{key} has numbers that are not finite", "the embedding is broken")
            halves[target] = found


def _check_whole(file: EmbeddingFile, encoders: Sequence[Encoder], halves: Mapping[Encoder, Tensor]) -> None:
    where, path = f"{file.where}.path", file.embedding.path
    if lacking := [name for name in encoders if name not in halves]:
        fix = f"it has no vectors for {_WORDS[lacking[0]]}: give a file with both (clip_l and clip_g), or a second file"
        raise unusable(where, path, f"{fix} with the same token", "the embedding is for one text encoder only")
    if len({len(each) for each in halves.values()}) > 1:
        counts = ", ".join(f"{_WORDS[name]} {len(each)}" for name, each in halves.items())
        fix = f"both text encoders must get as many vectors, here they get {counts}"
        raise unusable(where, path, fix, "the embedding's two halves do not go together")


def _check_new(file: EmbeddingFile, tokenizer: Any, count: int) -> None:
    token, known = file.embedding.token, tokenizer.get_vocab()
    for name in (token, *(f"{token}_{number}" for number in range(1, count + 1))):
        if name in known or f"{name}</w>" in known:
            fix = f"the model has a token {name!r}: choose another word, such as <{token.strip('<>')}-1>"
            raise CheckpointError("the embedding's token is taken", [Problem(f"{file.where}.token", token, fix)])


def _check_read(file: EmbeddingFile, pipe: Any, tokenizer: Any, count: int) -> None:
    """Whether prompts with the token come out as its vectors: tokenizers may write a word otherwise first."""
    token = file.embedding.token
    wanted = [token, *(f"{token}_{number}" for number in range(1, count))]
    found = tokenizer.tokenize(pipe.maybe_convert_prompt(f"a {token} ", tokenizer))
    if found[-count:] != wanted:
        fix = f"the tokenizer reads {' '.join(found[1:])}: write the token in small letters, such as {token.lower()}-1"
        raise CheckpointError("the embedding's token cannot be read", [Problem(f"{file.where}.token", token, fix)])


def _read(where: str, embedding: Embedding) -> EmbeddingFile:
    field = f"{where}.path"
    file = adapter_file(field, embedding.path) or from_hub(field, embedding.path)
    tensors = read_vectors(field, embedding.path, read_header(field, file))
    identity = hashlib.sha256(f"{digest_of(file)}\n{embedding.token}".encode()).hexdigest()
    return EmbeddingFile(where, embedding, file, tensors, identity)
