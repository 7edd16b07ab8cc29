"""The floor plan: which way imports run, what the wheel holds, what the package's front door offers."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import get_args

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import consistory_ray

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "consistory_ray"
BESIDE = ("training", "benchmarks", "tests")
MODELS = ("torch", "diffusers", "transformers", "accelerate", "safetensors")


def rooms(*names: str) -> tuple[str, ...]:
    return tuple(f"consistory_ray.{name}" for name in names)


# what comes after a job, in the order in which it flows
LATER = (
    "plan",
    "consistory",
    "miniature",
    "output",
    "engine",
    "watch",
    "cli",
    "evaluation",
    "testing",
    "doctor",
    "review",
    "export",
    "quality",
    "study",
)
# part of the output -> the other parts of it that stand above it
BOOKS = ("assets", "index", "gallery", "resume", "moving", "comparison", "shards", "verify", "run_record")
ABOVE = {
    **dict.fromkeys(("files", "local_files", "driver_files"), ("storage", "lease", *BOOKS)),
    "storage": ("lease", *BOOKS),
    "lease": BOOKS,
    "index": BOOKS[2:],
    "gallery": ("lease.lease", "lease.holders", *BOOKS[3:-1]),
    "run_record": ("lease", *BOOKS[:-1]),
}
# the engine from the ground up: each part may import those before it, and none that stands above it
ENGINE = (
    *("faults", "machine", "stopping", "rendering", "events", "options", "spending", "outages", "inputs"),
    *("scheduling", "cluster", "workers", "packing"),
    *(
        "scoring",
        "takes",
        "ledger",
        "workload",
        "anchor_files",
        "history",
        "dispatching",
        "coordinator",
        "running",
        "casting",
    ),
)
# what stands before the method and calls it
FACE = (
    *("pipeline", "loaded_model", "subjects", "scenes", "results", "inputs", "words"),
    *("watching", "step_callbacks", "generators", "argument_names"),
)
# what decides without Ray, clocks, files or threads
PURELY = (*MODELS, "ray", "time", "datetime", "random", "os", "pathlib", "threading", "asyncio", "concurrent", "socket")

# part of the package -> what it may not import, not even inside a function
FORBIDDEN = {
    "errors": (*MODELS, "ray", "consistory_ray"),
    "guards": (*MODELS, "ray", *rooms("adapters", "concepts", "jobs", "pictures", "settings", *LATER)),
    "adapters": (*MODELS, "ray", *rooms("concepts", "jobs", "pictures", "settings", *LATER)),
    "pictures": (*MODELS, "ray", *rooms("concepts", "jobs", "settings", *LATER)),
    "concepts": (*MODELS, "ray", *rooms("errors", "guards", "adapters", "jobs", "pictures", "settings", *LATER)),
    "settings": (*MODELS, "ray", *rooms("concepts", "jobs", "pictures", *LATER)),
    "jobs": (*MODELS, "ray", *rooms(*LATER)),
    "plan": (*MODELS, "ray", *rooms(*LATER[1:])),
    "consistory": (
        *(
            "ray",
            *rooms("jobs", "plan", "engine", "output", "watch", "cli", "testing", "evaluation", "doctor", "quality"),
        ),
    ),
    "consistory/method": (
        *("ray", "transformers", "diffusers", "accelerate"),
        *rooms("consistory.models", *(f"consistory.{name}" for name in FACE)),
    ),
    "consistory/cache": ("ray", "transformers", "diffusers", *rooms(*(f"consistory.{name}" for name in FACE))),
    "miniature": (
        "ray",
        *rooms("jobs", "plan", "consistory", "engine", "output", "watch", "cli", "testing", "evaluation", "doctor"),
        "consistory_ray.quality",
    ),
    "output": (*MODELS, "ray", *rooms("concepts", "jobs", "settings", *LATER[1:3], *LATER[4:-2], LATER[-1])),
    **{f"output/{part}": rooms(*(f"output.{other}" for other in ABOVE[part])) for part in ABOVE},
    "engine": rooms("watch", "cli", "evaluation", "testing", "doctor"),
    **{f"engine/{part}": rooms(*(f"engine.{other}" for other in ENGINE[n + 1 :])) for n, part in enumerate(ENGINE)},
    "engine/scheduling": (*PURELY, "consistory_ray"),
    "testing": (*MODELS, "ray", *rooms("watch", "cli", "doctor")),
    "watch": (*MODELS, "ray", *rooms("consistory", "cli", "evaluation", "testing", "doctor")),
    "evaluation": ("ray", *rooms("jobs", "plan", "engine", "output", "watch", "cli", "testing", "doctor", "quality")),
    "quality": ("ray", *rooms("jobs", "plan", "consistory", "engine", "output", "watch", "cli", "testing", "doctor")),
    "doctor": ("ray", *rooms("cli", "evaluation", "testing", "quality")),
    "study": (
        *(*MODELS, "ray", *rooms("consistory", "miniature", "engine", "watch", "cli", "testing", "doctor")),
        *rooms("evaluation.consistency", "evaluation.rendering"),
    ),
    "export": (
        *(*MODELS, "ray", *rooms("concepts", "consistory", "miniature", "engine", "watch", "cli", "evaluation")),
        *rooms("testing", "doctor", "review", "study"),
    ),
    "review": (
        *(*MODELS, "ray", *rooms("concepts", "consistory", "miniature", "engine", "watch", "cli", "evaluation")),
        *rooms("testing", "doctor", "export", "study"),
    ),
    "cli": ("ray", *rooms("testing")),
}
# what is allowed nevertheless: arithmetic that needs no model; of the engine its table of faults
PURE = {
    "plan": tuple(
        f"consistory.{part}"
        for part in (
            *("cache.estimates", "models.sdxl_layout", "models.controlnet_checks"),
            *("method.call_counts", "method.steps"),
        )
    ),
    "engine/scheduling": ("engine.faults", "engine.scheduling"),
}
LAZY = ("torch", "diffusers", "transformers", "ray")
SHALLOW = (
    *("quality", "study", "export", "review", "cli", "guards", "adapters", "pictures", "concepts", "jobs", "plan"),
    *("testing", "watch"),
)


def modules(part: str) -> list[Path]:
    """The files of a part: of a room all that is in it."""
    return sorted([*PACKAGE.glob(f"{part}.py"), *(PACKAGE / part).rglob("*.py")])


def imported(path: Path, *, everywhere: bool = True) -> Iterator[str]:
    """Full names of the modules a file imports; only those it imports while being imported, or everywhere."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not everywhere:
            continue
        elif isinstance(node, ast.If) and not everywhere and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("part", FORBIDDEN)
