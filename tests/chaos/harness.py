"""Disturbed runs: coordinators, workers and nodes that are killed on a seeded schedule, and the count of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from consistory_ray.jobs.job import load_job
from consistory_ray.output.lease.holders import current_lease
from consistory_ray.output.storage import OutputStore, open_output
from consistory_ray.plan.plan import Plan, make_plan
from consistory_ray.testing import read_trace
from tests.chaos.hosts import Host, environment
from tests.chaos.witness import last_word
from tests.patience import PATIENCE, SOON

FAKE = "tests.chaos.witness:Witness"
WORKER = "ray::RenderWorker"
PAUSE = 0.05

KILLS: Counter[str] = Counter()
"""What was killed in this session, by kind; printed at its end."""
ASKED: Counter[str] = Counter()
"""What was asked to go, by SIGTERM or a notice, by kind."""
FACTS: list[str] = []
"""What the running scenario has to tell, printed at the end of the session."""


@dataclass
class Cluster:
    """A running Ray cluster, and where its coordinators come from."""

    nodes: Host
    coordinators: Host

    @property
    def address(self) -> str:
        """To be joined at."""
        return str(self.nodes.hello["address"])

    def workers(self) -> list[psutil.Process]:
        """The workers that live now, on whichever node."""
        found = []
        for process in psutil.Process(self.nodes.pid).children(recursive=True):
            try:
                if process.status() != psutil.STATUS_ZOMBIE and process.cmdline()[0].startswith(WORKER):
                    found.append(process)
            except (psutil.Error, IndexError):  # gone meanwhile
                continue
        return found

    def wait_until_gone(self, seconds: float = SOON, pids: Collection[int] | None = None) -> float:
        """Wait until no worker lives any more, or none of these; returns how many of these seconds that took."""
        started = time.monotonic()
        left: list[int] = []
        for now in moments(seconds):
            left = [worker.pid for worker in self.workers() if pids is None or worker.pid in pids]
            if not left:
                return now - started
        raise AssertionError(f"workers outlive their run by more than {seconds:.0f} s: {left}")

    def kill_node(self, seed: int, *, replace: bool = True, pid: int = 0) -> list[int]:
        """SIGKILL a node's raylet, the one of this process if given; another node takes its place.

        Returns:
            Which processes were its children.
        """
        pids: list[int] = self.nodes.ask(do="kill_node", seed=seed, replace=replace, pid=pid)["pids"]
        KILLS["nodes"] += 1
        return pids

    def terminate_node(self, seed: int, *, replace: bool = True) -> None:
        """SIGTERM for a node's raylet; another node takes its place."""
        self.nodes.ask(do="terminate_node", seed=seed, replace=replace)
        ASKED["nodes"] += 1

    def drain_node(self, seed: int, seconds: float) -> None:
        """Announce that a node will be taken away; another one takes its place."""
        self.nodes.ask(do="drain_node", seed=seed, seconds=seconds)
        ASKED["nodes"] += 1

    def remove_drained(self) -> None:
        """The machines are gone that were announced to go."""
        self.nodes.ask(do="remove_drained")

    def add_node(self) -> None:
        """One more node."""
        self.nodes.ask(do="add_node")

    def close(self) -> None:
        """End everything."""
        self.coordinators.close()
        self.nodes.close()


