"""Dockerfile, compose file, and the configurations of `ray up`."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
RAY_CLUSTERS = sorted(CLUSTER.glob("ray-cluster-*.yaml"))


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of the Dockerfile's instructions, comments dropped and lines joined."""
    lines = "\n".join(line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", lines)
    return [(words[0], words[1]) for line in joined.splitlines() if len(words := line.split(None, 1)) == 2]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions of each stage, by its name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, arguments in instructions():
        if name == "FROM":
            current = found.setdefault(arguments.split(" AS ")[1], [])
        elif found:
            current.append((name, arguments))
    return found


def test_there_is_no_python_in_cluster() -> None:
    assert not list(CLUSTER.rglob("*.py"))


def test_hadolint_has_nothing_to_say() -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if (hadolint := shutil.which("hadolint", path=path)) is None:
        pytest.skip("hadolint is not installed: it comes with the extra `dev`")
    command = [hadolint, "--no-color", CLUSTER / "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_all_targets_end_in_a_user_without_rights_and_without_build_tools() -> None:
    found = stages()
    for target in ("cpu", "cuda"):
        assert target in found
        for name, arguments in found[target]:
            assert name in ("COPY", "ENV"), f"{name} {arguments}: the last stage only copies"
    assert found["ray-up"][-1] == ("USER", "1000:1000")
    runtime = found["runtime"]
    assert ("USER", "1000:1000") in runtime
    assert [name for name, _ in runtime].index("USER") > [name for name, _ in runtime].index("RUN")
    (run,) = [arguments for name, arguments in runtime if name == "RUN"]
    assert "pip uninstall --yes --quiet pip" in run
    for tool in ("gcc", "build-essential", "git", "curl"):
        assert tool not in run
    assert any(name == "HEALTHCHECK" for name, _ in runtime)


def test_the_base_is_pinned_by_an_argument_and_nothing_else_is_pulled() -> None:
    images = [arguments.split(" AS ")[0] for name, arguments in instructions() if name == "FROM"]
    external = {image for image in images if image not in stages()}
    assert external == {"${PYTHON_IMAGE}${PYTHON_DIGEST:+@${PYTHON_DIGEST}}"}


def test_only_wheels_at_tested_versions_are_installed() -> None:
    runs = [part for name, arguments in instructions() if name == "RUN" for part in arguments.split("&&")]
    installs = [part for part in runs if re.search(r"\bpip (--python \S+ )?install ", part)]
    assert len(installs) == 5
    for install in installs:
        assert "--only-binary=:all:" in install
        assert "--constraint /constraints.txt" in install


def test_torchs_cpu_build_comes_from_its_index_alone_and_all_else_from_the_usual_one() -> None:
    """PyTorch's index lacks torch's dependencies at the pinned versions; beside another it would only be an offer."""
    torch, rest = [arguments for name, arguments in stages()["venv-cpu"] if name == "RUN"]
    assert torch.endswith('--no-deps --index-url "${TORCH_INDEX}" torch')
    assert "index" not in rest


def test_the_launchers_image_has_what_the_launcher_calls() -> None:
    """Read from Ray itself: which programs it runs inside containers, and on the head to reach the workers."""
    ray = pytest.importorskip("importlib.util").find_spec("ray")
    if ray is None or ray.origin is None:
        pytest.skip("ray is not installed")
    folder = Path(ray.origin).parent / "autoscaler" / "_private"
    runner, commands = (folder / "command_runner.py").read_text(), (folder / "commands.py").read_text()
    assert "rsync -e '{} exec -i'" in runner and 'ssh = ["ssh"' in runner and 'command = ["rsync"]' in runner
    assert "tmux new" in commands
    (run,) = [arguments for name, arguments in stages()["ray-up"] if name == "RUN"]
    assert {"openssh-client", "rsync", "tmux"} <= set(run.split())
    assert not {"openssh-client", "rsync", "tmux"} & set(str(stages()["runtime"]).split()), "for those who need it"


COMMIT = "462165984030d82259a11f4367a4eed129e94a7b"


@pytest.mark.parametrize("revision", ["main", "v1", COMMIT])
def test_a_model_inside_the_image_is_found_offline(tmp_path: Path, revision: str) -> None:
    """The stage's own lines, with a stand-in that leaves what the hub's command leaves; the real client looks it up."""
    hub = pytest.importorskip("huggingface_hub")
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "pip").write_text("#!/bin/sh\n")
    (bin / "hf").write_text(
        '#!/bin/bash\nset -eu\nmkdir -p "$HF_HOME/hub/models--org--model"; cd "$HF_HOME/hub/models--org--model"\n'
        f"mkdir -p snapshots/{COMMIT} blobs refs; printf '{{}}' >snapshots/{COMMIT}/model_index.json\n"
        f'[ "$4" = {COMMIT} ] || printf {COMMIT} >"refs/$4"\n'  # a commit has no name of its own
        'printf "%s\\n" "$@" >"$HF_HOME/asked"\n'
    )
    for program in bin.iterdir():
        program.chmod(0o755)
    (run,) = [arguments for name, arguments in stages()["model"] if name == "RUN"]
    script = re.sub(r"^--mount=\S+\s+", "", run)
    script = script.replace("/prefetch.sh", str(ROOT / "helm/consistory-ray/files/prefetch.sh"))
    models = tmp_path / "models"
    script = script.replace("/opt/models", str(models))
    environment = {"PATH": f"{bin}:{os.environ['PATH']}", "MODEL": "", "MODEL_REVISION": revision}
    subprocess.run(["bash", "-o", "pipefail", "-c", script], check=True, cwd=tmp_path, env=environment, timeout=60)
    assert list(models.iterdir()) == []
    environment["MODEL"] = "org/model"
    subprocess.run(["bash", "-o", "pipefail", "-c", script], check=True, cwd=tmp_path, env=environment, timeout=60)
    asked = (models / "asked").read_text().split("\n")
    assert asked[:4] == ["download", "org/model", "--revision", revision]
    assert [word for word in asked if "*" in word] == ["*.json", "*.txt", "*.safetensors"]
    found = Path(hub.snapshot_download("org/model", cache_dir=models / "hub", local_files_only=True))
    assert found.name == COMMIT and (found / "model_index.json").exists()


def test_an_image_with_a_model_does_not_ask_the_hub_and_one_without_can_keep_what_it_downloads() -> None:
    runtime = stages()["runtime"]
    assert ("ARG", "MODEL=") in runtime
    (environment,) = [arguments for name, arguments in runtime if name == "ENV"]
    assert {"HF_HOME=/opt/models", "HF_HUB_OFFLINE=${MODEL:+1}"} <= set(environment.split())
    (run,) = [arguments for name, arguments in runtime if name == "RUN"]
    assert re.search(r"install --directory --owner=1000 --group=1000 [^&]*/opt/models ", run)


def test_no_secret_can_stay_in_a_layer() -> None:
    for name, arguments in instructions():
        if name in ("ARG", "ENV"):
            assert not re.search(r"TOKEN|KEY|SECRET|PASSWORD", arguments)
    assert "--mount=type=secret,id=hf_token" in DOCKERFILE


def test_the_context_holds_the_package_and_nothing_private() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    prefetch = "helm/consistory-ray/files/prefetch.sh"
    assert allowed == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "consistory_ray", prefetch}
    assert all((ROOT / name).exists() for name in allowed)
    # Everything that hatchling and the Dockerfile read.
    for name in re.findall(r'(?:readme|license-files) = \[?"([^"]+)"', (ROOT / "pyproject.toml").read_text()):
        assert name in allowed
    copied = [
        source
        for name, arguments in instructions()
        if name == "COPY" and "--from" not in arguments
        for source in arguments.split()[:-1]
    ]
    assert set(copied) <= allowed | {"."}


