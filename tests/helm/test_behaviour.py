"""What the rendered manifests do: names, sizes, rights, traffic, secrets."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from tests.helm import schemas
from tests.helm.rendering import VALUE_SETS, Manifest, Rendered, Values, load_yaml, merged, render, value_set

GIB = 1024**3


def minimal(**changes: Any) -> Values:
    return merged(value_set("minimal"), changes)


def name_of(values: Values, kind: str, release: str = "demo") -> str:
    metadata = render(values, release).one(kind)["metadata"]
    return str(metadata["name"])


def environment(container: Manifest) -> dict[str, Any]:
    names = [variable["name"] for variable in container["env"]]
    assert len(names) == len(set(names)), "a variable is given twice"
    return {variable["name"]: variable.get("value", variable.get("valueFrom")) for variable in container["env"]}


# Names and upgrades


def test_a_changed_run_is_a_new_rayjob_and_an_unchanged_one_is_left_alone() -> None:
    before = name_of(minimal(), "RayJob")
    assert name_of(minimal(monitoring={"dashboards": {"enabled": True}}), "RayJob") == before
    assert name_of(minimal(commonAnnotations={"a": "b"}), "RayJob") == before
    changed = [
        minimal(job={"definition": "name: other"}),
        minimal(run={"revision": 2}),
        minimal(image={"tag": "2"}),
        minimal(output={"url": "s3://pictures/other"}),
    ]
    assert len({before, *(name_of(values, "RayJob") for values in changed)}) == 5


def test_a_changed_run_is_a_new_submitter_on_the_same_raycluster() -> None:
    values = merged(value_set("s3"), {})
    cluster, job = name_of(values, "RayCluster"), name_of(values, "Job")
    changed = merged(values, {"output": {"url": "s3://pictures/other"}})
    assert name_of(changed, "RayCluster") == cluster
    assert name_of(changed, "Job") != job


def test_a_new_job_does_not_touch_a_cluster_that_stays() -> None:
    one, other = (minimal(mode="cluster", job={"definition": f"name: {name}"}) for name in ("one", "other"))
    assert render(one).cluster_spec == render(other).cluster_spec
    assert name_of(one, "Job") != name_of(other, "Job")
    pod = render(one).one("Job")["spec"]["template"]["spec"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "job"]
    assert volume["configMap"]["name"] in [m["metadata"]["name"] for m in render(one).of_kind("ConfigMap")]
    assert environment(pod["containers"][0])["JOB_FILE"] == "/etc/consistory/job/job.yaml"
    assert render(one).command[2] == "job.yaml"


@pytest.mark.parametrize(
    "changes",
    [
        {"submitter": {"backoffLimit": 9}},
        {"head": {"nodeSelector": {"a": "b"}}},
        {"securityContext": {"runAsUser": 7}},
        {"run": {"activeDeadlineSeconds": 7}},
        {"image": {"pullPolicy": "Always"}},
        {"commonLabels": {"a": "b"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_changes_the_submitter_renames_it_because_a_job_cannot_be_changed(changes: Values) -> None:
    before, after = (render(values).one("Job") for values in (value_set("s3"), merged(value_set("s3"), changes)))
    assert before["spec"] != after["spec"]
    assert before["metadata"]["name"] != after["metadata"]["name"]


def test_a_new_chart_version_alone_does_not_touch_the_pods() -> None:
    for name in VALUE_SETS:
        for manifest in render(value_set(name)).manifests:
            if manifest["kind"] in ("RayJob", "RayCluster", "Job"):
                assert "helm.sh/chart" not in str(manifest["spec"])


def test_the_job_file_arrives_unchanged() -> None:
    text = 'name: "täst"\nsubjects:\n- {seed: 4294967295, prompt: "a: {{ not a template }} $HOME `x`"}\n'
    rendered = render(minimal(job={"definition": text}))
    assert load_yaml(rendered.one("ConfigMap")["data"]["job.yaml"]) == load_yaml(text)
    spec = rendered.cluster_spec["headGroupSpec"]["template"]["spec"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "job"]
    assert volume["configMap"]["name"] == rendered.one("ConfigMap")["metadata"]["name"]
    assert rendered.one("ConfigMap")["immutable"] is True
    assert "täst" not in rendered.one("RayJob")["spec"]["entrypoint"]


@pytest.mark.parametrize("release", ["a", "123", "1e3", "a" * 53, "my-consistory-ray", "with.dots"])
def test_names_fit_what_kuberay_makes_of_them(release: str) -> None:
    for values in (minimal(), minimal(mode="cluster")):
        rendered = render(values, release)
        for manifest in rendered.manifests:
            limit = {"RayJob": 47, "RayCluster": 53}.get(manifest["kind"], 63)
            name = manifest["metadata"]["name"]
            assert len(name) <= limit and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), name
            assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == release
            if manifest["kind"] in ("RayJob", "RayCluster"):
                assert schemas.problems_of_ray(manifest) == []
            elif release == "123":
                assert schemas.problems_of_builtin(manifest) == []


# Sizes


@pytest.mark.parametrize("name", VALUE_SETS)
def test_shared_memory_holds_the_object_store_and_the_limit_holds_both(name: str) -> None:
    spec = render(value_set(name)).cluster_spec
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        store = int(group["rayStartParams"]["object-store-memory"])
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "shm"]
        shm = int(volume["emptyDir"]["sizeLimit"].removesuffix("Mi")) * 1024**2
        limit = int(pod["containers"][0]["resources"]["limits"]["memory"].removesuffix("Gi")) * GIB
        assert volume["emptyDir"]["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
        assert store < shm < limit
        assert pod["containers"][0]["resources"]["requests"]["memory"] == f"{limit // GIB}Gi"


def test_ray_numbers_are_strings_as_kuberay_wants_them() -> None:
    spec = render(minimal()).cluster_spec
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_a_groups_zero_replaces_the_default() -> None:
    groups = [{"name": "gpu", "maxReplicas": 3}, {"name": "cpu", "gpus": 0, "maxReplicas": 2, "tolerations": []}]
    rendered = render(minimal(mode="cluster", workerGroups=groups))
    gpu, cpu = rendered.cluster_spec["workerGroupSpecs"]
    assert gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in cpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert environment(cpu["template"]["spec"]["containers"][0])["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "NVIDIA_VISIBLE_DEVICES" not in environment(gpu["template"]["spec"]["containers"][0])
    assert "tolerations" not in cpu["template"]["spec"]


MIXED = {
    "mode": "cluster",
    "workerGroups": [{"name": "a", "gpus": 4, "maxReplicas": 2}, {"name": "b", "gpus": 0, "maxReplicas": 9}],
}


@pytest.mark.parametrize(
    ("changes", "workers", "device"),
    [
        ({}, 4, "cuda"),
        ({"workerGroups": [{"name": "a", "gpus": 8, "maxReplicas": 2}, {"name": "b", "maxReplicas": 3}]}, 19, "cuda"),
        ({"worker": {"gpus": 0}}, 4, "cpu"),
        ({"worker": {"gpus": 0}, "run": {"workers": 7, "device": "cpu"}}, 7, "cpu"),
        (MIXED, 8, "cuda"),
        (merged(MIXED, {"run": {"device": "cpu"}}), 9, "cpu"),
        ({"ray": {"autoscaling": {"enabled": False}}, "worker": {"replicas": 2}}, 2, "cuda"),
    ],
)
def test_the_run_asks_for_what_the_groups_can_give(changes: Values, workers: int, device: str) -> None:
    command = render(merged(minimal(), changes)).command
    assert command[command.index("--workers") + 1] == str(workers)
    assert command[command.index("--device") + 1] == device


@pytest.mark.parametrize(
    ("changes", "store", "memory"),
    [
        ({}, 16, "48Gi"),
        ({"gpus": 8}, 8 * 16, "384Gi"),
        ({"gpus": 4, "cacheMemory": "24Gi"}, 4 * 24, "224Gi"),
        ({"gpus": 0}, 16, "48Gi"),
        ({"gpus": 2, "cacheMemory": "512Mi"}, 1, "65Gi"),
        ({"gpus": 8, "resources": {"limits": {"memory": "512Gi"}}}, 8 * 16, "512Gi"),
    ],
)
def test_cache_memory_and_the_limit_are_for_each_gpu(changes: Values, store: int, memory: str) -> None:
    rendered = render(minimal(worker=changes))
    (group,) = rendered.cluster_spec["workerGroupSpecs"]
    assert int(group["rayStartParams"]["object-store-memory"]) == store * GIB
    (volume,) = [volume for volume in group["template"]["spec"]["volumes"] if volume["name"] == "shm"]
    assert int(volume["emptyDir"]["sizeLimit"].removesuffix("Mi")) * 1024**2 > store * GIB
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"] == memory
    assert "--cache-budget" not in rendered.command, "the run reads it from the pods that are up"


def test_without_autoscaling_every_group_starts_complete() -> None:
    spec = render(value_set("kueue")).cluster_spec
    assert spec["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in spec
    assert [group["replicas"] for group in spec["workerGroupSpecs"]] == [2]


def test_spot_comes_before_on_demand() -> None:
    spot, on_demand = render(value_set("gpu-spot")).cluster_spec["workerGroupSpecs"]
    assert (spot["priority"], on_demand["priority"]) == (10, 0)
    assert spot["labels"] == {"pool": "spot"}
    assert spot["replicas"] == spot["minReplicas"] == 0


@pytest.mark.parametrize("name", VALUE_SETS)
def test_a_worker_has_time_to_drain(name: str) -> None:
    for group in render(value_set(name)).cluster_spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        script = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
        words = shlex.split(script)
        seconds = int(words[words.index("--deadline-remaining-seconds") + 1])
        assert words[-3:] == ["&", "sleep", str(seconds)]
        assert pod["terminationGracePeriodSeconds"] >= seconds + 30


# Rights


@pytest.mark.parametrize("name", VALUE_SETS)
def test_pods_satisfy_the_restricted_profile(name: str) -> None:
    values = value_set(name)
    allowed = {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "projected", "downwardAPI"}
    if values.get("model", {}).get("cache", {}).get("type") == "hostPath":
        allowed.add("hostPath")  # asked for, and documented as leaving the profile
    for _, pod in render(values).pod_specs():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] != 0
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert pod["enableServiceLinks"] is False
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert all("hostPort" not in port for port in container.get("ports", []))
        for volume in pod["volumes"]:
            assert volume.keys() - {"name"} <= allowed


@pytest.mark.parametrize("name", VALUE_SETS)
def test_only_the_autoscaler_gets_a_kubernetes_token(name: str) -> None:
    node_provider = pytest.importorskip("ray.autoscaler._private.kuberay.node_provider")
    rendered = render(value_set(name))
    scales = rendered.cluster_spec["enableInTreeAutoscaling"]
    for role, pod in rendered.pod_specs():
        assert pod["automountServiceAccountToken"] is False
        mounted = [volume["name"] for volume in pod["volumes"] if "serviceAccountToken" in str(volume)]
        assert mounted == (["kube-api-access"] if role == "head" and scales else [])
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert "kube-api-access" not in str(container["volumeMounts"])
    if scales:
        mounts = {mount["name"]: mount for mount in rendered.cluster_spec["autoscalerOptions"]["volumeMounts"]}
        assert f"{mounts['kube-api-access']['mountPath']}/token" == node_provider.IN_CLUSTER_TOKEN_PATH
    assert rendered.one("ServiceAccount")["automountServiceAccountToken"] is False
    assert not [kind for kind in ("Role", "RoleBinding", "ClusterRole") if rendered.of_kind(kind)]


@pytest.mark.parametrize("name", VALUE_SETS)
def test_ray_asks_for_a_token(name: str) -> None:
    assert render(value_set(name)).cluster_spec["authOptions"]["mode"] == "token"


def test_the_submitter_shows_the_token_of_its_cluster() -> None:
    rendered = render(value_set("s3"))
    (container,) = rendered.one("Job")["spec"]["template"]["spec"]["containers"]
    cluster = rendered.one("RayCluster")["metadata"]["name"]
    variables = environment(container)
    assert variables["RAY_AUTH_TOKEN"] == {"secretKeyRef": {"name": cluster, "key": "auth_token"}}
    assert variables["RAY_API_SERVER_ADDRESS"] == f"http://{cluster}-head-svc:8265"
    own = render(merged(value_set("s3"), {"ray": {"auth": {"existingSecret": "mine"}}}))
    (container,) = own.one("Job")["spec"]["template"]["spec"]["containers"]
    assert environment(container)["RAY_AUTH_TOKEN"]["secretKeyRef"]["name"] == "mine"
    assert own.cluster_spec["authOptions"]["secretName"] == "mine"


def test_a_disabled_token_is_called_by_its_name() -> None:
    rendered = render(minimal(ray={"auth": {"mode": "disabled"}}, networkPolicy={"enabled": False}))
    assert rendered.notes.count("WARNING") == 2
    assert rendered.cluster_spec["authOptions"] == {"mode": "disabled"}
    assert not rendered.of_kind("NetworkPolicy")


# Secrets


def test_the_hub_token_stays_in_the_init_container() -> None:
    spec = render(value_set("gpu-spot")).cluster_spec
    for group in spec["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        (prefetch,) = pod["initContainers"]
        assert environment(prefetch)["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
        assert environment(pod["containers"][0])["HF_HUB_OFFLINE"] == "1"
        assert "HF_TOKEN" not in environment(pod["containers"][0])


@pytest.mark.parametrize("name", VALUE_SETS)
def test_secrets_are_only_referred_to(name: str) -> None:
    rendered = render(value_set(name))
    assert not rendered.of_kind("Secret")
    for _, pod in rendered.pod_specs():
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            for variable, value in environment(container).items():
                if re.search("KEY|TOKEN|SECRET|PASSWORD", variable):
                    assert "secretKeyRef" in value


# Volumes


@pytest.mark.parametrize("name", VALUE_SETS)
def test_mounts_and_volumes_match(name: str) -> None:
    rendered = render(value_set(name))
    for role, pod in rendered.pod_specs():
        volumes = [volume["name"] for volume in pod["volumes"]]
        containers = [*pod["containers"], *pod.get("initContainers", [])]
        if role == "head" and rendered.cluster_spec["enableInTreeAutoscaling"]:
            containers.append(rendered.cluster_spec["autoscalerOptions"])  # KubeRay adds it to the head pod
        mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
        assert len(volumes) == len(set(volumes))
        assert mounted == set(volumes), role
        for container in containers:
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert len(paths) == len(set(paths))


def test_a_shared_output_is_mounted_where_pictures_are_written_and_kept() -> None:
    rendered = render(value_set("pvc"))
    (claim,) = rendered.of_kind("PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    for role, pod in rendered.pod_specs():
        mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        assert ("output" in mounts) is (role != "submitter")
        if role != "submitter":
            assert mounts["models"].get("readOnly", False) is (role == "head")
            assert claim["metadata"]["name"] in str(pod["volumes"])


# Traffic


@pytest.mark.parametrize("name", VALUE_SETS)
def test_every_pod_is_denied_all_but_what_is_listed(name: str) -> None:
    rendered = render(value_set(name))
    everyone = rendered.of_kind("NetworkPolicy")[0]["spec"]
    assert everyone["policyTypes"] == ["Ingress", "Egress"]
    selector = everyone["podSelector"]["matchLabels"]
    spec = rendered.cluster_spec
    templates = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    templates += [job["spec"]["submitterPodTemplate"] for job in rendered.of_kind("RayJob")]
    templates += [job["spec"]["template"] for job in rendered.of_kind("Job")]
    for template in templates:
        assert selector.items() <= template["metadata"]["labels"].items()
    assert everyone["ingress"] == [{"from": [{"podSelector": {"matchLabels": selector}}]}]
    for policy in rendered.of_kind("NetworkPolicy"):
        for rule in [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]:
            peers = rule.get("from", rule.get("to"))
            assert peers, "a rule without peers is open to everyone"
            own = all(peer.get("podSelector", {}).get("matchLabels") == selector for peer in peers)
            assert own or rule.get("ports"), "only the release's own pods may use every port"


def test_the_operator_reaches_the_head_and_prometheus_what_it_scrapes() -> None:
    rendered = render(value_set("monitoring"))
    head = next(policy for policy in rendered.of_kind("NetworkPolicy") if policy["metadata"]["name"].endswith("-head"))
    operator, prometheus = head["spec"]["ingress"]
    (peer,) = operator["from"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "kuberay-system"}
    assert peer["podSelector"]["matchLabels"] == {"app.kubernetes.io/component": "kuberay-operator"}
    assert [port["port"] for port in operator["ports"]] == [8265]
    container = rendered.cluster_spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    (monitor,) = [m for m in rendered.of_kind("PodMonitor") if m["metadata"]["name"].endswith("-head")]
    scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    assert scraped == {"run-metrics", "metrics", "as-metrics", "dash-metrics"}
    assert {ports[name] for name in scraped} == {port["port"] for port in prometheus["ports"]}
    assert environment(container)["CONSISTORY_METRICS_PORT"] == str(ports["run-metrics"])
    assert environment(container)["CONSISTORY_METRICS_HOST"] == "0.0.0.0"


def test_without_cidrs_nothing_leaves_the_cluster() -> None:
    text = str(render(value_set("pvc")).of_kind("NetworkPolicy"))
    assert "ipBlock': {'cidr': '169.254.20.10/32'}" in text
    assert "0.0.0.0/0" not in text


def ports_to(rendered: Rendered, cidr: str) -> list[int]:
    """Ports of an address that every pod may open."""
    rules = rendered.of_kind("NetworkPolicy")[0]["spec"]["egress"]
    return [port["port"] for rule in rules if {"ipBlock": {"cidr": cidr}} in rule["to"] for port in rule["ports"]]


def test_a_proxy_that_is_given_can_be_reached() -> None:
    rendered = render(value_set("monitoring"))
    head = rendered.cluster_spec["headGroupSpec"]["template"]["spec"]["containers"][0]
    port = int(environment(head)["HTTPS_PROXY"].rpartition(":")[2])
    assert port in ports_to(rendered, "10.1.2.3/32")


@pytest.mark.parametrize(
    ("server", "cidr", "ports"),
    [
        ("aws-instance", "169.254.169.254/32", [80]),
        ("azure-instance", "169.254.169.254/32", [80]),
        ("eks-pod-identity", "169.254.170.23/32", [80]),
        ("gke", "169.254.169.254/32", [80, 8080]),
        ("none", "169.254.169.254/32", []),
    ],
)
def test_the_metadata_server_is_open_only_on_demand(server: str, cidr: str, ports: list[int]) -> None:
    assert ports_to(render(minimal(networkPolicy={"metadataServer": server})), cidr) == ports


def test_dns_may_listen_elsewhere() -> None:
    rendered = render(minimal(networkPolicy={"dns": {"namespace": "openshift-dns", "ports": [5353]}}))
    rule = rendered.of_kind("NetworkPolicy")[0]["spec"]["egress"][1]
    assert [(port["protocol"], port["port"]) for port in rule["ports"]] == [("UDP", 5353), ("TCP", 5353)]


def test_metrics_can_be_switched_off() -> None:
    rendered = render(minimal(monitoring={"port": 0}))
    assert "CONSISTORY_METRICS" not in rendered.text
    assert "run-metrics" not in rendered.text
    assert "9464" not in rendered.text


def test_a_service_monitor_finds_its_service() -> None:
    rendered = render(minimal(monitoring={"serviceMonitor": {"enabled": True}}))
    service, monitor = rendered.one("Service"), rendered.one("ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["name"] == monitor["spec"]["endpoints"][0]["port"]
    head = rendered.cluster_spec["headGroupSpec"]["template"]
    assert service["spec"]["selector"].items() <= head["metadata"]["labels"].items()
    assert schemas.problems_of_builtin(service) == []


# Kueue


def test_kueue_sees_queue_and_priority() -> None:
    labels = render(value_set("kueue")).one("RayJob")["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "gpu-queue"
    assert labels["kueue.x-k8s.io/priority-class"] == "batch"
    elastic = render(
        merged(value_set("kueue"), {"kueue": {"elastic": True}, "ray": {"autoscaling": {"enabled": True}}})
    )
    assert elastic.one("RayJob")["metadata"]["annotations"] == {"kueue.x-k8s.io/elastic-job": "true"}
