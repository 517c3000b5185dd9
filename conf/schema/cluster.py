"""The Ray cluster that a job runs on."""

from __future__ import annotations

from dataclasses import dataclass

from conf.errors import UserError


@dataclass(kw_only=True, slots=True)
class ClusterSpec:
    """A cluster started for the job (address null), or one that runs already."""

    address: str | None = None
    """'auto' or 'host:port'; null starts a cluster on this machine for the job's time."""
    num_cpus: int | None = None
    """CPUs that a local cluster counts; null: this machine's, and at least what the engines and two readers need."""
    object_store_bytes: int = 1 << 30
    """Shared memory of a local cluster's object store."""

    def __post_init__(self) -> None:
        if self.num_cpus is not None and self.num_cpus < 1:
            raise UserError(f"cluster.num_cpus must be >= 1 or null, got {self.num_cpus}")
        if self.object_store_bytes < 80 << 20:
            raise UserError(f"cluster.object_store_bytes must be >= {80 << 20} (80 MiB), got {self.object_store_bytes}")
