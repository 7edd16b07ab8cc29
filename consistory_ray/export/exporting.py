"""An export: every chosen picture becomes one file of a folder, exactly once, whatever ends it in between.

1. Names of all files are made and compared; nothing is there yet.
2. The lease of the folder is taken: two exports at once would write over each other.
3. The journal says which files an earlier export has made. One whose asset, source, options and content are the same
   stays as it is; a file that is nobody's is never overwritten.
4. What is to be made is written down, then made: file first, record after it.
5. Sheets and other products of many pictures follow, then the manifest.

Files of earlier exports that are not asked for any more are listed, and deleted on request.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from consistory_ray.errors import RunInterrupted
from consistory_ray.export.making import Made, Maker, Recipe, Sign, makers, signed
from consistory_ray.export.records import CONTROL, NOT_MADE, Journal, Record, write_manifest
from consistory_ray.export.refusing import refuse_one_name, refuse_own_folders, refuse_strangers
from consistory_ray.export.selection import Selection, Source
from consistory_ray.output.files import bounded_map
from consistory_ray.output.lease.fencing import delete_all, refuse_if_lost
from consistory_ray.output.lease.lease import Lease
from consistory_ray.output.storage import Output, OutputStore, as_store
from consistory_ray.pictures.provenance import TRAINED, source_type

THREADS = 16

Product = Callable[[OutputStore, Sequence[Record]], Iterable[tuple[str, bytes]]]
"""What is made of all pictures together: from the export's folder and the records of the files that are there, in
order, to further files, names and bytes. The same records make the same bytes."""


@dataclass(frozen=True)
class Exported:
    """What came of an export.

    Attributes:
        url: of the folder.
        records: of every picture asked for, and of products, in order.
        written: how many files were written; the others were there.
        left_out: assets without a picture, by index status.
        stale: files of earlier exports that are not asked for any more, and are still there.
        pruned: those that were deleted.
    """

    url: str
    records: tuple[Record, ...]
    written: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    stale: tuple[str, ...] = ()
    pruned: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many files are in each state."""
        return dict(sorted(Counter(record.state for record in self.records).items()))

    @property
    def failures(self) -> list[Record]:
        """What was asked for and is not there."""
        return [record for record in self.records if record.state in NOT_MADE]


