"""Which worker is at home with which subject, and of which subjects scenes can be taken."""

from __future__ import annotations

from collections.abc import Iterable

from consistory_ray.engine.scheduling.work import KnownWorker, OpenSubject, State


class Homes:
    """Two lists that are always true, so that nobody has to look through all subjects.

    Attributes:
        takeable: the subjects of which scenes can be taken, by id.
        ownerless: those of them that no worker is at home with.
    """

    def __init__(self) -> None:
        self.takeable: dict[str, OpenSubject] = {}
        self.ownerless: dict[str, OpenSubject] = {}

    def move(self, worker: KnownWorker, home: OpenSubject | None) -> None:
        """A worker is at home with another subject from now on, or with none."""
        before, worker.home = worker.home, home
        if before is not None:
            before.homes.discard(worker.name)
            self.file(before)
        if home is not None:
            home.homes.add(worker.name)
            self.file(home)

    def file(self, subject: OpenSubject) -> None:
        """Keep the lists true, after anything that decides it has changed."""
        own = subject.work.subject_id
        takeable = subject.state is State.READY and subject.takeable > 0
        for shelf, belongs in ((self.takeable, takeable), (self.ownerless, takeable and not subject.homes)):
            if belongs:
                shelf[own] = subject
            else:
                shelf.pop(own, None)


def largest_first(subjects: Iterable[OpenSubject], node: str, batch_size: int) -> list[OpenSubject]:
    """Those with the most left first, but before them those of which the machine has the cache and a batch is left."""

    def preference(subject: OpenSubject) -> tuple[bool, int]:
        return node in subject.nodes and subject.takeable >= batch_size, subject.takeable

    return sorted(subjects, key=preference, reverse=True)
