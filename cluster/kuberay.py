"""Manifests for the KubeRay operator: RayCluster, RayJob, RayService.

Source: KubeRay 1.6.2, the API reference of ray.io/v1 (docs/reference/api.md), and Ray's guides to KubeRay.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import yaml

from cluster.market import market_labels
from cluster.pod import SERVE_PORT, container_security, part_of, pod_security, pod_template, secret_variable
from cluster.tpu_slice import slice_of
from conf import entry
from conf.errors import UserError
from conf.schema.batch import BatchJob
from conf.schema.fleet import FleetSpec
from conf.schema.node_type import NodeTypeSpec
from conf.schema.serve import ServeJob

API = "ray.io/v1"
JOB_TRIES = 2
"""A job whose driver or head is lost runs again so often, on a new cluster; it goes on where it ended."""
JOB_KEPT_S = 600
"""A job's cluster stays so long after it, for its logs."""
APPLICATION = "serve.application:build"
LLM_APPLICATION = "ray.serve.llm:build_openai_app"


def service_name(fleet: FleetSpec) -> str:
    """Returns the RayService's name; KubeRay puts its address at NAME-serve-svc."""
    return f"{fleet.name}-service"


def ray_cluster(fleet: FleetSpec) -> dict[str, Any]:
    """Returns a RayCluster that stays, for jobs that are submitted to it."""
    return _resource("RayCluster", fleet.name, fleet, _cluster(fleet, fleet.workers))


def ray_job(fleet: FleetSpec) -> dict[str, Any]:
    """Returns a RayJob: `manta batch` on a cluster of its own, which goes when it has ended.

    Raises:
        UserError: when fleet.batch is no job.
    """
    words = batch_words(fleet)
    workers = _begun(fleet.workers)
    if fleet.slices:  # the rows are computed by the service; here they are read, sent and written
        workers = {"cpu": replace(fleet.head, min_nodes=0, max_nodes=1)}
    spec = {
        "entrypoint": shlex.join(["manta", "batch", *words]),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": JOB_KEPT_S,
        "backoffLimit": JOB_TRIES,
        "submitterConfig": {"backoffLimit": JOB_TRIES},
        "submitterPodTemplate": _submitter(fleet),
        "rayClusterSpec": _cluster(fleet, workers),
    }
    return _resource("RayJob", f"{fleet.name}-job", fleet, spec)


def ray_service(fleet: FleetSpec) -> dict[str, Any]:
    """Returns a RayService. A change of it starts a new cluster, which takes over once it answers: no request is lost.

    Raises:
        UserError: when fleet.serve is no service.
    """
    stays = _begun({name: node for name, node in fleet.workers.items() if not node.spot})
    env = [] if fleet.slices else _service_environment(fleet)
    spec = {
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterDeletionDelaySeconds": fleet.kube.deletion_delay_s,
        "excludeHeadPodFromServeSvc": True,
        "serveConfigV2": yaml.safe_dump(_serve_config(fleet), sort_keys=False, width=10_000),
        "rayClusterConfig": _cluster(fleet, stays, serves=True, env=env),
    }
    return _resource("RayService", service_name(fleet), fleet, spec)


