"""Ends a cluster of this machine: its processes, those and no others, and its folders."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Mapping

from cluster import known
from cluster.known import KnownCluster
from cluster.process import Process, kill_all, running
from cluster.targets import targets_folder, withdraw_cluster

MARK = "MANTA_CLUSTER_SCRATCH"
"""The variable by which a cluster's processes are known, wherever they went."""
GRACE_S = 10.0
"""Seconds that nodes may take to end by themselves."""
KILL_S = 10.0
"""Seconds that what was killed may take to be gone."""


def processes_of(cluster: KnownCluster) -> list[Process]:
    """Returns all that runs of a cluster, whether its head still does or not.

    Nodes lead sessions of their own; what has left these, as the drivers of jobs do, has the cluster's mark in its
    environment. Ray's workers write their titles over theirs, and stay in the sessions.
    """
    found = {process.pid: process for leader in cluster.processes for process in leader.session}
    if cluster.scratch is not None:
        for process in running():
            if process.pid != os.getpid() and process.has(MARK, str(cluster.scratch)):
                found[process.pid] = process
    return list(found.values())


def end(cluster: KnownCluster, environ: Mapping[str, str] = os.environ, grace_s: float = GRACE_S) -> None:
    """Ends a cluster, whatever state it is in, and forgets it.

    Raises:
        RuntimeError: when a process stays although it was killed; the cluster is not forgotten.
    """
    for leader in cluster.processes:
        leader.send(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for leader in cluster.processes:
        leader.wait(max(0.0, deadline - time.monotonic()))
    if left := kill_all(lambda: processes_of(cluster), KILL_S):
        raise RuntimeError(f"{cluster.name}: processes {sorted(each.pid for each in left)} do not end")
    withdraw_cluster(targets_folder(environ), cluster.name)
    if cluster.scratch is not None:
        shutil.rmtree(cluster.scratch, ignore_errors=True)
    known.forget(cluster.name, environ)
