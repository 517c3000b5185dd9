"""What KubeRay's operator refuses, beyond single fields, of what may stand in our manifests.

Source: KubeRay, ray-operator/controllers/ray/utils/validation.go (ValidateRayClusterSpec, ValidateRayJobSpec,
Validate...Metadata) and constant.go (lengths of names).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

MAX_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
AT = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}


def broken_rules(manifest: dict[str, Any]) -> Iterator[str]:
    """Yields each rule that a manifest breaks."""
    name, spec = manifest["metadata"]["name"], manifest["spec"]
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) or len(name) > MAX_NAME[manifest["kind"]]:
        yield f"the name {name} is no short DNS-1035 label"
    if manifest["kind"] == "RayJob":
        if spec["ttlSecondsAfterFinished"] < 0 or spec["backoffLimit"] < 0:
            yield "negative"
        if spec["ttlSecondsAfterFinished"] and not spec["shutdownAfterJobFinishes"]:
            yield "a time to live needs shutdownAfterJobFinishes"
        if {"clusterSelector", "deletionStrategy"} & set(spec):
            yield "beside rayClusterSpec and shutdownAfterJobFinishes"
    part = AT[manifest["kind"]]
    yield from _cluster(spec if part is None else spec[part])


def _cluster(spec: dict[str, Any]) -> Iterator[str]:
    version = tuple(int(number) for number in spec["rayVersion"].split("."))
    if spec["authOptions"]["mode"] == "token" and version < (2, 52, 0):
        yield "a token needs rayVersion 2.52.0"
    if "redis-password" in spec["headGroupSpec"]["rayStartParams"]:
        yield "redis-password belongs to gcsFaultToleranceOptions"
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        name, pod = group.get("groupName", "head"), group["template"]["spec"]
        if not pod["containers"]:
            yield f"{name} has no container"
            continue
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(group["rayStartParams"]):
            yield f"{name} says its resources twice"
        if "labels" in group["rayStartParams"]:
            yield f"{name} has labels in rayStartParams"
        if spec["autoscalerOptions"]["version"] == "v2" and pod.get("restartPolicy", "Never") != "Never":
            yield f"{name} must not restart with autoscaler v2"
        if group.get("suspend"):
            yield f"{name} is suspended"
        names = {item["name"] for item in pod["containers"][0].get("env", [])}
        if names & {"RAY_enable_autoscaler_v2", "RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}:
            yield f"{name} has a variable that the operator sets"
