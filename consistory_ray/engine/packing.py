"""Stored subjects packed for another profile: what its scenes do not read goes, and the rest is packed by a codec.

The cache is written first, its checksum then, and ``subject.json`` last: whoever takes the subject up with ``from:``
finds the old one or the new one, whole. Memory holds the new cache, and of the old one what is read at the moment: it
is mapped from its file, a remote one from a copy in the folder for temporary files.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consistory_ray.engine.workers.anchor_store import checksum_path, save_cache, stored_digest
from consistory_ray.errors import InputError, Problem, StorageError
from consistory_ray.guards.choices import CacheCodec, Profile
from consistory_ray.guards.places import place_of
from consistory_ray.jobs.allowlist import check_allowed
from consistory_ray.jobs.stored_subjects import SUBJECT_FILE, packed_words, read_stored, stored_folder
from consistory_ray.output.storage import OutputStore, open_output

if TYPE_CHECKING:
    from consistory_ray.consistory.cache.anchor_cache import AnchorCache

_BLOCK = 8 << 20
_FILE = ".safetensors"


@dataclass(frozen=True, slots=True)
class PackedSubject:
    """What became of a cache.

    Attributes:
        source, output: addresses of the files.
        profile: whose scenes it is for; None for settings of its own.
        codec: how it is packed.
        bytes_before, bytes_after: of the files.
        sha256: of the new one.
    """

    source: str
    output: str
    profile: str | None
    codec: str
    bytes_before: int
    bytes_after: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


def pack_subject(
    address: str,
    output: str | None,
    *,
    profile: Profile,
    codec: CacheCodec | None = None,
    in_place: bool = False,
) -> PackedSubject:
    """Pack a stored subject, or a cache that lies alone.

    Args:
        address: a stored subject's folder, or a cache's file; paths or fsspec URLs.
        output: a folder without a subject, or for a cache that lies alone a file; None with ``in_place``.
        profile: whose scenes it is for.
        codec: how it is packed; None is the profile's.
        in_place: the old cache is replaced. A run that goes on there makes the subject's anchors again.

    Raises:
        InputError: the addresses cannot be used; :class:`CacheMismatchError` where the cache lacks what the profile
            reads. Nothing was written then.
        StorageError: the cache is damaged, or the storage failed.
    """
    source = _Source.of(address)
    target = _target(source, output, in_place)
    with _on_disk(source) as (path, digest):
        if source.sha256 and digest != source.sha256:
            raise StorageError(f"{source.url} is damaged: its SHA-256 is not the one that is written beside it")
        before = path.stat().st_size
        buffer, sha256, cache = _packed(path, profile, codec)
        store, name = target
        file = name or f"{sha256[:16]}{_FILE}"
        if source.record is None and not source.has_checksum:
            store.write_atomic(file, buffer.data)
        else:
            save_cache(store, file, buffer, sha256)
        if source.record is not None:
            words = packed_words(source.record, cache.settings, file, sha256, buffer.nbytes)
            store.write_atomic(SUBJECT_FILE, words)
        if in_place and file != source.file:
            store.delete(checksum_path(source.file))  # a cache without a checksum is no cache
            store.delete(source.file)
    url = f"{store.url}/{file}"
    return PackedSubject(source.url, url, cache.settings.profile, cache.codec, before, buffer.nbytes, sha256)


@dataclass(frozen=True, slots=True)
class _Source:
    """A cache's file in a folder, with its checksum if one is known, and what ``subject.json`` says if it is its."""

    store: OutputStore
    file: str
    sha256: str
    has_checksum: bool
    record: Mapping[str, Any] | None

    @property
    def url(self) -> str:
        return f"{self.store.url}/{self.file}"

    @classmethod
    def of(cls, address: str) -> _Source:
        check_allowed("CACHE", stored_folder(address))
        file = address.strip().rpartition("/")[2] if address.strip().endswith(_FILE) else ""
        store = open_output(stored_folder(address))
        if not file or store.exists(SUBJECT_FILE):
            record = read_stored("CACHE", address)[1]
            held = str(record["cache"]["file"])
            if file in ("", held):
                return cls(store, held, str(record["cache"]["sha256"]), True, record)
        digest = stored_digest(store, file)
        return cls(store, file, digest, bool(digest), None)


def _target(source: _Source, output: str | None, in_place: bool) -> tuple[OutputStore, str]:
    """Where the new cache goes; its name, where that is not made of its content."""
    if (output is None) is not in_place:
        problem = Problem("--output", "" if output is None else output, "give either --output, or --in-place")
        raise InputError("where should the packed cache go?", [problem])
    alone = source.record is None
    if output is None:
        return source.store, source.file if alone else ""
    check_allowed("--output", output)
    if output.endswith(_FILE) is not alone:
        fix = f"give a file *{_FILE}, as there is no {SUBJECT_FILE} beside the cache" if alone else "give a folder"
        raise InputError("the output does not fit the cache", [Problem("--output", output, fix)])
    folder, _, name = output.strip().rpartition("/") if alone else (output, "", "")
    store = open_output(folder or ".")
    if store.exists(name or SUBJECT_FILE):
        problem = Problem("--output", output, "give another place, or pack that one with --in-place")
        raise InputError("there is a cache already", [problem])
    return store, name


@contextmanager
def _on_disk(source: _Source) -> Iterator[tuple[Path, str]]:
    """The cache's file on this machine, and its SHA-256; a remote one is copied, a few megabytes at a time."""
    place = place_of(source.url)
    with tempfile.TemporaryDirectory(prefix="consistory-pack-") as folder:
        path = Path(place.path) if place.is_local else Path(folder) / source.file
        digest = hashlib.sha256()
        try:
            with place.open() as stream, path.open("rb" if place.is_local else "wb") as copy:
                while block := stream.read(_BLOCK):
                    digest.update(block)
                    if not place.is_local:
                        copy.write(block)
        except Exception as error:  # every kind of storage has errors of its own
            raise StorageError(f"could not read {source.url}: {error}") from error
        yield path, digest.hexdigest()


def _packed(path: Path, profile: Profile, codec: CacheCodec | None) -> tuple[Any, str, AnchorCache]:
    """The new cache's bytes and their SHA-256; and the cache, whose tensors are gone."""
    from consistory_ray.consistory.cache.anchor_cache import AnchorCache
    from consistory_ray.consistory.cache.contents import packed_for

    old = AnchorCache.load(path)
    settings = old.settings.with_profile(profile)
    new = packed_for(old, settings if codec is None else settings.replace(cache_codec=codec))
    return *new.into_buffer(), new