def test_the_shell_lines_are_shell() -> None:
    for name, arguments in instructions():
        if name == "RUN":
            script = re.sub(r"^(--mount=\S+\s+)+", "", arguments)
            done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{script}\n{done.stderr}"


@pytest.mark.slow
def test_the_package_is_built_and_installed_as_the_dockerfile_does(tmp_path: Path) -> None:
    """The RUN lines of the wheel and environment stages, in a clean folder; torch and the dependencies are left out."""
    found = stages()
    (build,) = [arguments for name, arguments in found["wheel"] if name == "RUN"]
    source = tmp_path / "src"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "consistory_ray"):
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"))
        else:
            shutil.copy(origin, source / name)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PIP_NO_CACHE_DIR": "1"}
    build = build.replace("/wheel", str(tmp_path / "wheel")).replace("pip wheel", f"{sys.executable} -m pip wheel")
    subprocess.run(["bash", "-ec", build], cwd=source, env=environment, check=True, timeout=300)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"consistory_ray"}
    assert "consistory_ray/miniature/weights/model_index.json" in zipfile.ZipFile(wheel).namelist()

    make, install = [arguments for name, arguments in found["venv-cpu"] if name == "RUN"]
    venv = str(tmp_path / "venv")
    make = make.split("&&")[0].replace("/opt/venv", venv).replace("python -m", f"{sys.executable} -m")
    subprocess.run(["bash", "-ec", make], env=environment, check=True, timeout=300)
    install = (
        install.replace("/opt/venv", venv).replace("/wheel", str(tmp_path / "wheel")).replace("[s3,gcs,azure]", "")
    )
    install = install.replace("--constraint /constraints.txt", "--no-deps").replace(
        "pip ", f"{sys.executable} -m pip ", 1
    )
    subprocess.run(["bash", "-ec", install], env={**environment, "EXTRA_PACKAGES": ""}, check=True, timeout=300)
    code = "import consistory_ray.errors, importlib.util; assert importlib.util.find_spec('pip') is None"
    subprocess.run([f"{venv}/bin/python", "-c", code], check=True, timeout=60)
    assert os.access(f"{venv}/bin/consistory-ray", os.X_OK)