def test_imports_run_one_way(part: str) -> None:
    allowed = rooms(*PURE.get(part, ()))
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(part)
        for name in imported(path)
        if within(name, FORBIDDEN[part]) and not within(name, allowed)
    }
    assert not wrong


def importing(folder: Path, *forbidden: str) -> set[str]:
    """What below a folder imports any of these."""
    return {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in folder.rglob("*.py")
        for name in imported(path)
        if within(name, forbidden)
    }


def test_the_wheel_knows_nothing_that_lies_beside_it() -> None:
    assert not importing(PACKAGE, *BESIDE)


def test_training_needs_the_model_and_its_measures_only() -> None:
    rest = rooms("jobs", "plan", "consistory", "engine", "output", "watch", "cli", "testing", "evaluation.rendering")
    assert importing(ROOT / "training", "consistory_ray.miniature"), "imports are no longer found"
    assert not importing(ROOT / "training", "ray", *rest, *BESIDE[1:])


def test_every_module_belongs_to_a_part_with_rules() -> None:
    known = {path for part in FORBIDDEN for path in modules(part)}
    others = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if path not in known}
    assert others <= {"__init__.py", "__main__.py"}
    assert {path.stem for path in (PACKAGE / "engine").iterdir() if path.stem[0] != "_"} == set(ENGINE)


def test_no_rooms_need_each_other_in_a_circle() -> None:
    known = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in PACKAGE.rglob("*.py")} - {"__init__"}
    graph: dict[str, set[str]] = {room: set() for room in known}
    for room in known:
        targets = (name.split(".") for path in modules(room) for name in imported(path))
        graph[room] = {name[1] for name in targets if name[0] == "consistory_ray" and len(name) > 1} & known - {room}
    assert {"guards", "output"} <= graph["engine"], "imports are no longer found"
    TopologicalSorter(graph).prepare()  # raises CycleError, which lists the circle


def test_no_modules_import_each_other_in_a_circle() -> None:
    def module(path: Path) -> str:
        return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")

    names = {module(path): path for root in (PACKAGE, ROOT / "training") for path in root.rglob("*.py")}
    graph = {
        name: {
            found
            for target in imported(path)
            for found in (target, target.rpartition(".")[0])
            if found in names and found not in (name, "consistory_ray")
        }
        for name, path in names.items()
    }
    assert sum(map(len, graph.values())) > len(names), "imports are no longer found"
    TopologicalSorter(graph).prepare()  # raises CycleError, which lists the circle


def test_only_the_renderer_of_the_engine_knows_torch() -> None:
    wrong = {
        f"{path.name} imports {name}"
        for path in modules("engine")
        for name in imported(path)
        if within(name, MODELS) and path.name != "renderer.py"
    }
    assert not wrong


