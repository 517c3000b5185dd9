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
    price_per_hour: float | None = None
    """Price of one device for an hour (a GPU; on CPU the machine), in any currency; null shows no cost."""

    def __post_init__(self) -> None:
        if self.num_cpus is not None and self.num_cpus < 1:
            raise UserError(f"cluster.num_cpus must be >= 1 or null, got {self.num_cpus}")
        if self.price_per_hour is not None and not self.price_per_hour >= 0:
            raise UserError(f"cluster.price_per_hour must be >= 0 or null, got {self.price_per_hour}")
        if self.object_store_bytes < 80 << 20:
            raise UserError(f"cluster.object_store_bytes must be >= {80 << 20} (80 MiB), got {self.object_store_bytes}")
