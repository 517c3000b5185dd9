"""What `kubectl apply` reads, held against KubeRay's reference, Kubernetes' schema, Ray's own reading and Ray Serve."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from fleets import KUBERAY, rendered
from kuberay_fields import kubernetes_parts, mistakes
from kuberay_rules import broken_rules

from conf import entry

KINDS = {"raycluster": "RayCluster", "rayjob": "RayJob", "rayservice": "RayService"}
CLUSTER_AT = {"raycluster": "spec", "rayjob": "rayClusterSpec", "rayservice": "rayClusterConfig"}
MANIFESTS = [(name, file) for name in KUBERAY for file in KINDS]
KUBERNETES = ("1.34", "1.37")


def cluster_of(name: str, file: str) -> dict[str, Any]:
    """The RayClusterSpec of a manifest."""
    spec = rendered(name)[file]["spec"]
    return spec if file == "raycluster" else spec[CLUSTER_AT[file]]


def pods_of(name: str, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every PodTemplateSpec, by its path."""
    for path, kind, value in kubernetes_parts(rendered(name)[file]):
        if kind == "POD_TEMPLATE":
            yield path, value


def ray_reads(cluster: dict[str, Any]) -> dict[str, Any]:
    """The node types that Ray's autoscaler makes of a RayCluster."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    return _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "y"}, "spec": cluster})


@pytest.mark.parametrize("name, file", MANIFESTS)
def test_every_field_is_one_of_kuberay_s_reference(name: str, file: str):
    manifest = rendered(name)[file]
    assert manifest["kind"] == KINDS[file]
    assert list(mistakes(manifest)) == []


@pytest.mark.parametrize(
    "change, said",
    [
        ({"upgradeStrategie": {}}, "spec.upgradeStrategie: RayServiceSpec has no such field"),
        ({"upgradeStrategy": {"type": "Rolling"}}, "spec.upgradeStrategy.type: 'Rolling' is none of"),
        ({"rayClusterDeletionDelaySeconds": "60"}, "'60' is no int"),
        ({"rayClusterConfig": {"authOptions": {"mode": "tokn"}}}, "spec.rayClusterConfig.authOptions.mode"),
        ({"rayClusterConfig": {"workerGroupSpecs": [{"numOfHost": 4}]}}, "workerGroupSpecs[0].numOfHost"),
        (
            {"rayClusterConfig": {"headGroupSpec": {"rayStartParams": {"num-cpus": 8}}}},
            "rayStartParams: no map of text",
        ),
    ],
)
def test_a_field_that_the_reference_does_not_have_is_found(change: dict[str, Any], said: str):
    manifest = rendered("kuberay")["rayservice"]
    manifest["spec"] |= change
    assert any(said in mistake for mistake in mistakes(manifest)), list(mistakes(manifest))


@pytest.mark.parametrize("name, file", MANIFESTS)
def test_the_operator_refuses_no_combination_of_fields(name: str, file: str):
    manifest = rendered(name)[file]
    assert list(broken_rules(manifest)) == []
    cluster = manifest["spec"] if file == "raycluster" else manifest["spec"][CLUSTER_AT[file]]
    cluster["rayVersion"] = "2.51.0"
    cluster["workerGroupSpecs"][0]["template"]["spec"]["restartPolicy"] = "Always"
    cluster["workerGroupSpecs"][0]["resources"] = {"CPU": "4"}
    manifest["metadata"]["name"] = "Manta"
    assert len(list(broken_rules(manifest))) == 4


def test_the_longest_name_that_a_cluster_may_have_is_short_enough_for_the_operator():
    for manifest in rendered("kuberay", f"fleet.name={'n' * 30}").values():
        assert list(broken_rules(manifest)) == []


def test_labels_of_nodes_elsewhere_stand_in_the_place_of_gke_s():
    words = [f"fleet.workers.{name}.node_selector.pool={name}" for name in ("gpu-spot", "gpu-on-demand")]
    groups = rendered("kuberay", *words)["raycluster"]["spec"]["workerGroupSpecs"]
    selectors = [group["template"]["spec"]["nodeSelector"] for group in groups]
    assert selectors == [{"pool": "gpu-spot"}, {"pool": "gpu-on-demand"}]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name, file", MANIFESTS)
def test_pods_and_security_contexts_are_what_kubernetes_schema_allows(name: str, file: str, version: str):
    validate = pytest.importorskip("kubernetes_validate").validate
    wrapped = [wrap(kind, value) for _, kind, value in kubernetes_parts(rendered(name)[file])]
    assert len(wrapped) >= 3
    for resource in wrapped:
        assert validate(resource, version, strict=True) == version


def test_kubernetes_schema_refuses_a_pod_that_is_wrong():
    found = pytest.importorskip("kubernetes_validate")
    (_, good), *_ = pods_of("kuberay", "raycluster")
    for path, value in ((("containers", 0, "resource"), {}), (("terminationGracePeriodSeconds",), "120")):
        bad = copy.deepcopy(good)
        node: Any = bad["spec"]
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value
        with pytest.raises(found.ValidationError):
            found.validate(wrap("POD_TEMPLATE", bad), KUBERNETES[0], strict=True)


def wrap(kind: str, value: Any) -> dict[str, Any]:
    """Puts a part of a manifest where a whole resource of Kubernetes has it."""
    head: dict[str, Any] = {"apiVersion": "v1", "metadata": {"name": "x"}}
    if kind == "POD_TEMPLATE":
        return head | {"kind": "PodTemplate", "template": value}
    assert kind == "SECURITY_CONTEXT", f"say how {kind} is checked"
    return head | {"kind": "Pod", "spec": {"containers": [{"name": "x", "securityContext": value}]}}


@pytest.mark.parametrize("name, file", MANIFESTS)
def test_ray_s_autoscaler_reads_the_cluster(name: str, file: str):
    cluster = cluster_of(name, file)
    kinds = ray_reads(cluster)["available_node_types"]
    assert "GPU" not in kinds["headgroup"]["resources"]
    for group in cluster["workerGroupSpecs"]:
        kind = kinds[group["groupName"]]
        hosts = group.get("numOfHosts", 1)
        assert (kind["min_workers"], kind["max_workers"]) == (
            group["minReplicas"] * hosts,
            group["maxReplicas"] * hosts,
        )
        assert kind["labels"] == group["labels"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize(
    "name, head", [("kuberay_tpu_v5e", "TPU-v5litepod-16-head"), ("kuberay_tpu_v6e", "TPU-v6e-16-head")]
)
def test_a_slice_has_its_hosts_its_chips_and_its_head(name: str, head: str):
    cluster = cluster_of(name, "raycluster")
    (group,) = cluster["workerGroupSpecs"]
    resources = ray_reads(cluster)["available_node_types"][group["groupName"]]["resources"]
    assert (group["numOfHosts"], resources["TPU"], resources[head]) == (4, 4, 1)
    (container,) = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["google.com/tpu"] == "4"
    assert group["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"


def test_a_spot_node_comes_first_and_an_on_demand_one_where_none_is_to_be_had():
    from test_launcher import launched

    cluster = cluster_of("kuberay", "raycluster")
    assert launched(ray_reads(cluster)) == {"gpu-spot": 1}
    assert launched(ray_reads(cluster), failed=("gpu-spot",)) == {"gpu-on-demand": 1}
    first = rendered("kuberay", "fleet.workers.gpu-on-demand.priority=20")["raycluster"]["spec"]
    assert launched(ray_reads(first)) == {"gpu-on-demand": 1}


def test_a_service_gets_no_machine_that_may_be_taken_back_and_both_begin_with_a_gpu():
    groups = {file: cluster_of("kuberay", file)["workerGroupSpecs"] for file in KINDS}
    found = {file: [(group["groupName"], group["minReplicas"]) for group in part] for file, part in groups.items()}
    assert found == {
        "raycluster": [("gpu-spot", 0), ("gpu-on-demand", 0)],
        "rayjob": [("gpu-spot", 0), ("gpu-on-demand", 1)],
        "rayservice": [("gpu-on-demand", 1)],
    }
    spot = groups["raycluster"][0]["template"]["spec"]
    assert spot["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spot["tolerations"]


@pytest.mark.parametrize("name, file", MANIFESTS)
def test_pods_are_of_the_level_restricted_and_ask_for_what_they_may_use(name: str, file: str):
    """Kubernetes' Pod Security Standards: kubernetes.io/docs/concepts/security/pod-security-standards."""
    for path, template in pods_of(name, file):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, path
        assert pod["securityContext"]["runAsUser"] > 0, path
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, path
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), path
        kinds = {kind for volume in pod.get("volumes", []) for kind in volume if kind != "name"}
        assert kinds <= {"emptyDir", "persistentVolumeClaim"}, path
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, path
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, path
            assert container["resources"]["requests"] == container["resources"]["limits"], path
            assert {"cpu", "memory"} <= set(container["resources"]["limits"]), path
            assert container["image"].partition(":")[2] not in ("", "latest"), path
            is_ray = container["name"].startswith("ray-") and container["name"] != "ray-job-submitter"
            probes = {"startupProbe", "livenessProbe", "readinessProbe"}
            assert probes <= set(container) if is_ray else not probes & set(container), path
        if not path.endswith("headGroupSpec.template"):
            assert pod["automountServiceAccountToken"] is False, path