@dataclass
class Coordinator:
    """A process that runs ``consistory-ray render``."""

    pid: int
    log: Path
    host: Host | None
    process: subprocess.Popen[bytes] | None = None
    code: int | None = None

    def wait(self, seconds: float) -> int | None:
        """Its exit code, or None if it still runs after so many seconds."""
        if self.code is None and self.host is not None:
            self.code = self.host.ask(do="wait", pid=self.pid, seconds=seconds)["code"]
        elif self.code is None:
            assert self.process is not None
            with suppress(subprocess.TimeoutExpired):
                self.code = self.process.wait(seconds)
        return self.code

    def kill(self) -> bool:
        """SIGKILL; False if it was over before."""
        if self.code is not None:
            return False
        os.kill(self.pid, signal.SIGKILL)  # nobody else waits for it, so its id is its own until it was waited for
        killed = self.wait(SOON) == -signal.SIGKILL
        KILLS["coordinators"] += killed
        return killed

    def terminate(self, grace: float) -> int | None:
        """SIGTERM; its exit code, None if it takes longer than the grace."""
        if self.code is None:
            os.kill(self.pid, signal.SIGTERM)
            ASKED["coordinators"] += 1
        return self.wait(grace)

    def text(self) -> str:
        """The end of what it printed."""
        return self.log.read_text(errors="replace")[-6000:]