def _resource(kind: str, name: str, fleet: FleetSpec, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": fleet.kube.namespace, "labels": part_of(fleet)}
    return {"apiVersion": API, "kind": kind, "metadata": metadata, "spec": spec}


def _begun(workers: dict[str, NodeTypeSpec]) -> dict[str, NodeTypeSpec]:
    """Workers of which one that stays is there from the beginning: without a device `manta` starts no replica."""
    first = next(name for name, node in workers.items() if not node.spot)
    return workers | {first: replace(workers[first], min_nodes=max(1, workers[first].min_nodes))}


def _cluster(
    fleet: FleetSpec,
    workers: dict[str, NodeTypeSpec],
    serves: bool = False,
    env: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A RayClusterSpec."""
    head = pod_template(fleet, fleet.head, is_head=True, serves=serves, env=env)
    # KubeRay 1.6 knows no priority of groups; of those that fit equally well Ray's scheduler takes the first
    ordered = sorted(workers.items(), key=lambda item: -item[1].priority)
    return {
        "rayVersion": fleet.ray_version,
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2",
            "upscalingMode": "Default",
            "idleTimeoutSeconds": fleet.idle_timeout_s,
            "securityContext": container_security(),
        },
        "authOptions": {"mode": "token", "secretName": fleet.kube.token_secret},
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": str(fleet.head.num_cpus)},
            "template": head,
        },
        "workerGroupSpecs": [_group(fleet, name, node, serves, env) for name, node in ordered],
    }


def _group(
    fleet: FleetSpec, name: str, node: NodeTypeSpec, serves: bool, env: list[dict[str, Any]] | None
) -> dict[str, Any]:
    group: dict[str, Any] = {
        "groupName": name,
        "replicas": node.min_nodes,
        "minReplicas": node.min_nodes,
        "maxReplicas": node.max_nodes,
        "idleTimeoutSeconds": fleet.idle_timeout_s,
        "labels": market_labels(node),
        "rayStartParams": {"num-cpus": str(node.num_cpus)},
        "template": pod_template(fleet, node, is_head=False, serves=serves, env=env),
    }
    if node.is_tpu:
        group["numOfHosts"] = slice_of(node).num_hosts
    return group


def _submitter(fleet: FleetSpec) -> dict[str, Any]:
    """The pod that hands the job to Ray and follows its log."""
    amounts = {"cpu": "500m", "memory": "512Mi"}
    container = {
        "name": "ray-job-submitter",
        "image": fleet.image.cpu,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "securityContext": container_security(),
    }
    return {
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": pod_security(),
            "containers": [container],
        }
    }


def batch_words(fleet: FleetSpec) -> list[str]:
    """Returns the words of the job: on the cluster that it is submitted to, and of TPUs at the service.

    Raises:
        UserError: when they are no job.
    """
    words = ["cluster=existing", f"model.path={fleet.model}", *fleet.batch]
    if fleet.slices:
        url = f"http://{service_name(fleet)}-serve-svc.{fleet.kube.namespace}.svc.cluster.local:{SERVE_PORT}"
        words += ["engine=service", f"engine.service.url={url}", f"engine.service.model={fleet.name}"]
        words += ["engine.service.priority=0", "engine.service.admission.rule=all"]
    _composed("batch", words)
    return words


def serve_words(fleet: FleetSpec) -> list[str]:
    """Returns the words of the service.

    Raises:
        UserError: when they are no service.
    """
    words = ["cluster=existing", f"model.path={fleet.model}", *fleet.serve, f"deployment.port={SERVE_PORT}"]
    _composed("serve", words)
    return words


def _composed(verb: str, words: list[str]) -> BatchJob | ServeJob:
    try:
        return entry.compose(verb, *words)
    except UserError as error:
        raise UserError(f"fleet.{verb} must be words of manta {verb}: {error}") from None


def _serve_config(fleet: FleetSpec) -> dict[str, Any]:
    """What Ray Serve deploys (ServeDeploySchema)."""
    application: dict[str, Any] = {"name": fleet.name, "route_prefix": "/"}
    if not fleet.slices:
        words = [*serve_words(fleet), f"deployment.name={fleet.name}"]
        application |= {"import_path": APPLICATION, "args": {"words": words}}
    else:
        application |= {"import_path": LLM_APPLICATION, "args": {"llm_configs": [_llm_config(fleet)]}}
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": SERVE_PORT},
        "applications": [application],
    }


def _llm_config(fleet: FleetSpec) -> dict[str, Any]:
    """Arguments of Ray Serve LLM over a slice. Source: Ray's guide "TPU serving"."""
    node = next(iter(fleet.slices.values()))
    tpus = slice_of(node)
    return {
        "model_loading_config": {"model_id": fleet.name, "model_source": fleet.model},
        "accelerator_type": tpus.profile.accelerator,
        "accelerator_config": {"kind": "tpu", "topology": tpus.topology},
        "engine_kwargs": tpus.engine_arguments,
        "deployment_config": {
            "autoscaling_config": {"min_replicas": max(1, node.min_nodes), "max_replicas": node.max_nodes}
        },
    }


def _service_environment(fleet: FleetSpec) -> list[dict[str, Any]]:
    """What Ray Serve's controller, its proxies and the replicas must find; `serve.begin` sets the same elsewhere."""
    job = _composed("serve", serve_words(fleet))
    assert isinstance(job, ServeJob)
    variables = {
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.middleware.proxy:layers",
        "MANTA_REQUEST_TIMEOUT_S": str(job.deployment.request_timeout_s),
        "MANTA_MAX_BODY_BYTES": str(job.access.max_body_bytes),
        "MANTA_SERVICE": fleet.name,
        "MANTA_ASK_AGAIN": "1",
        "MANTA_DISPATCH": "1",
    }
    found = [{"name": name, "value": value} for name, value in variables.items()]
    return [*found, secret_variable("MANTA_API_KEYS", fleet.kube.keys_secret, "MANTA_API_KEYS")]
