"""The fields of ray.io/v1 that manifests may use, and a check against them.

Source: KubeRay v1.6.2, docs/reference/api.md, which KubeRay generates from the types of its CRDs (as it stands in Ray's
documentation: https://docs.ray.io/en/master/cluster/kubernetes/references/api.html). No package that was found on PyPI
or npm ships the CRDs. Fields that are deprecated there are left out, so their use fails. Types in capitals are
Kubernetes': what stands there is checked against Kubernetes' own schema (see `kubernetes_parts`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ROOTS = {"RayCluster": "RayClusterSpec", "RayJob": "RayJobSpec", "RayService": "RayServiceSpec"}
FIELDS: dict[str, dict[str, Any]] = {
    "RayClusterSpec": {
        "upgradeStrategy": "RayClusterUpgradeStrategy",
        "authOptions": "AuthOptions",
        "suspend": bool,
        "managedBy": str,
        "autoscalerOptions": "AutoscalerOptions",
        "headServiceAnnotations": dict,
        "enableInTreeAutoscaling": bool,
        "gcsFaultToleranceOptions": "GcsFaultToleranceOptions",
        "headGroupSpec": "HeadGroupSpec",
        "rayVersion": str,
        "workerGroupSpecs": ["WorkerGroupSpec"],
    },
    "AuthOptions": {"enableK8sTokenAuth": bool, "secretName": str, "mode": {"disabled", "token"}},
    "AutoscalerOptions": {
        "resources": "RESOURCES",
        "image": str,
        "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
        "securityContext": "SECURITY_CONTEXT",
        "idleTimeoutSeconds": int,
        "upscalingMode": {"Default", "Aggressive", "Conservative"},
        "version": {"v1", "v2"},
        "env": "ENV",
        "envFrom": "ENV_FROM",
        "volumeMounts": "VOLUME_MOUNTS",
    },
    "RayClusterUpgradeStrategy": {"type": {"Recreate", "None"}},
    "GcsFaultToleranceOptions": {
        "redisUsername": "RedisCredential",
        "redisPassword": "RedisCredential",
        "externalStorageNamespace": str,
        "redisAddress": str,
    },
    "RedisCredential": {"valueFrom": dict, "value": str},
    "HeadGroupSpec": {
        "template": "POD_TEMPLATE",
        "headService": "SERVICE",
        "enableIngress": bool,
        "resources": dict,
        "labels": dict,
        "rayStartParams": dict,
        "serviceType": {"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"},
    },
    "WorkerGroupSpec": {
        "groupName": str,
        "replicas": int,
        "minReplicas": int,
        "maxReplicas": int,
        "idleTimeoutSeconds": int,
        "resources": dict,
        "labels": dict,
        "rayStartParams": dict,
        "template": "POD_TEMPLATE",
        "scaleStrategy": "ScaleStrategy",
        "numOfHosts": int,
    },
    "ScaleStrategy": {"workersToDelete": [str]},
    "RayJobSpec": {
        "activeDeadlineSeconds": int,
        "backoffLimit": int,
        "rayClusterSpec": "RayClusterSpec",
        "submitterPodTemplate": "POD_TEMPLATE",
        "metadata": dict,
        "clusterSelector": dict,
        "submitterConfig": "SubmitterConfig",
        "managedBy": str,
        "deletionStrategy": dict,
        "entrypoint": str,
        "runtimeEnvYAML": str,
        "jobId": str,
        "submissionMode": {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"},
        "entrypointResources": str,
        "entrypointNumCpus": float,
        "entrypointNumGpus": float,
        "ttlSecondsAfterFinished": int,
        "preRunningDeadlineSeconds": int,
        "shutdownAfterJobFinishes": bool,
        "suspend": bool,
    },
    "SubmitterConfig": {"backoffLimit": int},
    "RayServiceSpec": {
        "rayClusterDeletionDelaySeconds": int,
        "serveService": "SERVICE",
        "upgradeStrategy": "RayServiceUpgradeStrategy",
        "managedBy": str,
        "serveConfigV2": str,
        "rayClusterConfig": "RayClusterSpec",
        "excludeHeadPodFromServeSvc": bool,
    },
    "RayServiceUpgradeStrategy": {
        "type": {"NewClusterWithIncrementalUpgrade", "NewCluster", "None"},
        "clusterUpgradeOptions": "ClusterUpgradeOptions",
    },
    "ClusterUpgradeOptions": {
        "maxSurgePercent": int,
        "stepSizePercent": int,
        "intervalSeconds": int,
        "gatewayClassName": str,
    },
}


def mistakes(manifest: dict[str, Any]) -> Iterator[str]:
    """Yields what the reference does not know, by its path."""
    if manifest.get("apiVersion") != "ray.io/v1":
        yield f"apiVersion: {manifest.get('apiVersion')}"
    if extra := set(manifest) - {"apiVersion", "kind", "metadata", "spec"}:
        yield f"beside spec: {sorted(extra)}"
    yield from _object(manifest["spec"], ROOTS[manifest["kind"]], "spec")


def kubernetes_parts(manifest: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yields what is Kubernetes' own: the path, the type in capitals, the value."""
    yield from _parts(manifest["spec"], ROOTS[manifest["kind"]], "spec")


def _object(value: Any, name: str, path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: no object"
        return
    for key, item in value.items():
        if key not in FIELDS[name]:
            yield f"{path}.{key}: {name} has no such field"
        else:
            yield from _value(item, FIELDS[name][key], f"{path}.{key}")


def _value(value: Any, kind: Any, path: str) -> Iterator[str]:
    if isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{path}: no list"
            return
        for index, item in enumerate(value):
            yield from _value(item, kind[0], f"{path}[{index}]")
    elif isinstance(kind, set):
        if value not in kind:
            yield f"{path}: {value!r} is none of {sorted(kind)}"
    elif kind is dict:
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            yield f"{path}: no map of text"
    elif isinstance(kind, type):
        if type(value) is not kind:
            yield f"{path}: {value!r} is no {kind.__name__}"
    elif kind in FIELDS:
        yield from _object(value, kind, path)


def _parts(value: Any, kind: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    if isinstance(kind, list):
        for index, item in enumerate(value):
            yield from _parts(item, kind[0], f"{path}[{index}]")
    elif isinstance(kind, str) and kind in FIELDS:
        for key, item in value.items():
            yield from _parts(item, FIELDS[kind][key], f"{path}.{key}")
    elif isinstance(kind, str):
        yield path, kind, value
