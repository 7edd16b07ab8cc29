"""What a run is made of: revision, image, job file, model, and the names that others have to know."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.helm.rendering import CHART, ROOT, Values, load_yaml, merged, render, value_set


def minimal(**changes: Any) -> Values:
    return merged(value_set("minimal"), changes)


def test_the_documented_command_for_another_run_works_with_helms_own_reading_of_it() -> None:
    helm = pytest.importorskip("helm_python", reason="the Helm engine (helm-python-sdk) is not installed")
    texts = (ROOT / "docs" / "kubernetes.md").read_text() + render(minimal()).notes
    commands = re.findall(r"--set (run\.revision=\S+?)[`\s]", texts)
    assert len(commands) >= 2
    first = render(minimal()).one("RayJob")["metadata"]["name"]
    for command in commands:
        rendered = render(merged(minimal(), helm.parse_set_string(command)))
        assert rendered.one("RayJob")["metadata"]["name"] != first
        assert "--set run.revision=3" in rendered.notes


def test_a_revision_is_the_same_as_text_and_as_a_number() -> None:
    for number in (2, 20261125):
        as_text, as_number = (render(minimal(run={"revision": value})) for value in (str(number), number))
        assert as_text.manifests == as_number.manifests and as_text.notes == as_number.notes
        assert f"run.revision={number + 1}" in as_number.notes


IMAGE = {"repository": "r/cuda", "tag": "7"}
DIGEST = "sha256:" + "3" * 64


@pytest.mark.parametrize(
    ("image", "head", "wanted"),
    [
        (IMAGE, {}, "r/cuda:7"),
        (IMAGE, {"tag": "7-cpu"}, "r/cuda:7-cpu"),
        (IMAGE, {"digest": DIGEST}, f"r/cuda@{DIGEST}"),
        (IMAGE, {"repository": "r/cpu"}, "r/cpu:7"),
        ({"digest": DIGEST}, {}, f"registry.example.com/consistory-ray@{DIGEST}"),
        ({"digest": DIGEST}, {"tag": "cpu"}, "registry.example.com/consistory-ray:cpu"),
        ({"digest": DIGEST}, {"repository": "r/cpu"}, "r/cpu:0.1.0"),
    ],
)
def test_the_heads_image_takes_from_the_workers_what_it_leaves_out(image: Values, head: Values, wanted: str) -> None:
    pods = dict(render(minimal(image=image, head={"image": head})).pod_specs())
    assert pods["head"]["containers"][0]["image"] == wanted
    assert pods["submitter"]["containers"][0]["image"] == wanted


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("jobs.csv", "job.csv"),
        ("a.JSON", "job.json"),
        ("t.parquet", "job.parquet"),
        ("b.yml", "job.yml"),
        ("x", "job.yaml"),
    ],
)
@pytest.mark.parametrize("mode", ["job", "cluster"])
def test_a_job_file_of_any_kind_keeps_its_ending(mode: str, key: str, name: str) -> None:
    job = {"definition": "", "existingConfigMap": {"name": "mine", "key": key}}
    rendered = render(minimal(mode=mode, job=job))
    pods = dict(rendered.pod_specs())
    pod = pods["head" if mode == "job" else "submitter"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "job"]
    assert volume["configMap"]["items"] == [{"key": key, "path": name}]
    assert rendered.command[2] == (f"/etc/consistory/job/{name}" if mode == "job" else name)
    variables = {variable["name"]: variable.get("value") for variable in pod["containers"][0]["env"]}
    assert variables.get("JOB_FILE") == (None if mode == "job" else f"/etc/consistory/job/{name}")


def test_what_the_containers_have_the_init_container_has_too() -> None:
    """A proxy, its certificates, and where they are."""
    values = merged(value_set("monitoring"), {"model": {"prefetch": {"repository": "org/model"}}})
    pod = render(values).cluster_spec["workerGroupSpecs"][0]["template"]["spec"]
    (prefetch,), (worker,) = pod["initContainers"], pod["containers"]
    assert prefetch["envFrom"] == worker["envFrom"] == values["extraEnvFrom"]
    for mount in values["extraVolumeMounts"]:
        assert mount in prefetch["volumeMounts"] and mount in worker["volumeMounts"]
    assert {"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"} in prefetch["env"]


SDXL = {
    "model_index.json": True,
    "scheduler/scheduler_config.json": True,
    "text_encoder/config.json": True,
    "text_encoder/model.safetensors": True,
    "text_encoder/model.fp16.safetensors": False,
    "text_encoder/flax_model.msgpack": False,
    "text_encoder_2/model-00001-of-00002.safetensors": True,
    "text_encoder_2/model.fp16-00001-of-00002.safetensors": False,
    "text_encoder_2/model.safetensors.index.json": True,
    "tokenizer/merges.txt": True,
    "unet/diffusion_pytorch_model.safetensors": True,
    "unet/diffusion_pytorch_model.fp16.safetensors": False,
    "unet/diffusion_pytorch_model.bin": False,
    "unet/model.onnx": False,
    "vae/diffusion_pytorch_model.safetensors": True,
    "sd_xl_base_1.0.safetensors": False,
    "sd_xl_offset_example-lora_1.0.safetensors": False,
    "README.md": False,
}
"""Files such as the hub's SDXL repositories have, and whether a run that names the hub id loads them."""


def test_the_default_download_is_what_is_loaded() -> None:
    prefetch = load_yaml((CHART / "values.yaml").read_text())["model"]["prefetch"]
    for path, wanted in SDXL.items():
        taken = any(fnmatch(path, pattern) for pattern in prefetch["include"])
        taken = taken and not any(fnmatch(path, pattern) for pattern in prefetch["exclude"])
        assert taken is wanted, path


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "demo-consistory-ray"),
        ({"serviceAccount": {"name": "mine"}}, "mine"),
        ({"serviceAccount": {"create": False, "name": "theirs"}}, "theirs"),
        ({"serviceAccount": {"create": False}, "ray": {"autoscaling": {"enabled": False}}}, "default"),
    ],
)
def test_the_notes_name_the_service_account_that_trust_policies_have_to_name(values: Values, name: str) -> None:
    rendered = render(minimal(**values))
    assert f"service account render/{name}," in rendered.notes
    assert {pod["serviceAccountName"] for _, pod in rendered.pod_specs()} == {name}


def test_a_volume_of_one_node_is_accepted_on_request() -> None:
    volume = {"accessModes": ["ReadWriteOnce"], "singleNode": True}
    values = {
        "output": {"url": "/output/run", "persistentVolume": {"enabled": True, **volume}},
        "model": {"cache": {"type": "persistentVolume", **volume}},
    }
    claims = render(minimal(**values)).of_kind("PersistentVolumeClaim")
    assert [claim["spec"]["accessModes"] for claim in claims] == [["ReadWriteOnce"]] * 2


def test_what_the_chart_needs_is_said_alike_everywhere() -> None:
    """Fields of 1.7's resources are used: `priority` of groups, `upgradeStrategy`."""
    wanted = load_yaml((CHART / "Chart.yaml").read_text())["annotations"]["consistory-ray/kuberay"]
    assert wanted.startswith(">=1.7,")
    assert "KubeRay](https://docs.ray.io/en/latest/cluster/kubernetes/index.html) 1.7 or later" in (
        Path(ROOT, "docs", "kubernetes.md").read_text()
    )
