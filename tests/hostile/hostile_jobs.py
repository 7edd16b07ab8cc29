"""Job files that mean harm, or were damaged: each is made from its number alone, and read as a user's would be.

    python tests/hostile/hostile_jobs.py FOLDER --start 0 --count 1500

Reads each file and plans its job under limits on CPU time and memory, with an eye on everything that this process
opens for writing, connects to or starts. Prints one JSON line per file that is not dealt with properly, and a summary.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from consistory_ray.errors import InputError
from consistory_ray.jobs.job import load_job
from consistory_ray.output.storage import open_output
from consistory_ray.plan.plan import Plan, make_plan

CPU_SECONDS = 10.0
WALL_SECONDS = 60.0
MEMORY_GROWTH = 2 << 30
MAX_MESSAGE = 200_000
MAX_PLANNED = 5_000
BIG = 10 << 20

WORDS = [
    "", " ", "\t\n", "\0", "a\0b", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "//x", "a/../../b", "a/b",
    "a\\..\\b", "C:\\x", "\\\\host\\share", "~", "~root", "$HOME", "%2e%2e%2f", "CON", "con", "aux.png", "nul",
    "COM1", "LPT9.txt", "prn.", "x.", "x ", "-rf", "--help", "a" * 81, "a" * 300, "a" * 5000,
    "\N{FULLWIDTH FULL STOP}" * 2 + "\N{FULLWIDTH SOLIDUS}x", "c\N{CYRILLIC SMALL LETTER A}t", "cafe\u0301",
    "caf\u00e9", "\u202ecat", "\u200bcat", "\ufeffcat", "\N{CAT FACE}", "\u212aitten", "\ud800", "cat\udfff",
    "file:///etc/passwd", "memory://x", "s3://", "simplecache::file:///etc/hosts", "{{7*7}}", "${jndi:x}",
    "<script>", "'; drop table", "anchor-0", "scene-0", "null", "true", "1e5", "0x10", "\x7f", "\x1b[31m",
    "/dev/zero", "/dev/stdin", "/proc/self/mem", "/", "nowhere.safetensors", "a" * 250 + ".png", "..\u2215..",
    "._x", ".hidden",
]  # fmt: skip
NUMBERS = [
    0, -1, 1, 2, 7, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, -1e308, 1e-320, 0.1, -0.0,
    float("nan"), float("inf"), float("-inf"), True, False, 99_999, 100_001,
]  # fmt: skip
KEYS = [
    "name",
    "model",
    "settings",
    "subjects",
    "id",
    "concept",
    "style",
    "subject",
    "anchors",
    "scenes",
    "prompt",
    "seed",
]
KEYS += [
    "count",
    "from",
    "height",
    "freeu",
    "torch_dtype",
    "injection_window",
    "extra",
    "__class__",
    "",
    "\0",
    "concept_token",
]
Made = tuple[str, bytes]


def base_job(draw: random.Random) -> dict[str, Any]:
    """A job that is fine."""
    subjects = []
    for number in range(draw.randint(1, 3)):
        scenes: list[Any] = [
            "in the snow",
            {"id": "sea", "prompt": "at sea", "seed": 4},
            {"prompt": "asleep", "count": 2},
        ]
        subject = {"concept": "cat", "style": "a drawing of", "subject": f"a cat number {number}"}
        subjects.append(subject | {"anchors": ["at home", {"prompt": "outside", "seed": number}], "scenes": scenes})
        if draw.random() < 0.5:
            subjects[-1]["id"] = f"cat-{number}"
    settings = {"seed": 3, "height": 64, "width": 64, "freeu": None, "injection_window": [0.1, 0.5]}
    return {"name": "job", "model": "miniature", "settings": settings, "subjects": subjects}


def hostile_value(draw: random.Random, depth: int = 0) -> Any:
    """Something that does not belong where it is put."""
    kind = draw.random()
    if kind < 0.5:
        return draw.choice(WORDS)
    if kind < 0.75:
        return draw.choice(NUMBERS)
    if kind < 0.8 or depth > 3:
        return None
    if kind < 0.9:
        return [hostile_value(draw, depth + 1) for _ in range(draw.choice([0, 1, 2, 3, 70]))]
    return {draw.choice(KEYS): hostile_value(draw, depth + 1) for _ in range(draw.choice([0, 1, 2, 5]))}


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a value, with each of its keys."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from places(inner)


def mutate(draw: random.Random, job: dict[str, Any]) -> None:
    """Change one place."""
    container, key = draw.choice(list(places(job)) or [(job, "name")])
    action = draw.random()
    if action < 0.55:
        container[key] = hostile_value(draw)
    elif action < 0.65:
        del container[key]
    elif action < 0.8 and isinstance(container, dict):
        container[draw.choice(KEYS)] = hostile_value(draw)
    elif action < 0.9 and isinstance(container, list):
        container.extend([container[key]] * draw.choice([1, 2, 100]))  # the same twice: duplicate ids, twins
    else:
        container[key] = str(container[key]) if draw.random() < 0.5 else [container[key]]


def mutated(draw: random.Random) -> Made:
    """A fine job with a few places changed, as JSON or YAML."""
    job = base_job(draw)
    for _ in range(draw.choice([1, 1, 1, 2, 3, 8])):
        mutate(draw, job)
    return written(draw, job)


def written(draw: random.Random, job: Any) -> Made:
    """A value as a file."""
    if draw.random() < 0.3:
        try:
            text = yaml.dump(job, allow_unicode=draw.random() < 0.5, Dumper=yaml.CSafeDumper)
            return draw.choice([".yaml", ".yml", ".YAML"]), text.encode("utf-8", "surrogatepass")
        except (yaml.YAMLError, UnicodeError):
            pass
    text = json.dumps(job, ensure_ascii=draw.random() < 0.7)
    return draw.choice([".json", ".yaml"]), text.encode("utf-8", "surrogatepass")


def benchmark_layout(draw: random.Random) -> Made:
    """The shared benchmark's layout, damaged."""
    item = {
        "subject": "a cat",
        "concept_token": "cat",
        "settings": ["at home", "outside", "at sea"],
        "style": "a photo of",
    }
    job: dict[str, Any] = {"animals": [dict(item), dict(item, subject="a black cat")], draw.choice(WORDS): [dict(item)]}
    for _ in range(draw.choice([0, 1, 2, 4])):
        mutate(draw, job)
    return written(draw, job)