# compose.yaml

COMPOSE = yaml.safe_load((CLUSTER / "compose.yaml").read_text())


def test_compose_listens_on_this_machine_only() -> None:
    for service in COMPOSE["services"].values():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_compose_drops_rights_and_asks_for_secrets() -> None:
    for service in COMPOSE["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert ":latest" not in service["image"] and "privileged" not in service
    head = COMPOSE["services"]["head"]
    assert head["user"] == "1000:1000" and head["read_only"] is True
    assert head["environment"]["RAY_AUTH_MODE"] == "token"
    assert head["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    assert COMPOSE["services"]["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"].startswith(
        "${GRAFANA_PASSWORD:?"
    )


def test_composes_files_and_targets_exist() -> None:
    head = COMPOSE["services"]["head"]
    assert (CLUSTER / head["build"]["context"] / head["build"]["dockerfile"]).samefile(CLUSTER / "Dockerfile")
    assert head["build"]["target"] in stages()
    volumes = set()
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (CLUSTER / source).exists(), source
            elif not source.startswith("$"):
                volumes.add(source)
    assert volumes == COMPOSE["volumes"].keys()


def test_prometheus_scrapes_the_ports_that_compose_opens() -> None:
    config = yaml.safe_load((CLUSTER / "prometheus" / "prometheus.yml").read_text())
    targets = {
        target for job in config["scrape_configs"] for static in job["static_configs"] for target in static["targets"]
    }
    head = COMPOSE["services"]["head"]
    assert f"head:{head['environment']['CONSISTORY_METRICS_PORT']}" in targets
    (exported,) = [word.split("=")[1] for word in head["command"] if word.startswith("--metrics-export-port=")]
    assert f"head:{exported}" in targets
    mounted = {volume.split(":")[1] for volume in COMPOSE["services"]["prometheus"]["volumes"]}
    assert set(config["rule_files"]) <= mounted


def compose_program() -> list[str]:
    """Docker's own, or the same program from the development extra; neither needs an engine to check files."""
    plugin = ["docker", "compose"]
    if shutil.which("docker") and subprocess.run([*plugin, "version"], capture_output=True, timeout=60).returncode == 0:
        return plugin
    package = importlib.util.find_spec("compose")
    for folder in (package.submodule_search_locations if package is not None else None) or []:
        if (program := Path(folder, "docker-compose")).exists():
            return [str(program)]
    pytest.skip("docker compose is not installed: it comes with the extra `dev`")


def composed(*files: str, **more: str) -> subprocess.CompletedProcess[str]:
    """What compose makes of these files, having checked them against the specification."""
    names = [word for file in files for word in ("-f", str(CLUSTER / file))]
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **more}
    command = [*compose_program(), *names, "config", "--format", "json"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


SECRETS = {"RAY_AUTH_TOKEN": "t", "GRAFANA_PASSWORD": "p"}


def test_compose_is_valid() -> None:
    done = composed("compose.yaml", **SECRETS)
    assert (done.returncode, done.stderr) == (0, "")
    services = json.loads(done.stdout)["services"]
    (gpus,) = services["head"]["deploy"]["resources"]["reservations"]["devices"]
    assert (gpus["driver"], gpus["count"]) == ("nvidia", -1)  # all
    done = composed("compose.yaml", GRAFANA_PASSWORD="p")
    assert done.returncode != 0 and "RAY_AUTH_TOKEN" in done.stderr


def test_compose_without_a_gpu_asks_for_none() -> None:
    done = composed("compose.yaml", "compose.cpu.yaml", **SECRETS)
    assert (done.returncode, done.stderr) == (0, "")
    head = json.loads(done.stdout)["services"]["head"]
    assert "deploy" not in head
    assert head["build"]["target"] == "cpu" and head["image"] == "consistory-ray:cpu"
    assert head["read_only"] and head["user"] == "1000:1000", "the rest is as with GPUs"


def test_every_image_that_compose_pulls_can_be_pinned() -> None:
    names = ("PYTHON", "PROMETHEUS", "GRAFANA")
    digests = {f"{name}_DIGEST": f"sha256:{str(number) * 64}" for number, name in enumerate(names)}
    done = composed("compose.yaml", **SECRETS, **digests)
    assert (done.returncode, done.stderr) == (0, "")
    services = json.loads(done.stdout)["services"]
    assert services["head"]["build"]["args"]["PYTHON_DIGEST"] == digests["PYTHON_DIGEST"]
    for service in ("prometheus", "grafana"):
        assert services[service]["image"].endswith("@" + digests[f"{service.upper()}_DIGEST"])


def test_nothing_of_rays_sessions_outlives_the_container() -> None:
    head = COMPOSE["services"]["head"]
    assert head["environment"]["HOME"] == "/tmp" and head["read_only"]
    assert [item.split(":")[0] for item in head["tmpfs"]] == ["/tmp"]
    assert not [volume for volume in head["volumes"] if volume.split(":")[1].startswith("/tmp")]
    # A run is started by exec, which a stop of the container does not tell: a grace period would promise too much.
    assert "stop_grace_period" not in head


def test_ray_knows_the_options_that_compose_starts_it_with() -> None:
    scripts = pytest.importorskip("ray.scripts.scripts")
    head = COMPOSE["services"]["head"]
    words = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in [*head["entrypoint"], *head["command"]]]
    with scripts.start.make_context("start", words[2:]) as context:
        assert context.params["head"] and context.params["block"]
        assert context.params["metrics_export_port"] == 8080


