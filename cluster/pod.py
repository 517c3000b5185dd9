"""The pods of a Ray cluster on Kubernetes: one container each, which nothing but Ray's token and a volume reaches."""

from __future__ import annotations

from typing import Any

from cluster.tpu_slice import slice_of
from conf.schema.fleet import FleetSpec
from conf.schema.hardware import profiles
from conf.schema.node_type import NodeTypeSpec

USER = 1000
"""The user and the group of the images."""
DATA = "/data"
SERVE_PORT, GCS_PORT, DASHBOARD_PORT, AGENT_PORT = 8000, 6379, 8265, 52365
GRACE_S = 120
"""What a pod has to end in: requests in flight, and rows."""
_STARTS, _PERIOD_S = 60, 5
"""A pod is given so many looks, so many seconds apart, until Ray answers."""


def pod_template(
    fleet: FleetSpec,
    node: NodeTypeSpec,
    *,
    is_head: bool,
    serves: bool = False,
    env: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Returns a PodTemplateSpec.

    Args:
        fleet: the cluster.
        node: the kind of machine.
        is_head: whether it is the head's.
        serves: whether it belongs to a service, where a worker is ready when Ray Serve's proxy on it answers.
        env: environment variables of the container.
    """
    gcs = {"path": "/api/gcs_healthz", "port": DASHBOARD_PORT}
    raylet = {"path": "/api/local_raylet_healthz", "port": AGENT_PORT}
    ready = gcs if is_head else {"path": "/-/healthz", "port": SERVE_PORT} if serves else raylet
    ports = {"gcs": GCS_PORT, "dashboard": DASHBOARD_PORT} if is_head else {}
    ports |= {"serve": SERVE_PORT} if serves else {}
    container = {
        "name": "ray-head" if is_head else "ray-worker",
        "image": fleet.image_of(node),
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "HOME", "value": "/home/manta"}, *(env or [])],
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": _resources(node),
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "data", "mountPath": DATA},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "ray", "mountPath": "/tmp/ray"},
        ],
        "startupProbe": _probe(raylet, failures=_STARTS),
        "livenessProbe": _probe(raylet, failures=12),
        "readinessProbe": _probe(ready, failures=2),
    }
    spec: dict[str, Any] = {
        # the head's account lets the autoscaler ask for pods; a worker asks Kubernetes for nothing
        **({} if is_head else {"automountServiceAccountToken": False}),
        "enableServiceLinks": False,
        # a container that starts again would be another Ray node in the pod that the autoscaler knows
        "restartPolicy": "Never",
        "securityContext": pod_security(),
        "terminationGracePeriodSeconds": GRACE_S,
        "containers": [container],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": fleet.kube.claim}},
            # the object store: a third of the memory, as Ray takes it
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{max(1, node.memory_gib // 3)}Gi"}},
            {"name": "ray", "emptyDir": {"sizeLimit": f"{node.disk_gib // 2}Gi"}},
        ],
    }
    if selector := _selector(node):
        spec["nodeSelector"] = selector
    if tolerations := _tolerations(node):
        spec["tolerations"] = tolerations
    return {"metadata": {"labels": part_of(fleet)}, "spec": spec}


def part_of(fleet: FleetSpec) -> dict[str, str]:
    """Returns the labels of all that belongs to a cluster; KubeRay sets app.kubernetes.io/name itself."""
    return {"app.kubernetes.io/instance": fleet.name, "app.kubernetes.io/part-of": "manta"}


def secret_variable(name: str, secret: str, key: str) -> dict[str, Any]:
    """Returns an environment variable whose value stays in a Secret."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def pod_security() -> dict[str, Any]:
    """Returns a PodSecurityContext of the level `restricted`."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """Returns a container's SecurityContext of the level `restricted`."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _resources(node: NodeTypeSpec) -> dict[str, dict[str, str]]:
    """Requests that equal the limits: Kubernetes wants it of devices, and ends such pods last where memory is short."""
    amounts = {
        "cpu": str(node.num_cpus),
        "memory": f"{node.memory_gib}Gi",
        "ephemeral-storage": f"{node.disk_gib}Gi",
    }
    if node.is_gpu:
        amounts["nvidia.com/gpu"] = str(node.num_devices)
    if node.is_tpu:
        amounts["google.com/tpu"] = str(slice_of(node).chips_per_host)
    return {"requests": amounts, "limits": dict(amounts)}


def _probe(get: dict[str, Any], failures: int) -> dict[str, Any]:
    return {"httpGet": dict(get), "periodSeconds": _PERIOD_S, "timeoutSeconds": 5, "failureThreshold": failures}


def _selector(node: NodeTypeSpec) -> dict[str, str]:
    """Labels as GKE has them; what the user says of a node without TPUs stands in their place."""
    selector: dict[str, str] = {}
    profile = profiles()[node.hardware]
    if node.node_selector and not node.is_tpu:
        return dict(node.node_selector)
    if node.is_tpu:
        assert node.topology is not None
        assert profile.gke_accelerator is not None
        selector["cloud.google.com/gke-tpu-accelerator"] = profile.gke_accelerator
        selector["cloud.google.com/gke-tpu-topology"] = node.topology
    elif profile.gke_accelerator is not None:
        selector["cloud.google.com/gke-accelerator"] = profile.gke_accelerator
    if node.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    return selector | node.node_selector


def _tolerations(node: NodeTypeSpec) -> list[dict[str, str]]:
    """What keeps other pods off such nodes lets these on."""
    tolerations = []
    if node.is_gpu:
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if node.is_tpu:
        tolerations.append({"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"})
    if node.spot:
        key = "cloud.google.com/gke-spot"
        tolerations.append({"key": key, "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    return tolerations