def csv_table(draw: random.Random) -> Made:
    """A table of prompts with cells of all kinds."""
    columns = ["prompt", "concept", "subject_id", "style", "subject", "kind", "id", "seed", "count"]
    columns = draw.sample(columns, draw.randint(2, len(columns))) if draw.random() < 0.4 else columns
    if draw.random() < 0.1:
        columns.append(draw.choice([*columns, *WORDS]))
    fine = {"prompt": "in the snow", "concept": "cat", "subject": "a cat", "kind": "scene", "style": "", "seed": "1"}
    text = io.StringIO()
    writer = csv.writer(text, delimiter=draw.choice(",,,;\t"))
    writer.writerow(columns)
    for row in range(draw.choice([0, 1, 4, 30])):
        values = fine | {
            "subject_id": f"s{row % 2}",
            "id": f"i{row}",
            "count": "1",
            "kind": draw.choice(["anchor", "scene"]),
        }
        cells = [str(hostile_value(draw)) if draw.random() < 0.1 else values.get(name, "") for name in columns]
        writer.writerow(cells + [""] * draw.choice([0, 0, 0, 1]))
    return ".csv", text.getvalue().encode(draw.choice(["utf-8", "utf-8", "utf-16", "latin-1"]), "replace")


def parquet_table(draw: random.Random) -> Made:
    """A table of prompts with columns of any type."""
    rows = draw.choice([0, 1, 5])
    kinds: list[Callable[[], Any]] = [
        lambda: pa.array([draw.choice(WORDS).encode("utf-8", "replace").decode() for _ in range(rows)]),
        lambda: pa.array(["a cat at sea"] * rows),
        lambda: pa.array([draw.randint(-(2**63), 2**63 - 1) for _ in range(rows)]),
        lambda: pa.array([draw.choice([0.5, 1.0, float("nan"), float("inf"), 1e300]) for _ in range(rows)]),
        lambda: pa.array([[draw.choice(["cat", "", "\0"])] for _ in range(rows)], pa.list_(pa.string())),
        lambda: pa.array([{"a": 1} for _ in range(rows)], pa.struct([("a", pa.int64())])),
        lambda: pa.array([b"\xff\x00" for _ in range(rows)]),
        lambda: pa.array([None] * rows, pa.null()),
        lambda: pa.array([10**18] * rows, pa.timestamp("ns")),
        lambda: pa.array([True] * rows),
    ]
    names = ["prompt", "concept", *draw.sample(["subject_id", "style", "subject", "kind", "id", "seed", "count"], 4)]
    if draw.random() < 0.1:
        names.append(draw.choice(["prompt", "x", ""]))
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([draw.choice(kinds)() for _ in names], names=names), buffer)
    return ".parquet", cut(draw, buffer.getvalue()) if draw.random() < 0.3 else buffer.getvalue()


def cut(draw: random.Random, data: bytes) -> bytes:
    """Bytes with some missing or wrong."""
    if draw.random() < 0.5 or not data:
        return data[: draw.randrange(len(data) + 1)]
    changed = bytearray(data)
    for _ in range(draw.choice([1, 5, 50])):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def damaged(draw: random.Random) -> Made:
    """A fine file with bytes missing or wrong."""
    suffix, data = written(draw, base_job(draw))
    return suffix, cut(draw, data)


