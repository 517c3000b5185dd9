"""Starts a cluster of several nodes on this machine, which outlives who starts it: own ports, folder and token."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from cluster import dashboard, known
from cluster.child import manta_environment
from cluster.connect import DEFAULTS, LOOPBACK
from cluster.ending import MARK, end
from cluster.known import KnownCluster
from cluster.node import HOST, NodeSpec
from cluster.own_file import write_own
from cluster.ports import free_ports
from cluster.process import process_of
from cluster.targets import announce_cluster, targets_folder
from conf.schema.cluster import ClusterSpec

PROGRAM = ("-m", "cluster.node")
"""What a node is, for Python; it takes the file of its `NodeSpec`."""
NODE_S = 90.0
"""Seconds that a node may take to start."""
ANSWER_S = 30.0
"""Seconds that all nodes may take to be seen once they have started."""
POLL_S = 0.05
MIN_CPUS = 2
"""CPUs that a node counts at least: one for a replica, one for what reads for it."""
ELSEWHERE = (
    *("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_REDIS_ADDRESS", "RAY_NAMESPACE"),
    *("RAY_OVERRIDE_NODE_ID_FOR_TESTING", "RAY_FAKE_CLUSTER", "RAY_JOB_CONFIG_JSON_ENV_VAR"),
)
"""Variables that speak of another cluster."""
MAX_TMP_CHARS = 20
"""Ray's sockets lie 67 letters below a node's folder, whose path has 18 more, and 107 are allowed."""


def start(spec: ClusterSpec, name: str, say: Callable[[str], None], environ: Mapping[str, str]) -> KnownCluster:
    """Starts the nodes and waits until all of them are there; what has begun ends with any failure.

    Args:
        spec: how many nodes, and how large.
        name: of the cluster; none of this name may be known.
        say: is told how it goes.
        environ: says where clusters are known.

    Raises:
        RuntimeError: when a node does not start; says what it said.
    """
    fewest = spec.nodes
    gcs_port, dashboard_port, *metrics_ports = ports = free_ports(4 + fewest)
    agent_ports = ports[4:]
    cluster = KnownCluster(
        name=name,
        gcs_address=f"{HOST}:{gcs_port}",
        jobs_url=f"http://{HOST}:{dashboard_port}",
        token=secrets.token_hex(32),
        folder=known.clusters_folder(environ) / name,
        scratch=_make_scratch(),
        is_ready=False,
    )
    scratch = str(cluster.scratch)
    most = spec.max_nodes or fewest
    head = NodeSpec(
        name="head",
        gcs_address=None,
        gcs_port=gcs_port,
        dashboard_port=dashboard_port,
        agent_port=agent_ports[0],
        num_cpus=spec.num_cpus or max(MIN_CPUS, len(os.sched_getaffinity(0)) // most),
        object_store_bytes=spec.object_store_bytes,
        scratch=scratch,
    )
    cluster = replace(cluster, most_cpus=most * head.num_cpus)
    try:
        known.write(cluster)
        environment = node_environment(cluster, metrics_ports[:2], spec.max_nodes is not None)
        if spec.max_nodes is not None:
            path = Path(scratch) / "autoscaling.json"
            write_own(path, msgspec.json.encode(autoscaling(spec, cluster, head)))
            head, others = replace(head, autoscaling=str(path)), []
        else:
            others = [
                replace(head, name=f"node-{number}", gcs_address=cluster.gcs_address, agent_port=port)
                for number, port in enumerate(agent_ports[1:], 1)
            ]
        began = time.monotonic()
        for batch in ([head], others):  # the others need the head's control store
            children = []
            for node in batch:
                child = _start_node(node, environment)
                children.append((node, child))
                cluster = replace(cluster, processes=(*cluster.processes, process_of(child.pid)))
                known.write(cluster)  # a starter that is killed leaves nothing that `down` does not know
            for node, child in children:
                _wait_for(node, child)
                say(f"{node.name} is up, {node.num_cpus} CPUs ({time.monotonic() - began:.0f} s)")
        _wait_for_all(cluster, fewest)
        cluster = replace(cluster, is_ready=True)
        known.write(cluster)
        announce_cluster(targets_folder(environ), name, head.listing)
        return cluster
    except BaseException:
        end(cluster, environ, grace_s=2.0)
        raise


def node_environment(cluster: KnownCluster, metrics_ports: list[int], is_autoscaled: bool) -> dict[str, str]:
    """Returns the environment of a node: nothing in it speaks of another cluster; the token stays in its file."""
    environment = {key: value for key, value in manta_environment().items() if key not in ELSEWHERE}
    # jobs would take these for their own
    environment = {key: value for key, value in environment.items() if not key.startswith("RAY_JOB_")}
    environment = DEFAULTS | environment | LOOPBACK
    environment |= {
        MARK: str(cluster.scratch),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(cluster.folder / known.TOKEN),
        # fixed by default, so that a second Ray's are missing
        "DASHBOARD_METRIC_PORT": str(metrics_ports[0]),
        "AUTOSCALER_METRIC_PORT": str(metrics_ports[1]),
    }
    if is_autoscaled:
        environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    return environment


def autoscaling(spec: ClusterSpec, cluster: KnownCluster, head: NodeSpec) -> dict[str, Any]:
    """Returns the configuration of Ray's autoscaler, whose provider starts nodes on this machine.

    Source: ray 2.60, `autoscaler/_private/fake_multi_node`; all keys are needed.
    """
    assert spec.max_nodes is not None
    worker = {"CPU": head.num_cpus, "object_store_memory": head.object_store_bytes}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": cluster.name,
        "max_workers": spec.max_nodes - 1,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": spec.idle_s / 60,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": cluster.gcs_address,
            "launch_multiple": True,
            "use_node_id_as_ip": True,  # nodes share an address: without it none counts as alive
            "disable_node_updaters": True,  # nor is there a shell to reach them by
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": head.num_cpus}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": worker,
                "node_config": {},
                "min_workers": spec.nodes - 1,
                "max_workers": spec.max_nodes - 1,
            },
        },
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        **{f"{kind}_commands": [] for kind in commands},
    }


def _start_node(node: NodeSpec, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    path = Path(node.scratch) / f"{node.name}.json"
    write_own(path, msgspec.json.encode(node))
    with node.log_file.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *PROGRAM, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=node.scratch,
            env=environment,
            start_new_session=True,  # the terminal's Ctrl-C, and its end, are not the cluster's
        )


def _wait_for(node: NodeSpec, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + NODE_S
    while not node.ready_file.exists():
        if child.poll() is not None:
            lines = node.log_file.read_text(errors="replace").strip().splitlines() or ["(it said nothing)"]
            raise RuntimeError(f"{node.name} did not start (exit code {child.returncode}): {lines[-1]}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"{node.name} did not start within {NODE_S:g} s")
        time.sleep(POLL_S)


def _wait_for_all(cluster: KnownCluster, fewest: int) -> None:
    """Waits until the dashboard sees all nodes alive and takes jobs.

    Raises:
        RuntimeError: when it does not.
    """
    deadline = time.monotonic() + ANSWER_S
    while True:
        try:
            seen = sum(node.is_alive for node in dashboard.nodes(cluster.jobs))
            dashboard.jobs(cluster.jobs)
            lack = f"{seen} of {fewest} nodes are seen"
        except dashboard.NoAnswer as error:
            seen, lack = 0, f"the dashboard does not answer: {error}"
        if seen >= fewest:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"after {ANSWER_S:g} s {lack}")
        time.sleep(5 * POLL_S)


def _make_scratch() -> Path:
    folder = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="manta-", dir=folder if len(folder) <= MAX_TMP_CHARS else "/tmp"))
