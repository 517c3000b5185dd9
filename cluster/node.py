"""One Ray node of a cluster on this machine, as a process of its own: starts Ray's processes and ends them.

Source: ray 2.60, `ray start --block` and `ray.cluster_utils.Cluster`. The former keeps no node on 127.0.0.1 (it takes
the machine's address instead, and Ray's dozen ports are then open to the network) and always serves Ray's client on
port 10001; the latter has all nodes in one process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cluster.own_file import write_own

HOST = "127.0.0.1"
LOOK_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeSpec:
    """What one node is."""

    name: str
    gcs_address: str | None
    """Which cluster it joins; null: it is a head."""
    gcs_port: int
    """Where a head's control store listens."""
    dashboard_port: int
    """Where a head's dashboard, and so its Jobs API, listens."""
    agent_port: int
    """Where this node's agent listens, which runs the drivers of jobs."""
    num_cpus: int
    object_store_bytes: int
    scratch: str
    autoscaling: str | None = None
    """A file that says which nodes a head may start; null: none."""
    host: str = HOST
    """The node's address."""

    @property
    def scratch_of_ray(self) -> Path:
        """Where Ray keeps what is this node's."""
        return Path(self.scratch) / self.name

    @property
    def listing(self) -> Path:
        """Where a head's dashboard lists the addresses at which nodes tell their metrics, for Prometheus."""
        return self.scratch_of_ray / "prom_metrics_service_discovery.json"

    @property
    def ready_file(self) -> Path:
        """Is there once the node is ready."""
        return Path(self.scratch) / f"{self.name}.ready"

    @property
    def log_file(self) -> Path:
        """What the node's process says."""
        return Path(self.scratch) / f"{self.name}.log"


def main(path: str) -> int:
    """Runs a node until SIGTERM, or until one of Ray's processes ends.

    Args:
        path: of a file that holds the `NodeSpec`.

    Returns:
        The exit code: 0 told to end, 1 it ended by itself.
    """
    spec = msgspec.json.decode(Path(path).read_bytes(), type=NodeSpec)
    is_told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_told.set())
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    is_head = spec.gcs_address is None
    parameters = RayParams(
        node_ip_address=spec.host,
        node_name=spec.name,
        gcs_address=spec.gcs_address,
        gcs_server_port=spec.gcs_port if is_head else None,
        num_cpus=spec.num_cpus,
        num_gpus=0,
        object_store_memory=spec.object_store_bytes,
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        dashboard_host=spec.host,
        dashboard_port=spec.dashboard_port if is_head else None,  # pyright: ignore[reportArgumentType]
        dashboard_agent_listen_port=spec.agent_port,
        include_dashboard=True if is_head else None,
        # a driver of this machine runs on the head
        include_log_monitor=is_head,  # pyright: ignore[reportArgumentType]
        autoscaling_config=spec.autoscaling,
        # its own sockets and logs: nodes that share a folder and start at once take the same names, and one dies of it
        temp_dir=str(spec.scratch_of_ray),
        env_vars={"RAY_OVERRIDE_NODE_ID_FOR_TESTING": _fake_head_id()} if spec.autoscaling else None,
    )
    # Ray's processes end with this one, even where it is killed
    node = Node(parameters, head=is_head, shutdown_at_exit=False, spawn_reaper=True)
    write_own(spec.ready_file, b"")
    while not is_told.wait(LOOK_S):
        if node.dead_processes():
            break
    dead = ", ".join(kind for kind, _ in node.dead_processes())
    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    if not is_told.is_set():
        print(f"{spec.name}: ended by itself: {dead}", file=sys.stderr)
        return 1
    return 0


def _fake_head_id() -> str:
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    return FAKE_HEAD_NODE_ID


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stderr.flush()
    os._exit(code)  # Ray's threads may not be waited for