@dataclass
class Run:
    """An output that is rendered again and again until it is complete.

    Attributes:
        cluster: where.
        folder: scratch.
        job: the job file.
        url: the output.
        fake: options of the fake renderer; None renders with the job's own model.
        workers: how many.
        storage: options of an S3 file system; with any, each coordinator is a fresh ``consistory-ray`` process, which
            reads them, as workers do, from fsspec's environment variable.
        met: what was killed at what, for example ``worker at anchors``.
        former: workers that were there before the coordinator that was started last.
    """

    cluster: Cluster
    folder: Path
    job: Path
    url: str
    fake: dict[str, Any] | None = field(default_factory=dict)
    workers: int = 3
    arguments: tuple[str, ...] = ()
    storage: Mapping[str, Any] = field(default_factory=dict)
    starts: int = 0
    number: int = 0
    met: Counter[str] = field(default_factory=Counter)
    former: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        (self.folder / "trace").mkdir(parents=True, exist_ok=True)

    def into_another_output(self) -> None:
        """What was rendered so far is complete: go on with an empty output."""
        self.number += 1
        self.url = f"{self.url.removesuffix(f'-{self.number - 1}')}-{self.number}"

    @property
    def plan(self) -> Plan:
        """Of the job."""
        return make_plan(load_job(str(self.job)))

    @property
    def store(self) -> OutputStore:
        """The output."""
        return open_output(self.url, **self.storage)

    def command(self, **changes: Any) -> list[str]:
        """The command line of a coordinator; ``changes`` are further options of the fake renderer."""
        renderer = []
        if self.fake is not None:
            options = {"trace": str(self.folder / "trace")} | self.fake | changes
            renderer = ["--renderer", FAKE, "--renderer-options", json.dumps(options)]
        return [
            "render", str(self.job), "-o", self.url, "--address", self.cluster.address, "--device", "cpu",
            "--workers", str(self.workers), "--cpus-per-worker", "1", "--no-gallery", *self.arguments, *renderer,
        ]  # fmt: skip

    def start(self, **changes: Any) -> Coordinator:
        """Start a coordinator."""
        self.starts += 1
        self.former = {worker.pid for worker in self.cluster.workers()}
        log = self.folder / f"coordinator-{self.starts}.log"
        if not self.storage:
            host = self.cluster.coordinators
            pid = host.ask(do="start", arguments=self.command(**changes), log=str(log))["pid"]
            return Coordinator(pid, log, host)
        with log.open("wb") as file:
            command = [sys.executable, "-m", "consistory_ray.cli", *self.command(**changes)]
            with_storage = environment() | {"FSSPEC_S3": json.dumps(dict(self.storage))}
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=with_storage)
        return Coordinator(process.pid, log, None, process)

    def finish(self, patience: float = PATIENCE, expect: int = 0, **changes: Any) -> str:
        """Run undisturbed to the end; returns what was printed.

        Args:
            patience: seconds after which it counts as hanging.
            expect: the exit code.
            changes: further options of the fake renderer.
        """
        coordinator = self.start(**changes)
        code = coordinator.wait(patience)
        text = coordinator.log.read_text(errors="replace")
        if code is None:
            os.kill(coordinator.pid, signal.SIGKILL)
            coordinator.wait(SOON)
        assert code == expect, f"it ended with {code}:\n{text[-4000:]}"
        return text

    def other_command(self, *arguments: str, patience: float = PATIENCE) -> tuple[int | None, str]:
        """Exit code and output of another command of ``consistory-ray``."""
        log = self.folder / f"{arguments[0]}.log"
        pid = self.cluster.coordinators.ask(do="start", arguments=list(arguments), log=str(log))["pid"]
        return Coordinator(pid, log, self.cluster.coordinators).wait(patience), log.read_text(errors="replace")

    def calls(self) -> int:
        """How many calls fake renderers have finished so far."""
        return sum(span.kind != "load" for span in read_trace(self.folder / "trace"))

    def experienced(self) -> set[int]:
        """Processes that have finished a call."""
        return {span.pid for span in read_trace(self.folder / "trace") if span.kind != "load"}

    def words(self, pids: Iterable[int]) -> list[str]:
        """What these workers are at, see :func:`~tests.chaos.witness.last_word`."""
        return [last_word(self.folder / "trace", pid) for pid in pids]

    def stage(self, coordinator: Coordinator) -> str:
        """What a coordinator is at: ``starting`` until the output is its own, ``joining`` until a worker of its own is
        there, ``anchors`` while any of them makes anchors, else ``scenes``.
        """
        lease = current_lease(self.store)
        if lease is None or lease.process.pid != coordinator.pid:
            return "starting"
        words = set(self.words(worker.pid for worker in self.cluster.workers() if worker.pid not in self.former))
        return "anchors" if "anchors" in words else "scenes" if words - {"starting"} else "joining"

    def kill(self, coordinator: Coordinator) -> bool:
        """SIGKILL a coordinator; False if it was over before."""
        stage = self.stage(coordinator)
        killed = coordinator.kill()
        self.met[f"coordinator at {stage}"] += killed
        return killed

    def at(self, word: str) -> list[psutil.Process]:
        """The workers that are at this."""
        return [worker for worker in self.cluster.workers() if self.words([worker.pid]) == [word]]

    def kill_node(self, chance: random.Random, wish: str = "") -> None:
        """SIGKILL a node, one with a worker that is at what is wished for if any is; another one takes its place."""
        seed, workers = chance.randrange(100), {worker.pid for worker in self.cluster.workers()}
        pid = next((worker.pid for worker in self.at(wish)), 0)
        victims = workers.intersection(self.cluster.kill_node(seed, pid=pid))
        self.met.update(f"node at {word}" for word in self.words(victims))

    def kill_worker(self, chance: random.Random, wish: str = "") -> bool:
        """SIGKILL a worker: one that is at what is wished for, else mostly one that has done something.

        Returns:
            False if there is none.
        """
        workers = self.cluster.workers()
        if self.fake is not None:
            if wished := self.at(wish):
                workers = wished
            elif chance.random() < 0.8:
                experienced = self.experienced()
                workers = [worker for worker in workers if worker.pid in experienced]
        if not workers:
            return False
        victim = chance.choice(sorted(workers, key=lambda worker: worker.pid))
        try:
            victim.kill()
        except psutil.NoSuchProcess:
            return False
        KILLS["workers"] += 1
        self.met.update(f"worker at {word}" for word in self.words([victim.pid]))
        return True

    def check_met(self, kind: str, *words: str) -> None:
        """Things of this kind were killed at all of these, or the scenario proves less than it says."""
        found = {word: self.met[f"{kind} at {word}"] for word in words}
        FACTS.append(f"{kind}s died at " + ", ".join(f"{word} {times}" for word, times in found.items()))
        assert all(found.values()), f"no {kind} was killed at some of these: {found}"


def moments(seconds: float) -> Iterator[float]:
    """Now and again, for so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield time.monotonic()
        time.sleep(PAUSE)