def garbage(draw: random.Random) -> Made:
    """Bytes of no meaning."""
    data = draw.randbytes(draw.choice([0, 1, 10, 5000]))
    magic = draw.choice(
        [b"", b"", b"PAR1", b"\x89PNG\r\n", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"- ", b"%YAML 9.9\n---\n"]
    )
    return draw.choice([".yaml", ".json", ".csv", ".parquet", ".exe", "", ".yaml.gz"]), magic + data


def bomb(draw: random.Random) -> Made:
    """Small files that would become large: aliases of aliases, deep nesting, endless keys and digits."""
    depth = draw.choice([40, 500, 20_000])
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
    kinds: list[Made] = [
        (".yaml", f"a0: &a0 [lol, lol]\n{levels}\nname: x\nsubjects: *a11\n".encode()),
        (".yaml", b"subjects: &s [*s, *s]\n"),
        (".yaml", b"&x {name: *x}\n"),
        (".yaml", ("[" * depth + "]" * depth).encode()),
        (".json", ("[" * depth + "]" * depth).encode()),
        (".json", ('{"subjects":' * depth + "1" + "}" * depth).encode()),
        (".yaml", ("name: x\n" + "\n".join("  " * n + "k:" for n in range(min(depth, 2000)))).encode()),
        (".json", b'{"settings": {"seed": ' + b"9" * 100_000 + b"}}"),
        (".yaml", b"settings: {seed: " + b"9" * 100_000 + b"}\n"),
        (".json", b"{" + b",".join(b'"k%d":1' % n for n in range(50_000)) + b"}"),
        (".yaml", b"name: !!python/object/apply:os.system ['true']\n"),
        (".yaml", b"name: !!binary gIGC\nsubjects: !!set {a, b}\n"),
        (".yaml", b"<<: {a: 1}\nname: x\n"),
        (".yaml", b"--- 1\n--- 2\n" * 100),
        (".yaml", b"? [a, b]\n: c\n"),
        (".yaml", b"name: " + b"&a " * 1000 + b"x\n"),
        (".csv", b"prompt,concept\n" + b'"' * 99_999),
        (".csv", b"," * 200_000),
    ]
    return draw.choice(kinds)


