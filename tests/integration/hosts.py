"""Hosts as network namespaces of this machine, each with a Ray node; a host can be cut off without a word to anybody.

They share the machine's files and processes, and nothing of its network: their addresses are in their namespaces alone.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from conftest import ROOT

from cluster import known
from cluster.connect import LOOPBACK
from cluster.ending import end
from cluster.known import KnownCluster
from cluster.node import NodeSpec
from cluster.process import process_of
from cluster.start import node_environment

GCS_PORT, DASHBOARD_PORT, AGENT_PORT = 6379, 8265, 52365
HEALTH = {
    # a node that says nothing for about four seconds is dead; Ray's own defaults take half a minute
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def lack() -> str | None:
    """Returns why there can be no such hosts; null where there can."""
    if shutil.which("ip") is None:
        return "no ip program (Debian: iproute2)"
    name = f"mt{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no right to make network namespaces: {made.stderr.strip()}"
    try:
        words = ["ip", "-n", name, "link", "add", "br0", "type", "bridge"]
        bridged = subprocess.run(words, capture_output=True, text=True, check=False)
        return f"no bridges: {bridged.stderr.strip()}" if bridged.returncode else None
    finally:
        subprocess.run(["ip", "netns", "del", name], check=False)


@dataclass(kw_only=True)
class Hosts:
    prefix: str
    cluster: KnownCluster
    environment: dict[str, str]

    @property
    def gcs_address(self) -> str:
        return self.cluster.gcs_address

    def inside(self, number: int, *words: str) -> list[str]:
        """A command line that runs on a host, counted from 1."""
        return ["ip", "netns", "exec", f"{self.prefix}{number}", *words]

    def cut_off(self, number: int) -> None:
        """From now on nothing reaches the host and nothing leaves it; nobody is told."""
        _ip("-n", f"{self.prefix}b", "link", "set", f"v{number}", "down")


@contextmanager
def hosts(folder: Path, count: int, num_cpus: int) -> Iterator[Hosts]:
    """So many hosts on one bridge; the first has the head."""
    prefix = f"mt{os.getpid()}h"
    scratch = Path("/tmp") / f"manta-{secrets.token_hex(4)}"
    scratch.mkdir(mode=0o700)
    cluster = KnownCluster(
        name=prefix,
        gcs_address=f"10.77.0.1:{GCS_PORT}",
        jobs_url=f"http://10.77.0.1:{DASHBOARD_PORT}",
        token=secrets.token_hex(32),
        folder=folder / "clusters" / prefix,
        scratch=scratch,
    )
    environ = {"MANTA_CLUSTERS": str(folder / "clusters")}
    known.write(cluster)
    environment = node_environment(cluster, [44227, 44217], is_autoscaled=False) | HEALTH
    environment = {key: value for key, value in environment.items() if key not in LOOPBACK}
    found = Hosts(prefix=prefix, cluster=cluster, environment=environment)
    try:
        _ip("netns", "add", f"{prefix}b")
        _ip("-n", f"{prefix}b", "link", "add", "br0", "type", "bridge")
        _ip("-n", f"{prefix}b", "link", "set", "br0", "up")
        for number in range(1, count + 1):
            host = f"{prefix}{number}"
            _ip("netns", "add", host)
            _ip("-n", f"{prefix}b", "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", host)
            _ip("-n", f"{prefix}b", "link", "set", f"v{number}", "master", "br0", "up")
            _ip("-n", host, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", host, "link", "set", device, "up")
        for numbers in ([1], range(2, count + 1)):
            nodes = [_node(found, number, num_cpus) for number in numbers]
            for node, child in [(node, _start(found, node)) for node in nodes]:
                found.cluster = replace(found.cluster, processes=(*found.cluster.processes, process_of(child.pid)))
                _wait(node, child)
        yield found
    finally:
        end(found.cluster, environ, grace_s=0.0)
        for name in (*(f"{prefix}{number}" for number in range(1, count + 1)), f"{prefix}b"):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _node(found: Hosts, number: int, num_cpus: int) -> NodeSpec:
    return NodeSpec(
        name=f"host-{number}",
        gcs_address=None if number == 1 else found.gcs_address,
        gcs_port=GCS_PORT,
        dashboard_port=DASHBOARD_PORT,
        agent_port=AGENT_PORT,
        num_cpus=num_cpus,
        object_store_bytes=200 << 20,
        scratch=str(found.cluster.scratch),
        host=f"10.77.0.{number}",
    )


def _start(found: Hosts, node: NodeSpec) -> subprocess.Popen[bytes]:
    path = Path(node.scratch) / f"{node.name}.json"
    path.write_bytes(msgspec.json.encode(node))
    with node.log_file.open("ab") as log:
        # `ip netns exec` becomes the program that it is told to run
        return subprocess.Popen(
            found.inside(int(node.name[-1]), sys.executable, "-m", "cluster.node", str(path)),
            env=found.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait(node: NodeSpec, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while not node.ready_file.exists():
        assert child.poll() is None, node.log_file.read_text()
        assert time.monotonic() < deadline, node.log_file.read_text()
        time.sleep(0.05)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
