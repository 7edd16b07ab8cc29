"""What is loaded with a plan's model: LoRAs, embeddings, another VAE, by their content. Pure: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consistory_ray.adapters import file_digest
from consistory_ray.guards.redaction import redacted
from consistory_ray.settings import model_revision

if TYPE_CHECKING:
    from consistory_ray.jobs.adapters import Embedding, LoRA
    from consistory_ray.jobs.job import RenderJob


@dataclass(frozen=True, slots=True)
class PlannedLoRA:
    """A LoRA.

    Attributes:
        path: where workers find it.
        weight: how strongly it acts.
        name: what it is called; it decides nothing.
        content: SHA-256 of its file; of what only the hub knows its id.
    """

    path: str
    weight: float
    name: str
    content: str


@dataclass(frozen=True, slots=True)
class PlannedEmbedding:
    """A textual inversion: where workers find it, the word for it in prompts, and its content as of a LoRA."""

    path: str
    token: str
    content: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is loaded with a model.

    Attributes:
        loras, embeddings: in the order of the job.
        vae: in the place of the model's own, as the job names it.
        vae_content: which weights these are at present; of a hub id the id.
        variant, revision: of the model's files, see :class:`~consistory_ray.jobs.job.RenderJob`.
    """

    loras: tuple[PlannedLoRA, ...] = ()
    embeddings: tuple[PlannedEmbedding, ...] = ()
    vae: str | None = None
    vae_content: str | None = None
    variant: str | None = None
    revision: str | None = None

    def identity(self) -> dict[str, Any]:
        """What of it decides pictures, JSON-ready; empty where there is nothing but the model."""
        fields: dict[str, Any] = {
            "loras": [[lora.content, lora.weight] for lora in self.loras],
            "embeddings": [[embedding.content, embedding.token] for embedding in self.embeddings],
            "vae": self.vae_content,
            "variant": self.variant,
            "hub_revision": self.revision,
        }
        return {name: value for name, value in fields.items() if value}

    def told(self) -> dict[str, Any]:
        """The same for people and other programs, with names and addresses, and no secrets in them."""
        fields: dict[str, Any] = {
            "loras": [
                {"name": lora.name, "path": redacted(lora.path), "weight": lora.weight, "content": lora.content}
                for lora in self.loras
            ],
            "embeddings": [
                {"token": one.token, "path": redacted(one.path), "content": one.content} for one in self.embeddings
            ],
            "vae": None if self.vae is None else redacted(self.vae),
            "variant": self.variant,
            "revision": self.revision,
        }
        return {name: value for name, value in fields.items() if value}

    def words(self) -> str:
        """In a line, empty where there is nothing."""
        loras = [f"LoRA {lora.name} at {lora.weight:g}" for lora in self.loras]
        tokens = [f"embedding {one.token}" for one in self.embeddings]
        named = {"VAE": self.vae, "variant": self.variant, "revision": self.revision}
        return ", ".join([*loras, *tokens, *(f"{name} {value}" for name, value in named.items() if value)])


ALONE = Loaded()
"""Nothing but the model."""


def planned_loading(job: RenderJob) -> Loaded:
    """What a job loads with its model.

    Raises:
        InputError: a file is at a URL and cannot be fetched.
    """
    vae = job.vae
    return Loaded(
        tuple(PlannedLoRA(lora.path, lora.weight, lora.called, _content(lora)) for lora in job.loras),
        tuple(PlannedEmbedding(one.path, one.called, _content(one)) for one in job.embeddings),
        vae,
        None if vae is None else model_revision(vae) or vae,
        job.variant,
        job.revision,
    )


def _content(one: LoRA | Embedding) -> str:
    return one.sha256 or file_digest(one.path) or one.path


def loading_differences(stored: Mapping[str, Any], asked: Loaded) -> str:
    """What a stored subject was made with that a job does not load just so, in words; empty where it is the same.

    What lies on the hub at one time and in a file at another cannot be compared here: workers compare weights.

    Args:
        stored: as :meth:`Loaded.told` has told it.
        asked: what the job loads.
    """
    ours = asked.told()
    for field, key, noun in (("loras", "weight", "LoRAs"), ("embeddings", "token", "embeddings")):
        theirs, mine = (_entries(told.get(field)) for told in (stored, ours))
        if _unlike(theirs, mine, key):
            listed = ", ".join(f"{one.get('name') or one.get('path')} ({one.get(key)})" for one in theirs)
            return f"{noun}: {listed or 'none'}"
    return ""


def _entries(told: Any) -> list[Mapping[str, Any]]:
    return [one for one in told if isinstance(one, Mapping)] if isinstance(told, list) else []


def _unlike(theirs: list[Mapping[str, Any]], mine: list[Mapping[str, Any]], key: str) -> bool:
    if sorted(str(one.get(key)) for one in theirs) != sorted(str(one.get(key)) for one in mine):
        return True
    contents = [{(str(one.get("content")), str(one.get(key))) for one in some} for some in (theirs, mine)]
    known = all(len(content) == 64 and "/" not in content for some in contents for content, _ in some)
    return known and contents[0] != contents[1]
