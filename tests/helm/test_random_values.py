"""Random valid values never render invalid YAML, and what they render is accepted by KubeRay's definitions."""

from __future__ import annotations

import copy
import re
import shlex
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.helm import schemas
from tests.helm.rendering import Manifest, merged, render

text = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("C",)), max_size=20)
names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
label_values = st.from_regex(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,10}[A-Za-z0-9])?)?", fullmatch=True)
labels = st.dictionaries(st.from_regex(r"(example\.com/)?[a-z]{1,8}", fullmatch=True), label_values, max_size=3)
annotations = st.dictionaries(st.from_regex(r"(example\.com/)?[a-z]{1,8}", fullmatch=True), text, max_size=3)
prefixes = st.from_regex(r"[A-Za-z0-9_.@%+=,-]([A-Za-z0-9_./@%+=,-]{0,20})", fullmatch=True)
tolerations = st.lists(
    st.fixed_dictionaries({"operator": st.just("Exists")}, optional={"key": st.just("a"), "value": label_values}),
    max_size=2,
)


METADATA_SERVERS = ["none", "gke", "eks-pod-identity", "aws-instance", "azure-instance"]


@st.composite
def groups(draw: st.DrawFn, mixed: bool) -> list[Manifest]:
    """Worker groups; only if mixed, some may be without GPUs."""
    found = []
    for name in draw(
        st.lists(st.from_regex(r"[a-z]([-a-z0-9]{0,10}[a-z0-9])?", fullmatch=True), min_size=1, max_size=4, unique=True)
    ):
        least, spread = draw(st.integers(0, 3)), draw(st.integers(1, 900))
        group: Manifest = {"name": name, "minReplicas": least, "maxReplicas": least + spread}
        optional = {
            "gpus": st.integers(0, 8) if mixed else st.integers(1, 8),
            "priority": st.integers(0, 100),
            "drainSeconds": st.integers(0, 3600),
            "labels": labels,
            "nodeSelector": labels,
            "podAnnotations": annotations,
            "tolerations": tolerations,
            "cacheMemory": st.sampled_from(["512Mi", "1Gi", "40Gi"]),
            "priorityClassName": names,
            "idleTimeoutSeconds": st.integers(0, 86400),
        }
        for key, values in optional.items():
            if draw(st.booleans()):
                group[key] = draw(values)
        found.append(group)
    return found