def big(draw: random.Random) -> Made:
    """Texts of ten megabytes, and lists of a hundred thousand, in places that take texts and lists."""
    job = base_job(draw)
    container, key = draw.choice(list(places(job)))
    text = draw.choice(["x", "../", "cat ", "\N{CAT FACE}", "\\u0000", "9"])
    container[key] = draw.choice(
        [text * (BIG // len(text)), [text] * 100_000, [{"prompt": 5}] * 50_000, {text * BIG: 1}]
    )
    if draw.random() < 0.3:
        return ".csv", b"prompt,concept\n" + (text * (BIG // len(text))).encode() + b",cat\n"
    return written(draw, job)


def model_named(draw: random.Random) -> Made:
    """Models as people, and people who mean harm, name them."""
    job = base_job(draw)
    head = draw.choice(["", "", "/", "~/", "./", "file:", "file:///", "local:", "s3://", "https://", "hf://", "zip://"])
    body = draw.choice(["", "x", "a/b", "a" * 256, "a/" * 300, "etc/shadow", "dev/zero", "proc/self/mem", "a--b", ".."])
    job["model"] = head + body + draw.choice(["", "", ".ckpt", ".gguf", ".safetensors", ".git", "/", "\0"])
    return written(draw, job)


def odd_columns(draw: random.Random) -> Made:
    """Parquet with types that no prompt, number or name has, and with values that Python has no types for."""
    kinds = [pa.timestamp("ms"), pa.timestamp("ns", "Nowhere/City"), pa.date64(), pa.duration("us"), pa.time64("ns")]
    columns: dict[str, Any] = {"prompt": ["a cat", "a cat at home", "a cat at sea"], "concept": ["cat"] * 3}
    for name in draw.sample(["seed", "count", "id", "style", "prompt", "concept", "subject_id", "notes"], 2):
        number = draw.choice([0, 2**62, -(2**62), 1])
        columns[name] = draw.choice(
            [
                pa.array([number] * 3, pa.int64()).view(draw.choice(kinds)),
                pa.array([b"\xff\0", None, b"x"]),
                pa.array([{"a": 1}, None, {"a": 2}]),
                pa.array([[["x"]], None, []]),
                pa.array([float("nan"), float("inf"), 1e300]),
                pa.array(["x" * 5_000_000, "", None]),
                pa.array([None] * 3),
            ]
        )
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return ".parquet", stream.getvalue()


MAKERS: list[tuple[Callable[[random.Random], Made], float]] = [
    (mutated, 60), (benchmark_layout, 7), (csv_table, 10), (parquet_table, 8),
    (damaged, 6), (garbage, 4), (bomb, 4), (big, 1), (model_named, 3), (odd_columns, 4),
]  # fmt: skip


def make(number: int) -> tuple[str, str, bytes]:
    """The file of a number: what kind it is, its ending, its content."""
    draw = random.Random(f"hostile job {number}")
    maker = draw.choices([maker for maker, _ in MAKERS], [weight for _, weight in MAKERS])[0]
    return maker.__name__, *maker(draw)


class TookTooLong(BaseException):
    """Nothing catches it."""


class Watch:
    """What this process writes to, connects to and starts while it is armed."""

    _EVENTS = (
        "socket.connect",
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.link",
    )

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.armed = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "open":
            path, mode, flags = (*arguments, None, None)[:3]
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if (writes or set(str(mode)) & set("wxa+")) and "__pycache__" not in str(path):
                self.seen.append(f"open {path!r}"[:200])
        elif event.startswith(self._EVENTS):
            self.seen.append(f"{event} {arguments!r}"[:200])


@contextmanager
def limited() -> Iterator[None]:
    """CPU time, and time of any kind, for one file."""

    def stop(number: int, frame: object) -> None:
        raise TookTooLong(f"more than {CPU_SECONDS if number == signal.SIGPROF else WALL_SECONDS} s")

    signal.signal(signal.SIGPROF, stop)
    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def fault_of(path: Path, output: str) -> tuple[str, str]:
    """What became of a file, ``planned`` or ``refused``, and what is wrong with that, if anything is."""
    try:
        with limited():
            plan = make_plan(load_job(str(path)))
    except InputError as error:
        return "refused", fault_of_refusal(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "broken", f"{type(error).__name__}: {error}"[:2000]
    return "planned", fault_of_plan(plan, output)


def fault_of_refusal(error: InputError) -> str:
    """What a message lacks: it names a place and what to do, is short enough to read, and can be shown anywhere."""
    if not error.problems:
        return f"names no field: {error}"
    if not all(problem.path and problem.fix for problem in error.problems):
        return f"a problem without place or fix: {error.problems}"
    text = str(error)
    if len(text) > MAX_MESSAGE:
        return f"a message of {len(text)} characters"
    odd = [character for character in text if not character.isprintable() and character != "\n"]
    return f"unprintable {odd[0]!r} in the message: {text[:500]!r}" if odd else ""


def fault_of_plan(plan: Plan, output: str) -> str:
    """A path that leaves the output, is somebody else's too, or cannot be a file name."""
    store = open_output(output)
    root = PurePosixPath(store.root)
    taken: set[str] = set()
    for number, path in enumerate(paths_of(plan)):
        if number > MAX_PLANNED:
            break
        full = store.join(path)
        if os.path.normpath(full) != full or root not in PurePosixPath(full).parents:
            return f"{path!r} leaves the output"
        if path.casefold() in taken:
            return f"{path!r} is there twice"
        if any(len(part.encode()) > 150 for part in path.split("/")):
            return f"{path!r} is too long"
        taken.add(path.casefold())
    return ""


def paths_of(plan: Plan) -> Iterator[str]:
    for subject in plan.subjects:
        yield subject.cache_path
    for asset in plan.assets():
        yield asset.path


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=1500)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    output = str(options.folder / "output")
    for number in range(30):  # imports, regular expressions and schemas are built on first use
        path = options.folder / f"warm{make(number)[1]}"
        path.write_bytes(make(number)[2])
        fault_of(path, output)
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own + MEMORY_GROWTH, own + MEMORY_GROWTH))
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch, counts, slowest = Watch(), Counter[str](), (0.0, -1)
    for number in range(options.start, options.start + options.count):
        kind, suffix, data = make(number)
        path = options.folder / f"job{suffix}"
        path.write_bytes(data)
        cpu = time.process_time()
        watch.armed = True
        outcome, fault = fault_of(path, output)
        watch.armed = False
        path.unlink()
        slowest = max(slowest, (round(time.process_time() - cpu, 2), number))
        if watch.seen:
            fault = f"{fault}; touched {watch.seen[:3]}"
            watch.seen.clear()
        counts[f"{kind} {outcome}"] += 1
        if fault:
            print(json.dumps({"number": number, "kind": kind, "outcome": outcome, "fault": fault}), flush=True)
    left = sorted(
        str(path.relative_to(options.folder)) for path in options.folder.rglob("*") if "warm" not in path.name
    )
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began) / 2**10
    print(json.dumps({"files": options.count, "left": left, "slowest": slowest, "grown_mb": round(grown), **counts}))


if __name__ == "__main__":
    main()
