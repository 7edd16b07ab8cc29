"""The command lines in manifests, notes and cluster files are ones that our CLI, and those of others, understand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helm.rendering import CHART, ROOT, VALUE_SETS, merged, render, value_set

cli = pytest.importorskip("consistory_ray.cli.app")
typer_main = pytest.importorskip("typer.main")


def parse(words: list[str]) -> dict[str, Any]:
    """Parameters as the real command line parser understands them; nothing is run."""
    program, command, *arguments = words
    assert program == "consistory-ray"
    group = typer_main.get_command(cli.app)
    with group.make_context(program, [command, *arguments]) as context:
        found = group.get_command(context, command)
        assert found is not None, f"there is no command {command}"
        with found.make_context(command, list(arguments), parent=context) as inner:
            return dict(inner.params)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_the_runs_command_line_is_understood(name: str) -> None:
    values = value_set(name)
    rendered = render(values)
    parameters = parse(rendered.command)
    assert parameters["output"] == values["output"]["url"]
    assert parameters["address"] == "auto"
    assert parameters["job"] == values["job"].get("url", "/etc/consistory/job/job.yaml")
    has_gpus = any("nvidia.com/gpu" in str(pod["containers"][0]["resources"]) for _, pod in rendered.pod_specs())
    assert parameters["device"] == ("cuda" if has_gpus else "cpu")
    assert parameters["workers"] >= 1


def test_extra_arguments_are_understood() -> None:
    values = merged(value_set("minimal"), {"run": {"extraArgs": ["--batch-size", "4", "--no-gallery"]}})
    parameters = parse(render(values).command)
    assert parameters["batch_size"] == 4
    assert parameters["gallery"] is False


def test_commands_in_notes_and_documents_are_understood() -> None:
    texts = [render(value_set("minimal")).notes]
    for path in (ROOT / "docs" / "kubernetes.md", *sorted((ROOT / "cluster").glob("*.yaml"))):
        texts.append(re.sub(r"\\\n[#\s]*", " ", path.read_text()))
    found = re.findall(r"(consistory-ray (?:validate|plan|render|status|gallery|schema) [^\n'`#|]*)", "\n".join(texts))
    assert len(found) >= 6
    for line in found:
        parse(shlex.split(line))


def test_the_job_file_of_the_minimal_set_is_a_job(tmp_path: Path) -> None:
    job = pytest.importorskip("consistory_ray.jobs.job")
    for name in VALUE_SETS:
        definition = value_set(name)["job"].get("definition")
        if definition:
            path = tmp_path / f"{name}.yaml"
            path.write_text(definition)
            assert job.load_job(str(path)).name == "quickstart"


def test_the_hub_command_knows_the_options_of_the_init_container() -> None:
    pytest.importorskip("huggingface_hub")
    script = (CHART / "files" / "prefetch.sh").read_text() + (ROOT / "cluster" / "Dockerfile").read_text()
    used = set(re.findall(r"(--(?:revision|include|exclude|quiet))\b", script))
    done = subprocess.run(
        [Path(sys.executable).with_name("hf"), "download", "--help"], capture_output=True, text=True, timeout=120
    )
    if done.returncode != 0:
        pytest.skip("the hub's command line is not installed")
    assert used and all(option in done.stdout for option in used)


@pytest.mark.parametrize(
    ("revision", "named"),
    [
        ("main", None),
        ("462165984030d82259a11f4367a4eed129e94a7b", "462165984030d82259a11f4367a4eed129e94a7b"),
        ("v1", "abc"),
    ],
)
def test_the_init_container_downloads_data_and_names_the_revision(
    tmp_path: Path, revision: str, named: str | None
) -> None:
    """Runs the real script, with a stand-in for the hub's command that writes down what it was asked for."""
    stand_in = tmp_path / "bin" / "hf"
    stand_in.parent.mkdir()
    stand_in.write_text(
        '#!/bin/bash\nprintf "%s\\n" "$@" > "$HF_HOME/asked"\n'
        'mkdir -p "$HF_HOME/hub/models--org--model/refs"\nprintf abc > "$HF_HOME/hub/models--org--model/refs/v1"\n'
    )
    stand_in.chmod(0o755)
    (tmp_path / "trap.json").touch()  # a file that an unquoted pattern would catch
    environment = {
        "PATH": f"{stand_in.parent}:{os.environ['PATH']}",
        "HF_HOME": str(tmp_path),
        "HOSTNAME": "pod-1",
        "MODEL": "org/model",
        "REVISION": revision,
        "INCLUDE": "*.json *.safetensors",
        "EXCLUDE": "",
    }
    script = (CHART / "files" / "prefetch.sh").read_text()
    for _ in range(2):  # a second pod finds everything there
        subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", script], check=True, cwd=tmp_path, env=environment, timeout=60
        )
    asked = (tmp_path / "asked").read_text().split("\n")
    assert asked[:4] == ["download", "org/model", "--revision", revision]
    assert asked[4:-1] == ["--include", "*.json", "--include", "*.safetensors", "--quiet"]
    main = tmp_path / "hub" / "models--org--model" / "refs" / "main"
    assert (main.read_text() if main.exists() else None) == named


def test_ray_knows_the_command_of_the_pre_stop_hook() -> None:
    ray_scripts = pytest.importorskip("ray.scripts.scripts")
    script = render(value_set("minimal")).cluster_spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    words = shlex.split(script["lifecycle"]["preStop"]["exec"]["command"][-1])
    arguments = words[2 : words.index("&")]
    with ray_scripts.drain_node.make_context("drain-node", arguments) as context:
        assert context.params["deadline_remaining_seconds"] == 90
    assert words[:2] == ["ray", "drain-node"]
