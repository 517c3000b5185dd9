"""The configuration of Ray's cluster launcher: what `ray up FILE` reads.

Source: ray 2.60, ray/autoscaler/ray-schema.json, and the defaults.yaml of each provider.
"""

from __future__ import annotations

from typing import Any

from cluster.market import market_labels
from conf.schema.fleet import FleetSpec
from conf.schema.hardware import profiles
from conf.schema.node_type import NodeTypeSpec
from conf.schema.provider import Provider

HEAD = "head"
"""What the kind of the head's machine is called."""
PORT = 6379
TOKEN = "~/.ray/auth_token"
"""Where Ray looks for its token: on the machine that calls `ray up`, and on each that it starts."""
_RAY = "export RAY_AUTH_MODE=token && ulimit -n 65536 &&"


def launcher_config(fleet: FleetSpec) -> dict[str, Any]:
    """Returns the configuration, in plain values."""
    is_own = fleet.provider is Provider.on_prem
    config: dict[str, Any] = {
        "cluster_name": fleet.name,
        "provider": _provider(fleet),
        "auth": {"ssh_user": fleet.ssh.user},
        "docker": _docker(fleet),
        "max_workers": len(fleet.on_prem.worker_ips) if is_own else sum(n.max_nodes for n in fleet.workers.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": fleet.idle_timeout_s / 60,
        # the token goes from a file to a file: it stands in no configuration and on no command line
        "file_mounts": {TOKEN: TOKEN},
        # all is in the images; what stands here stands instead of Ray's defaults, which install a Ray of their own
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            f"{_RAY} ray start --head --port={PORT} --autoscaling-config=~/ray_bootstrap_config.yaml"
            " --dashboard-host=127.0.0.1 --disable-usage-stats",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            f"{_RAY} ray start --address=$RAY_HEAD_IP:{PORT} --disable-usage-stats",
        ],
    }
    if fleet.ssh.private_key is not None:
        config["auth"]["ssh_private_key"] = fleet.ssh.private_key
    if not is_own:
        config["head_node_type"] = HEAD
        config["available_node_types"] = {HEAD: _node_type(fleet, fleet.head, is_head=True)} | {
            name: _node_type(fleet, node) for name, node in fleet.workers.items()
        }
    return config


def _provider(fleet: FleetSpec) -> dict[str, Any]:
    if fleet.provider is Provider.aws:
        place: dict[str, Any] = {"type": "aws", "region": fleet.aws.region, "cache_stopped_nodes": False}
        if fleet.aws.zones:
            place["availability_zone"] = ",".join(fleet.aws.zones)
        return place
    if fleet.provider is Provider.gcp:
        gcp = fleet.gcp
        return {"type": "gcp", "region": gcp.region, "availability_zone": gcp.zone, "project_id": gcp.project}
    return {"type": "local", "head_ip": fleet.on_prem.head_ip, "worker_ips": list(fleet.on_prem.worker_ips)}


def _docker(fleet: FleetSpec) -> dict[str, Any]:
    is_own = fleet.provider is Provider.on_prem
    has_gpus = is_own or any(node.is_gpu for node in fleet.workers.values())
    return {
        "head_image": fleet.image.cpu,
        "worker_image": fleet.image.gpu if has_gpus else fleet.image.cpu,
        "container_name": fleet.name,
        "pull_before_run": True,
        "run_options": ["--ulimit nofile=65536:65536", "--security-opt no-new-privileges", "--cap-drop ALL"],
    }


def _node_type(fleet: FleetSpec, node: NodeTypeSpec, is_head: bool = False) -> dict[str, Any]:
    kind: dict[str, Any] = {
        "resources": _resources(node),
        "node_config": _aws_machine(fleet, node) if fleet.provider is Provider.aws else _gcp_machine(fleet, node),
    }
    if is_head:
        return kind
    kind |= {"min_workers": node.min_nodes, "max_workers": node.max_nodes}
    kind |= {"priority": node.priority, "labels": market_labels(node)}
    if node.is_gpu is not any(other.is_gpu for other in fleet.workers.values()):
        kind["docker"] = {"worker_image": fleet.image_of(node)}
    return kind


def _resources(node: NodeTypeSpec) -> dict[str, int]:
    """What Ray counts on before such a machine is there."""
    resources = {"CPU": node.num_cpus, "memory": int(node.memory_gib * (1 << 30) * 0.7)}
    if node.is_gpu:
        resources["GPU"] = node.num_devices
        resources[f"accelerator_type:{profiles()[node.hardware].accelerator}"] = 1
    return resources


def _aws_machine(fleet: FleetSpec, node: NodeTypeSpec) -> dict[str, Any]:
    """Arguments of EC2's RunInstances."""
    disk = {"VolumeSize": node.disk_gib, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    machine: dict[str, Any] = {
        "InstanceType": node.instance,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
        # a container is one hop further; the first version of the service needs no session and is off
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
    }
    if fleet.aws.image_id is not None:
        machine["ImageId"] = fleet.aws.image_id
    if fleet.aws.instance_profile is not None:
        machine["IamInstanceProfile"] = {"Arn": fleet.aws.instance_profile}
    if node.spot:
        machine["InstanceMarketOptions"] = {"MarketType": "spot"}
    return machine


def _gcp_machine(fleet: FleetSpec, node: NodeTypeSpec) -> dict[str, Any]:
    """The body of Compute Engine's instances.insert; machines such as g2 have their GPUs built in."""
    image = {"diskSizeGb": node.disk_gib, "sourceImage": fleet.gcp.source_image}
    machine: dict[str, Any] = {
        "machineType": node.instance,
        "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": image}],
        "shieldedInstanceConfig": {"enableVtpm": True, "enableIntegrityMonitoring": True},
    }
    scheduling: dict[str, Any] = {}
    if node.is_gpu:
        # a machine with a GPU cannot be moved while it runs
        scheduling["onHostMaintenance"] = "TERMINATE"
        machine["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
    if node.spot:
        scheduling |= {"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE", "automaticRestart": False}
    if scheduling:
        machine["scheduling"] = scheduling
    return machine