def export(
    output: Output,
    target: Output,
    selection: Selection,
    names: Mapping[str, Source],
    recipe: Recipe,
    *,
    sign: Sign | None = None,
    products: Sequence[Product] = (),
    product_names: Sequence[str] = (),
    prune: bool = False,
    processes: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Exported:
    """Write an export.

    Args:
        output: where the pictures are.
        target: the export's folder.
        selection: what is exported.
        names: the name of each file, as :func:`.naming.named` makes them.
        recipe: how a picture becomes a file.
        sign: what signs the files; what it depends on belongs into ``recipe.options.further``.
        products: what is made of all of them.
        product_names: of their files, as far as they are known: what is in their way is told before the first
            picture.
        prune: delete files of earlier exports that are not asked for any more.
        processes: that compute, see :func:`.making.makers`.
        on_progress: is told how many of how many pictures are done.
        should_stop: is asked before every picture whether to stop.

    Raises:
        InputError: the folder is the output's own, holds files of somebody else with these names, or a product would
            have the name of a picture.
        OutputBusyError: another export writes there.
        RunInterrupted: it was stopped; the same command goes on.
        RunError, StorageError: it could not go on; the same command does.
    """
    source, to = as_store(output), as_store(target)
    refuse_own_folders(source, to)
    taken = {name.casefold() for name in names}
    for name in product_names:
        refuse_one_name(name, taken)
    control = OutputStore(to.fs, to.join(CONTROL))
    with Lease.acquire(control, "export") as lease:
        to.sweep_temporaries(older_than_seconds=0)  # nobody else writes here
        journal = Journal(to, lambda: lease.lost)
        there = {file.path: file.size for file in to.list_files() if not file.path.startswith(f"{CONTROL}/")}
        refuse_strangers(there, (*names, *product_names), journal)
        digest = recipe.options.digest()
        waiting = {
            name: one for name, one in names.items() if not _is_made(to, journal.records.get(name), one, digest, there)
        }
        planned = (Record(name, "planned", asset_id=one.asset_id) for name, one in waiting.items())
        journal.add(planned, at_once=True)
        run = _Run(to, journal, lease, should_stop, sign, digest, tuple(names.values()))
        try:
            with makers(source, recipe, min(processes, len(waiting))) as maker:
                written = run.pictures(waiting, maker, len(names), on_progress)
        finally:
            journal.close()
        records = [journal.records[name] for name in names]
        written += run.products(products, records)
        own = {record.file for record in records}
        stale = [
            name
            for name, record in journal.records.items()
            if (name not in own or not record.is_there) and (name in there or to.exists(name))
        ]
        pruned: list[str] = []
        if prune:
            delete_all(to, stale, lambda: lease.lost)
            journal.add((Record(name, "removed") for name in stale if name not in own), at_once=True)
            stale, pruned = [], stale
        gone = [name for name in journal.records if name not in own and name not in stale]
        journal.add(Record(name, "removed") for name in gone)
        head = {
            "output": source.root.rsplit("/", 1)[-1],
            "options": recipe.options.to_dict(),
            "left_out": dict(selection.left_out),
        }
        write_manifest(to, head, records, lambda: lease.lost)
        journal.compact()
    return Exported(to.url, tuple(records), written, selection.left_out, tuple(sorted(stale)), tuple(sorted(pruned)))


class _Run:
    """The writing part of an export that holds the lease."""

    def __init__(
        self,
        to: OutputStore,
        journal: Journal,
        lease: Lease,
        should_stop: Callable[[], bool],
        sign: Sign | None,
        options: str,
        sources: Sequence[Source],
    ) -> None:
        self._to, self._journal, self._lease, self._should_stop = to, journal, lease, should_stop
        self._sign, self._options, self._sources = sign, options, sources

    def pictures(
        self,
        waiting: Mapping[str, Source],
        maker: Maker,
        total: int,
        on_progress: Callable[[int, int], None] | None,
    ) -> int:
        """Make and write pictures; how many were written."""
        done, stopped = total - len(waiting), threading.Event()

        def one(item: tuple[str, Source]) -> Made | None:
            if stopped.is_set() or self._should_stop():
                stopped.set()
                return None
            made = maker(*item)
            if self._sign is not None:
                made = signed(made, [item[1]], self._sign)
            if made.data is not None:
                self._write(made.record.file, made.data)
            self._journal.add([made.record])
            return made

        written = 0
        for made in bounded_map(one, waiting.items(), THREADS):
            if made is None:
                continue
            written += made.data is not None
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        if stopped.is_set():
            raise RunInterrupted(f"stopped with {done} of {total} pictures exported; the same command goes on")
        return written

    def products(self, products: Sequence[Product], records: list[Record]) -> int:
        """Make and write what is of many pictures, and add its records; how many files were written."""
        pictures = [record for record in records if record.is_there]
        names = {record.file.casefold() for record in records}
        written = 0
        for product in products:
            for name, data in product(self._to, pictures):
                refuse_one_name(name, names)
                record, was_written = self._product(name, data)
                written += was_written
                records.append(record)
        return written

    def _product(self, name: str, data: bytes) -> tuple[Record, bool]:
        """Write a product unless it is there; its record, and whether it was written.

        Raises:
            InputError: a file of somebody else has its name.
            AssetError: it could not be signed.
        """
        sign = self._sign if source_type(data) == TRAINED else None
        digest = hashlib.sha256(data).hexdigest()
        record = Record(name, "ok", sha256=digest, size=len(data), unsigned_sha256=digest)
        if sign is not None:
            record, known = replace(record, options=self._options), self._journal.records.get(name)
            if known is not None and (known.unsigned_sha256, known.options) == (digest, self._options):
                record = known  # signed anew it would be another file
        if self._to.exists(name) and self._to.sha256(name) == record.sha256:
            self._journal.add([record])
            return record, False
        refuse_strangers([name] if self._to.exists(name) else [], [name], self._journal)
        if sign is not None:
            data = sign(data, name, self._sources)
            record = replace(record, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        self._journal.add([Record(name, "planned")], at_once=True)
        self._write(name, data)
        self._journal.add([record])
        return record, True

    def _write(self, name: str, data: bytes) -> None:
        refuse_if_lost(lambda: self._lease.lost, f"{name} was not written")
        self._to.write_atomic(name, data)


def _is_made(to: OutputStore, record: Record | None, source: Source, options: str, there: Mapping[str, int]) -> bool:
    """Whether the file of a picture is there, as it would be made now.

    On a disk it is read and compared; on an object store, where nobody writes by accident, its size has to do.
    """
    if record is None or not record.is_there or there.get(record.file) != record.size:
        return False
    same = (record.asset_id, record.source_sha256, record.options) == (source.asset_id, source.sha256, options)
    return same and (not to.is_local or to.sha256(record.file) == record.sha256)


def told(result: Exported) -> dict[str, Any]:
    """JSON-ready, for ``--json``."""
    return {
        "url": result.url,
        "counts": result.counts,
        "written": result.written,
        "left_out": dict(result.left_out),
        "stale": list(result.stale),
        "pruned": list(result.pruned),
        "not_made": [record.to_dict() for record in result.failures],
        "touching": [record.file for record in result.records if record.state == "touches_frame"],
        "manifest": f"{result.url}/manifest.json",
    }
