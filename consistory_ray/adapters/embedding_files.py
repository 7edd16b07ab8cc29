"""What is in a textual inversion's file: vectors for the first text encoder, for the second, or for both.

Files for SDXL hold both, as ``clip_l`` and ``clip_g`` (the web UIs) or ``text_encoders_0`` and ``text_encoders_1``
(the trainers of diffusers). A file with one tensor, called after its token or ``emb_params``, belongs to the encoder
that has vectors of its width; a second file with the same token may bring the other one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from consistory_ray.adapters.files import Header, adapter_file, read_header, unusable
from consistory_ray.adapters.names import Embedding

Encoder = Literal["text_encoder", "text_encoder_2"]

MOST_VECTORS = 75
"""A CLIP text encoder reads so many tokens beside the special ones."""

_NAMES: Mapping[str, Encoder] = {
    "clip_l": "text_encoder",
    "text_encoders_0": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_1": "text_encoder_2",
}


def check_embedding_file(where: str, embedding: Embedding) -> None:
    """Refuse an embedding by its file's header, before any model is loaded; nothing is known here of one on the hub.

    Args:
        where: the field that it was given in, such as ``embeddings[0]``.
        embedding: what was given.

    Raises:
        CheckpointError: the file is missing, a pickle, no safetensors file or no embedding.
    """
    file = adapter_file(f"{where}.path", embedding.path)
    if file is not None:
        read_vectors(f"{where}.path", embedding.path, read_header(f"{where}.path", file))


def read_vectors(where: str, path: str, header: Header) -> dict[str, tuple[Encoder | None, int, int]]:
    """The tensors of an embedding's file: for which encoder each is (None for what its width decides), how many
    vectors it has, and of what width.

    Raises:
        CheckpointError: it is no embedding, or one whose encoders get different numbers of vectors.
    """
    shapes = {key: shape if len(shape) == 2 else (1, *shape) for key, shape in header.shapes.items()}
    named = {key: shape for key, shape in shapes.items() if key in _NAMES}
    found = named or (shapes if len(shapes) == 1 else {})
    if not found or set(shapes) - set(found):
        names = ", ".join(sorted(shapes)[:5]) or "none at all"
        fix = f"it must hold clip_l and clip_g, text_encoders_0 and text_encoders_1, or one tensor; it holds {names}"
        raise unusable(where, path, fix, "the file is not a textual inversion")
    for key, shape in found.items():
        if len(shape) != 2 or not 1 <= shape[0] <= MOST_VECTORS or not shape[1]:
            fix = f"{key} has the shape {list(header.shapes[key])}: it must be 1 to {MOST_VECTORS} vectors"
            raise unusable(where, path, fix, "the file is not a textual inversion")
    if len({_NAMES[key] for key in named}) < len(named):
        raise unusable(where, path, f"it names an encoder twice: {', '.join(sorted(named))}", "the file is ambiguous")
    if len({shape[0] for shape in found.values()}) > 1:
        counts = ", ".join(f"{key} {shape[0]}" for key, shape in sorted(found.items()))
        fix = f"both text encoders must get as many vectors, here they get {counts}"
        raise unusable(where, path, fix, "the embedding's two halves do not go together")
    return {key: (_NAMES.get(key), shape[0], shape[1]) for key, shape in found.items()}