@st.composite
def chart_values(draw: st.DrawFn) -> Manifest:
    mode = draw(st.sampled_from(["job", "cluster"]))
    values: Manifest = {
        "mode": mode,
        "image": {"repository": "r/i", "tag": draw(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}", fullmatch=True))},
        "output": {"url": draw(st.sampled_from(["s3://", "gs://", "az://"])) + draw(prefixes)},
        "job": draw(
            st.one_of(
                st.builds(
                    lambda value: {"definition": f"name: {value!r}"}, st.from_regex(r"[a-z ]{0,9}", fullmatch=True)
                ),
                st.builds(lambda value: {"url": "s3://" + value}, prefixes),
                st.builds(lambda value: {"existingConfigMap": {"name": value}}, names),
            )
        ),
        "workerGroups": draw(groups(mixed=mode == "cluster")),
    }
    autoscaling = draw(st.booleans())
    optional: dict[str, st.SearchStrategy[Any]] = {
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "fullnameOverride": st.from_regex(r"[a-z]([-a-z0-9]{0,36}[a-z0-9])?", fullmatch=True),
        "head": st.fixed_dictionaries(
            {"nodeSelector": labels, "podAnnotations": annotations, "tolerations": tolerations}
        ),
        "serviceAccount": st.fixed_dictionaries({"create": st.booleans(), "name": names, "annotations": annotations}),
        "storage": st.fixed_dictionaries(
            {
                "s3": st.fixed_dictionaries({"credentialsSecret": names}),
                "gcs": st.just({"credentialsSecret": {"name": "0"}}),
            }
        ),
        "model": st.fixed_dictionaries(
            {
                "cache": st.fixed_dictionaries({"type": st.sampled_from(["emptyDir", "persistentVolume", "hostPath"])}),
                "prefetch": st.fixed_dictionaries({"repository": st.just("a/b"), "exclude": st.just(["x*.bin"])}),
            }
        ),
        "extraEnv": st.lists(st.fixed_dictionaries({"name": st.just("A"), "value": text}), max_size=1),
        "monitoring": st.fixed_dictionaries(
            {
                "podMonitor": st.fixed_dictionaries({"enabled": st.booleans(), "labels": labels}),
                "dashboards": st.just({"enabled": True}),
                "prometheusRule": st.just({"enabled": True}),
            }
        ),
        "networkPolicy": st.fixed_dictionaries(
            {"enabled": st.booleans(), "metadataServer": st.sampled_from(METADATA_SERVERS)}
        ),
        "run": st.fixed_dictionaries(
            {
                "revision": st.one_of(
                    st.from_regex(r"[A-Za-z0-9._-]{1,10}", fullmatch=True), st.integers(0, 9_999_999_999)
                ),
                "graceSeconds": st.integers(0, 3600),
                "extraArgs": st.lists(prefixes, max_size=3),
                "backoffLimit": st.integers(0, 100),
                "ttlSecondsAfterFinished": st.integers(0, 31536000),
            }
        ),
        "kueue": st.just({"queueName": "1"}),
    }
    for key, strategy in optional.items():
        if draw(st.booleans()):
            values[key] = draw(strategy)
    if "kueue" in values:
        autoscaling = False
    return merged(values, {"ray": {"autoscaling": {"enabled": autoscaling}}})


@given(values=chart_values(), release=names)
@example(
    values={
        "image": {"repository": "r/i", "tag": "0"},
        "output": {"url": "s3://0"},
        "job": {"definition": "name: ''"},
        "workerGroups": [{"name": "a", "minReplicas": 0, "maxReplicas": 1}],
        "serviceAccount": {"create": True, "annotations": {"a": "="}},
    },
    release="0",
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_values_render_what_kuberay_takes(values: Manifest, release: str) -> None:
    # A group called head is refused under Kueue, and rightly.
    if "kueue" in values and any(group["name"] == "head" for group in values["workerGroups"]):
        return
    rendered = render(values, release)
    ray = [manifest for manifest in rendered.manifests if manifest["kind"] in ("RayJob", "RayCluster")]
    assert len(ray) == 1
    for manifest in rendered.manifests:
        assert manifest["apiVersion"] and manifest["kind"]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", manifest["metadata"]["name"])
        assert all(isinstance(value, str) for value in manifest["metadata"]["labels"].values())
    command = rendered.command
    assert command[:2] == ["consistory-ray", "render"]
    assert command[command.index("-o") + 1] == values["output"]["url"]
    assert " ".join(command) == shlex.join(command), "a word of the command means something to a shell"
    if schemas.CRDS.exists():
        assert schemas.problems_of_ray(ray[0]) == []


def test_the_definitions_refuse_what_they_do_not_know() -> None:
    """The strict schemas above can fail: a field too many and a wrong type are found."""
    manifest = copy.deepcopy(render(BASE).one("RayJob"))
    assert schemas.problems_of_ray(manifest) == []
    manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["tolerationz"] = []
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplicas"] = "0"
    manifest["spec"]["retries"] = 1
    found = "\n".join(schemas.problems_of_ray(manifest))
    assert "tolerationz" in found and "minReplicas" in found and "retries" in found
    policy = copy.deepcopy(render(BASE).of_kind("NetworkPolicy")[0])
    policy["spec"]["ingres"] = []
    pytest.importorskip("kubernetes_validate")
    assert "ingres" in str(schemas.problems_of_builtin(policy))


BASE: Manifest = {"image": {"repository": "r/i"}, "output": {"url": "s3://b/p"}, "job": {"url": "s3://b/job.yaml"}}