def test_command_line_and_engine_import_heavy_packages_lazily() -> None:
    wrong = {
        f"{path.name} imports {name}"
        for path in [*(path for part in SHALLOW for path in modules(part)), *modules("engine"), PACKAGE / "__init__.py"]
        for name in imported(path, everywhere=False)
        if within(name, LAZY[:3] if "engine" in path.relative_to(PACKAGE).parts else LAZY)
    }
    assert not wrong


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else() -> None:
    files = {Path(file.distribution_path) for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {path.parts[0] for path in files} == {"consistory_ray"}
    names = {path.as_posix() for path in files}
    assert {"consistory_ray/py.typed", "consistory_ray/miniature/weights/model_index.json"} <= names
    assert "consistory_ray/plan/prices.yaml" in names
    controlnet = {path.name for path in files if path.parent == Path("consistory_ray/miniature/controlnet")}
    assert controlnet == {"config.json", "diffusion_pytorch_model.safetensors"}
    miniature = {path.name for path in files if path.parent == Path("consistory_ray/miniature")}
    code = {"__init__.py", "architecture.py", "judge.py", "vocabulary.py"}
    assert miniature == {*code, "judge.safetensors", "judge-2.safetensors"}, (
        "to render with it and to judge its pictures, not to train it"
    )
    assert any(name.endswith(".safetensors") for name in names)
    assert any(name.endswith(".html.j2") for name in names)
    assert not any(".cache" in name or name.endswith(".pyc") for name in names)


def test_the_source_distribution_can_train() -> None:
    names = {file.distribution_path for file in SdistBuilder(str(ROOT)).recurse_included_files()}
    assert {"training/train.py", "training/drawing/pen.py", "consistory_ray/miniature/judge.py"} <= names


def test_the_front_door() -> None:
    assert consistory_ray.__all__ == [
        *("ConsiStoryPipeline", "AnchorCache"),
        *("RenderJob", "RenderSettings", "Subject", "Anchor", "Scene", "load_job", "parse_job"),
        *("make_plan", "Plan", "SubjectPlan", "Asset", "MethodSettings"),
        *("run_job", "RunOptions", "StopRequest", "RunSummary", "AssetFailure", "Event"),
        *("RunStarted", "SubjectProgress", "WorkerReady", "WorkerLost", "AnchorsReady"),
        *("AssetDone", "AssetFailed", "Notice", "Paused", "Stopping", "RunFinished"),
        *(
            "Problem",
            "ConsistoryError",
            "InputError",
            "JobError",
            "PromptError",
            "CacheMismatchError",
            "CheckpointError",
        ),
        *("RetryableError", "StorageError", "DiskFullError", "AssetError"),
        *("RunError", "OutputBusyError", "OutageError", "ClusterLostError", "RunInterrupted", "RunFailed"),
    ]
    for name in set(consistory_ray.__all__) - {"Event"}:
        assert getattr(consistory_ray, name).__name__ == name
    told = get_args(consistory_ray.Event)
    assert {consistory_ray.RunStarted, consistory_ray.AssetDone, consistory_ray.RunFinished} < set(told)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", consistory_ray.__version__)
    assert set(consistory_ray.__all__) <= set(dir(consistory_ray))
    with pytest.raises(AttributeError, match="nothing"):
        _ = consistory_ray.nothing


def test_the_front_door_is_light() -> None:
    code = (
        "import sys, consistory_ray as c; c.load_job, c.make_plan, c.MethodSettings, c.JobError;"
        "c.run_job, c.RunOptions, c.Event, c.StopRequest;"
        "heavy = {'torch', 'ray', 'diffusers', 'transformers', 'pyarrow', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_top_level_is_as_documented() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout")
    folders = {name.split("/")[0] for name in listed.stdout.splitlines() if "/" in name}
    assert folders <= {
        ".ci",
        "consistory_ray",
        "training",
        "pipelines",
        "cluster",
        "tests",
        "benchmarks",
        "helm",
        "scripts",
        "docs",
    }
    for folder in ("pipelines", "cluster"):
        assert not list((ROOT / folder).rglob("*.py")), f"{folder}/ holds data, not code"


def test_the_texts_name_no_ones_machine() -> None:
    private = re.compile(r"(?<![\w.])/(?:root|srv|work|Users)/[\w.]")
    endings = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".sh", ".j2", ".tpl", ".csv", ""}
    folders = (
        "consistory_ray",
        "training",
        "tests",
        "pipelines",
        "scripts",
        "cluster",
        "helm",
        "benchmarks",
        "docs",
        ".ci",
    )
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in endings]
    paths += [path for path in ROOT.iterdir() if path.suffix in endings]
    wrong = [
        f"{path.relative_to(ROOT)}: {line.strip()[:100]}"
        for path in paths
        if path.is_file() and path != Path(__file__) and not any("cache" in part for part in path.parts[:-1])
        for line in path.read_text(errors="replace").splitlines()
        if private.search(line)
    ]
    assert not wrong