# ray up


@pytest.fixture(scope="module", params=RAY_CLUSTERS, ids=lambda path: path.stem)
def ray_cluster(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The configuration as `ray up` completes and checks it before it talks to a cloud."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    config = util.prepare_config(yaml.safe_load(request.param.read_text()))
    util.validate_config(config)
    return dict(config)


def test_there_is_one_for_each_cloud() -> None:
    assert [path.stem for path in RAY_CLUSTERS] == ["ray-cluster-aws", "ray-cluster-gcp"]


def test_ray_installs_nothing_into_the_image(ray_cluster: dict[str, Any]) -> None:
    for key in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert ray_cluster[key] == [], key


@pytest.mark.parametrize("path", RAY_CLUSTERS, ids=lambda path: path.stem)
def test_ray_clusters_use_the_launchers_image_and_say_how_it_is_built_and_pulled(path: Path) -> None:
    text = path.read_text()
    assert yaml.safe_load(text)["docker"]["image"] == "REGISTRY/consistory-ray:ray-up"
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert "--target ray-up -t REGISTRY/consistory-ray:ray-up" in comments and "EXTRA_PACKAGES=" in comments
    assert re.search(
        r"initialization_commands:\n#     - (aws ecr .*docker login|gcloud auth configure-docker)", comments
    )


def test_ray_clusters_ask_for_a_token(ray_cluster: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in ray_cluster["docker"]["run_options"]
    assert "/home/consistory/.ray/auth_token" in ray_cluster["file_mounts"]


def test_spot_and_on_demand_workers_behind_a_head_that_renders_nothing(ray_cluster: dict[str, Any]) -> None:
    types = ray_cluster["available_node_types"]
    assert types.keys() == {"head", "gpu-spot", "gpu-on-demand"}
    assert types["head"]["resources"] == {"CPU": 0} and types["head"]["max_workers"] == 0
    assert "SPOT" in str(types["gpu-spot"]["node_config"]).upper()
    assert "SPOT" not in str(types["gpu-on-demand"]["node_config"]).upper()
    assert sum(types[name]["max_workers"] for name in types) == ray_cluster["max_workers"]
    assert all(types[name]["min_workers"] == 0 for name in types)


def test_ray_knows_the_start_commands(ray_cluster: dict[str, Any]) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts")
    for commands in (ray_cluster["head_start_ray_commands"], ray_cluster["worker_start_ray_commands"]):
        words = shlex.split(commands[-1])
        assert words[:2] == ["ray", "start"]
        scripts.start.make_context("start", words[2:]).close()
