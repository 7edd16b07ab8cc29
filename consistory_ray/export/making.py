"""Making one exported file: source bytes to file bytes and what is known of them, in this process or in others.

Matting takes seconds of one core, so pictures that are cut out are made in a pool of processes. Those compute and write
nothing: a process that outlives a killed export can do no harm, and ends as soon as it notices.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from consistory_ray.errors import AssetError, RunError
from consistory_ray.export.encoding import encoded, opened
from consistory_ray.export.options import PictureOptions
from consistory_ray.export.own_code import rejection
from consistory_ray.export.pictures import NotCutOutError, Step
from consistory_ray.export.records import Record
from consistory_ray.export.selection import Source
from consistory_ray.export.steps import steps
from consistory_ray.output.storage import MissingFileError, OutputStore, UnfitFileError
from consistory_ray.pictures.provenance import TRAINED, source_type

Sign = Callable[[bytes, str, Sequence[Source]], bytes]
"""From the bytes of an unsigned file, its name and what it was made of to those of a signed one, of the same format."""


@dataclass(frozen=True)
class Recipe:
    """How files are made of pictures; it can be sent to other processes.

    Attributes:
        options: what is asked for.
        marks: steps at the end of the others, see :mod:`.steps`. What they depend on belongs into
            ``options.further``.
        checks: names of functions that look at each picture as it was rendered, and may reject it. They belong into
            ``options.further``, too.
    """

    options: PictureOptions
    marks: tuple[Step, ...] = ()
    checks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """A finished file: its bytes, and its record; of a picture that could not be made no bytes."""

    record: Record
    data: bytes | None = None


def make(store: OutputStore, recipe: Recipe, file: str, source: Source) -> Made:
    """Read a picture and make its file. Writes nothing.

    Raises:
        StorageError: the output cannot be read now, which says nothing of the picture.
    """
    record = partial(
        Record,
        file,
        asset_id=source.asset_id,
        subject=source.subject,
        scene=source.scene,
        take=source.take,
        source=source.path,
        source_sha256=source.sha256,
        options=recipe.options.digest(),
    )
    try:
        picture = opened(source, _read(store, source))
        if recipe.checks and (reason := rejection(picture, recipe.checks)):
            return Made(record(state="rejected", note=reason))
        for step in steps(recipe.options, recipe.marks):
            picture = step(picture)
        data = encoded(picture, recipe.options)
    except NotCutOutError as error:
        return Made(record(state=error.state, note=str(error)))
    except AssetError as error:
        return Made(record(state="failed", note=str(error)))
    done = record(
        state="touches_frame" if any(note.startswith("touches") for note in picture.notes) else "ok",
        sha256=(digest := hashlib.sha256(data).hexdigest()),
        size=len(data),
        unsigned_sha256=digest,
        width=picture.image.width,
        height=picture.image.height,
        box=_four(picture.box),
        placed=_four(picture.placed),
        note="; ".join(picture.notes),
    )
    return Made(done, data)


def signed(made: Made, sources: Sequence[Source], sign: Sign) -> Made:
    """A finished file with its signature. Done in the process that holds the key, and in no other."""
    if made.data is None:
        return made
    if source_type(made.data) != TRAINED:
        note = "not signed: it was given, not made by the run"
        return replace(made, record=replace(made.record, note="; ".join(filter(None, (made.record.note, note)))))
    try:
        data = sign(made.data, made.record.file, sources)
    except AssetError as error:
        known = made.record
        kept = {name: getattr(known, name) for name in ("asset_id", "subject", "scene", "take", "source", "options")}
        return Made(Record(known.file, "failed", source_sha256=known.source_sha256, note=str(error), **kept))
    return Made(replace(made.record, sha256=hashlib.sha256(data).hexdigest(), size=len(data)), data)


def _four(box: object) -> tuple[int, int, int, int]:
    left, top, width, height = (getattr(box, name) for name in ("left", "top", "width", "height"))
    return int(left), int(top), int(width), int(height)


def _read(store: OutputStore, source: Source) -> bytes:
    try:
        return store.read(source.path)
    except (MissingFileError, UnfitFileError) as error:
        advice = "run `consistory-ray verify --repair` on the output, then render again"
        raise AssetError(f"{error}: {advice}") from error


Maker = Callable[[str, Source], Made]


@contextmanager
def makers(store: OutputStore, recipe: Recipe, processes: int) -> Iterator[Maker]:
    """What makes files; it may be called from several threads.

    Args:
        store: the output.
        recipe: how.
        processes: how many others compute; 0 for this one alone.
    """
    if not processes:
        yield partial(make, store, recipe)
        return
    # spawned: this process has threads, which do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:

        def made(file: str, source: Source) -> Made:
            try:
                return pool.submit(make, store, recipe, file, source).result()
            except BrokenProcessPool as error:
                advice = "if it ran out of memory, use fewer --workers; the same command goes on"
                raise RunError(f"a process that cut out pictures has died: {advice}") from error

        try:
            yield made
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Leave as soon as the process that started this one is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; the parent decides
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
