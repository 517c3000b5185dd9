"""The Ray cluster that a job runs on, and that `manta cluster up` starts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from conf.errors import UserError

RUNNING = "running"
"""The address of a cluster that `manta cluster up` started."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}")


def check_cluster_name(name: str) -> None:
    """Checks the name of a cluster, which names files.

    Raises:
        UserError: when it is none.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"cluster.name must be letters, digits, '.', '_' and '-', 63 at most, got '{name}'")


@dataclass(kw_only=True, slots=True)
class ClusterSpec:
    """A cluster started for the job (address null), or one that runs already."""

    address: str | None = None
    """'auto', 'host:port', or 'running': what manta cluster up started on this machine, its token with it; null starts
    a cluster on this machine for the job's time."""
    name: str | None = None
    """Which cluster of manta cluster up; null: the only one that runs (up: 'local')."""
    jobs_url: str | None = None
    """Ray's dashboard of a cluster elsewhere, where jobs are submitted: http://host:8265. Its token comes from
    $MANTA_CLUSTER_TOKEN, else $RAY_AUTH_TOKEN."""
    nodes: int = 1
    """Nodes that manta cluster up starts on this machine; where max_nodes is set, the fewest."""
    max_nodes: int | None = None
    """Nodes that manta cluster up lets there be: they come as work asks for them; null: as many as nodes, always."""
    idle_s: float = 60.0
    """Seconds after which a node that came for work leaves."""
    num_cpus: int | None = None
    """CPUs that a local cluster counts (manta cluster up: each of its nodes); null: this machine's, and at least what
    the engines and two readers need (up: a node's share of this machine's, and at least 2)."""
    object_store_bytes: int = 1 << 30
    """Shared memory of a local cluster's object store (manta cluster up: of each node's)."""
    price_per_hour: float | None = None
    """Price of one device for an hour (a GPU; on CPU the machine), in any currency; null shows no cost."""

    def __post_init__(self) -> None:
        if self.name is not None:
            check_cluster_name(self.name)
        if self.jobs_url is not None and not _is_url(self.jobs_url):
            raise UserError(f"cluster.jobs_url must be http(s)://host:port, got '{self.jobs_url}'")
        if self.nodes < 1:
            raise UserError(f"cluster.nodes must be >= 1, got {self.nodes}")
        if self.max_nodes is not None and self.max_nodes < self.nodes:
            raise UserError(f"cluster.max_nodes must be >= cluster.nodes={self.nodes} or null, got {self.max_nodes}")
        if not self.idle_s > 0:
            raise UserError(f"cluster.idle_s must be > 0, got {self.idle_s}")
        if self.num_cpus is not None and self.num_cpus < 1:
            raise UserError(f"cluster.num_cpus must be >= 1 or null, got {self.num_cpus}")
        if self.price_per_hour is not None and not self.price_per_hour >= 0:
            raise UserError(f"cluster.price_per_hour must be >= 0 or null, got {self.price_per_hour}")
        if self.object_store_bytes < 80 << 20:
            raise UserError(f"cluster.object_store_bytes must be >= {80 << 20} (80 MiB), got {self.object_store_bytes}")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port is not None
    except ValueError:
        return False


@dataclass(kw_only=True, slots=True)
class ClusterJob:
    """What `manta cluster up|status|down` is asked for."""

    cluster: ClusterSpec = field(default_factory=ClusterSpec)