@pytest.mark.parametrize("name, file", MANIFESTS)
def test_ray_asks_for_a_token_that_stands_in_a_secret(name: str, file: str):
    assert cluster_of(name, file)["authOptions"] == {"mode": "token", "secretName": "manta-ray-token"}


@pytest.mark.parametrize("name", KUBERAY)
def test_a_job_is_manta_batch_as_it_would_be_typed(name: str):
    spec = rendered(name)["rayjob"]["spec"]
    manta, verb, *words = shlex.split(spec["entrypoint"])
    assert (manta, verb) == ("manta", "batch")
    job = entry.compose("batch", *words)
    assert (job.cluster.address, job.data.prompt) == ("auto", "{{ question }}")
    assert (spec["shutdownAfterJobFinishes"], spec["backoffLimit"]) == (True, 2)
    if name != "kuberay":  # TPUs answer behind the service
        assert (
            job.engine.service.url
            == f"http://manta-{name[8:].replace('_', '-')}-service-serve-svc.manta.svc.cluster.local:8000"
        )
        (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
        assert "google.com/tpu" not in group["template"]["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize("name", KUBERAY)
def test_ray_serve_takes_what_a_service_deploys(name: str):
    from ray.serve.schema import ServeDeploySchema

    spec = rendered(name)["rayservice"]["spec"]
    assert spec["upgradeStrategy"] == {"type": "NewCluster"}
    assert spec["excludeHeadPodFromServeSvc"] is True
    config = yaml.safe_load(spec["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(config)
    (application,) = schema.applications
    assert (application.route_prefix, schema.http_options.port) == ("/", 8000)
    known = set(ServeDeploySchema.model_fields), set(type(application).model_fields)
    assert set(config) <= known[0], "Ray Serve ignores what it does not know"
    assert set(config["applications"][0]) <= known[1]
    assert application.import_path == (
        "serve.application:build" if name == "kuberay" else "ray.serve.llm:build_openai_app"
    )


def test_a_service_s_pods_have_what_manta_serve_sets_elsewhere():
    from conf.schema.serve import ProxyForm
    from serve.middleware.proxy import environment

    wanted = environment("manta", 600.0, ProxyForm.plain, 4 << 20)
    for _, template in pods_of("kuberay", "rayservice"):
        (container,) = template["spec"]["containers"]
        env = {item["name"]: item.get("value") for item in container["env"]}
        assert {key: env.get(key) for key in wanted} == wanted
        secret = next(item for item in container["env"] if item["name"] == "MANTA_API_KEYS")
        assert secret["valueFrom"] == {"secretKeyRef": {"name": "manta-api-keys", "key": "MANTA_API_KEYS"}}


def test_a_slice_s_engine_is_told_what_ray_serve_llm_asks_for():
    service = rendered("kuberay_tpu_v6e")["rayservice"]["spec"]
    (config,) = yaml.safe_load(service["serveConfigV2"])["applications"][0]["args"]["llm_configs"]
    assert config["engine_kwargs"] == {"tensor_parallel_size": 16, "distributed_executor_backend": "ray"}
    assert config["accelerator_config"] == {"kind": "tpu", "topology": "4x4"}
    assert config["accelerator_type"] == "TPU-V6E"
