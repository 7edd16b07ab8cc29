"""Values that are well-formed and yet cannot work are refused when the chart is rendered, all of them at once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helm.rendering import merged, render, value_set

REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"output": {"url": ""}}, "output.url: say where the pictures go"),
    ({"image": {"repository": ""}}, "image.repository: give the image"),
    ({"job": {"definition": ""}}, "job: give a job file"),
    ({"job": {"url": "s3://jobs/a.yaml"}}, "job: give one of job.definition, job.url"),
    ({"job": {"definition": "- just\n- a list"}}, "job.definition: not a YAML mapping"),
    ({"job": {"definition": "a: [1"}}, "job.definition: not a YAML mapping"),
    ({"output": {"url": "/output/run"}}, "a path inside a pod is lost with the pod"),
    ({"output": {"url": "file:///output/run"}}, "a path inside a pod is lost with the pod"),
    (
        {"output": {"url": "/outputs/run", "persistentVolume": {"enabled": True}}},
        "/outputs/run does not lie under output.persistentVolume.mountPath (/output)",
    ),
    ({"output": {"persistentVolume": {"enabled": True}}}, "is not a path; use one of them"),
    *(
        (
            merged(volume, {"output": {"persistentVolume": modes}}),
            "output.persistentVolume.accessModes: head and workers",
        )
        for volume in ({"output": {"url": "/output/run", "persistentVolume": {"enabled": True}}},)
        for modes in (
            {"accessModes": ["ReadWriteOnce"]},
            {"accessModes": ["ReadWriteOncePod"], "singleNode": True},
            {"accessModes": ["ReadOnlyMany"], "singleNode": True},
        )
    ),
    (
        {"model": {"cache": {"type": "persistentVolume", "accessModes": ["ReadWriteOnce"]}}},
        "model.cache.accessModes: head and workers mount it on several nodes; use ReadWriteMany, or ReadWriteOnce and "
        "model.cache.singleNode",
    ),
    ({"run": {"shutdownAfterJobFinishes": False}}, "has no effect without run.shutdownAfterJobFinishes"),
    ({"run": {"suspend": True}, "mode": "cluster"}, "run.suspend: only for mode job"),
    (
        {"workerGroups": [{"name": "a", "minReplicas": 5}]},
        "workerGroups[a]: minReplicas (5) is more than maxReplicas (4)",
    ),
    ({"workerGroups": [{"name": "a", "replicas": 9}]}, "workerGroups[a]: replicas (9) is not between"),
    ({"workerGroups": [{"name": "a"}, {"name": "a"}]}, "workerGroups[a]: the name is used twice"),
    (
        {"worker": {"cacheMemory": "64Gi", "resources": {"limits": {"memory": "48Gi"}}}},
        "workerGroups[gpu]: resources.limits.memory (48Gi) has to hold cacheMemory (64Gi) and at least 12Gi besides: "
        "give 80Gi, or leave it out",
    ),
    (
        {"worker": {"gpus": 8, "resources": {"limits": {"memory": "48Gi"}}}},
        "workerGroups[gpu]: resources.limits.memory (48Gi) has to hold cacheMemory (16Gi for each of 8 GPUs) and at "
        "least 96Gi besides: give 231Gi, or leave it out",
    ),
    ({"worker": {"gpus": 0}, "run": {"device": "cuda"}}, "workerGroups[gpu]: has no gpus, and the run renders on cuda"),
    ({"worker": {"gpus": 0}, "run": {"device": "cuda"}, "mode": "cluster"}, "no pod would ever render on cuda"),
    ({"run": {"device": "cpu"}}, "workerGroups[gpu]: has 1 gpus, and the run renders on cpu"),
    (
        {"workerGroups": [{"name": "gpu"}, {"name": "cpu", "gpus": 0}]},
        "workerGroups[cpu]: has no gpus, and the run renders on cuda",
    ),
    (
        {"ray": {"autoscaling": {"enabled": False}}, "worker": {"replicas": 0}},
        "workerGroups: no pod would ever render on cuda; give a group with gpus replicas",
    ),
    ({"run": {"extraArgs": ["--grace", "9"]}}, "run.extraArgs: give the grace as run.graceSeconds"),
    ({"serviceAccount": {"create": False}}, "serviceAccount.name: KubeRay gives the head's service account rights"),
    ({"head": {"objectStoreMemory": "8Gi"}}, "head.resources.limits.memory: has to hold"),
    (
        {"model": {"cache": {"type": "none"}, "prefetch": {"repository": "a/b"}}},
        "model.prefetch.repository: needs a model.cache",
    ),
    ({"kueue": {"queueName": "q"}}, "Kueue reserves a fixed size"),
    (
        {"kueue": {"queueName": "q"}, "ray": {"autoscaling": {"enabled": False}}, "workerGroups": [{"name": "head"}]},
        "Kueue keeps this name for the head",
    ),
    (
        {
            "kueue": {"queueName": "q"},
            "ray": {"autoscaling": {"enabled": False}},
            "workerGroups": [{"name": f"g{index}"} for index in range(8)],
        },
        "Kueue takes at most 7 worker groups",
    ),
    ({"kueue": {"elastic": True}}, "kueue.queueName: give one"),
    ({"ray": {"auth": {"mode": "disabled", "existingSecret": "a"}}}, "only for ray.auth.mode token"),
    (
        {"monitoring": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}},
        "would scrape the same metrics twice",
    ),
    ({"monitoring": {"port": 0, "podMonitor": {"enabled": True}}}, "there is nothing to scrape"),
    (
        {"networkPolicy": {"monitoringNamespace": ""}, "monitoring": {"podMonitor": {"enabled": True}}},
        "Prometheus could not scrape",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[message[:40] for _, message in REFUSALS])
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception) as error:
        render(merged(value_set("minimal"), changes))
    assert type(error.value).__name__ == "HelmRenderError"
    assert message in str(error.value)


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(Exception) as error:
        render({"run": {"shutdownAfterJobFinishes": False}})
    for words in ("image.repository", "output.url", "job:", "run.ttlSecondsAfterFinished"):
        assert words in str(error.value)
