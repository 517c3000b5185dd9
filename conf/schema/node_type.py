"""One kind of machine of a real cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from conf.errors import UserError, nearest
from conf.schema.hardware import profiles

TOPOLOGIES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
"""The slices of TPU v5e and v6e. Source: docs.cloud.google.com/tpu/docs/v6e, "Supported configurations"."""


@dataclass(kw_only=True, slots=True)
class NodeTypeSpec:
    """Machines of one kind, of which the autoscaler has as many as the work needs."""

    hardware: str = "cpu"
    """A profile of the group `hardware`: which device a machine has; cpu for none."""
    num_devices: int = 0
    """GPUs of a machine; 0 of a TPU, where the topology says how many chips a host has."""
    num_cpus: int = 8
    """Cores that Ray counts, and that a pod asks for."""
    memory_gib: int = 32
    """Memory that Ray counts, and that a pod asks for."""
    instance: str | None = None
    """The provider's name of the machine, such as g6.2xlarge; without use on Kubernetes and on premises."""
    disk_gib: int = 200
    """The machine's disk; on Kubernetes the ephemeral storage that a pod asks for."""
    min_nodes: int = 0
    """So many run at all times; of a TPU, slices."""
    max_nodes: int = 1
    """So many run at most; of a TPU, slices."""
    spot: bool = False
    """Cheaper machines that the provider may take back: for batch jobs, which go on where they ended. A service does
    not get them."""
    priority: int = 0
    """Of kinds that fit a request equally well the one with the highest is started first; one that was not to be had is
    passed over for a while."""
    topology: str | None = None
    """Of a TPU, the chips of a slice, such as 4x4; a slice of more than 8 chips lies on several hosts, which come and
    go together."""
    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels of the Kubernetes nodes that pods may go to, in place of GKE's for the GPU and for spot nodes; beside them
    with a TPU."""

    def check(self, key: str) -> None:
        """Checks what no provider can make of it.

        Args:
            key: where it stands, such as ``fleet.workers.gpu``.

        Raises:
            UserError: when a rule is broken.
        """
        known = profiles()
        if self.hardware not in known:
            raise UserError(
                f"{key}.hardware must be a profile, got '{self.hardware}'{nearest(self.hardware, known)}"
                f" (there are {', '.join(known)})"
            )
        for name, least in (("num_cpus", 1), ("memory_gib", 1), ("disk_gib", 20), ("min_nodes", 0), ("max_nodes", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{key}.{name} must be >= {least}, got {getattr(self, name)}")
        if self.max_nodes < self.min_nodes:
            raise UserError(f"{key}.max_nodes must be >= {key}.min_nodes={self.min_nodes}, got {self.max_nodes}")
        if self.is_tpu:
            self._check_slice(key)
            return
        if self.topology is not None:
            raise UserError(f"{key}.topology is a TPU's, and {key}.hardware={self.hardware}: leave it null")
        has_device = known[self.hardware].resource == "GPU"
        if has_device and self.num_devices < 1:
            raise UserError(f"{key}.num_devices must be >= 1 with {key}.hardware={self.hardware}, got 0")
        if not has_device and self.num_devices:
            raise UserError(f"{key}.num_devices must be 0 with {key}.hardware=cpu, got {self.num_devices}")

    def _check_slice(self, key: str) -> None:
        if self.topology not in TOPOLOGIES:
            raise UserError(
                f"{key}.topology must be one of {', '.join(TOPOLOGIES)} with {key}.hardware={self.hardware},"
                f" got {self.topology}"
            )
        if self.num_devices:
            raise UserError(
                f"{key}.num_devices must be 0 with {key}.topology={self.topology}, which says how many chips a host"
                f" has, got {self.num_devices}"
            )

    @property
    def is_tpu(self) -> bool:
        """Whether its devices are TPUs."""
        return profiles()[self.hardware].resource == "TPU"

    @property
    def is_gpu(self) -> bool:
        """Whether its devices are GPUs."""
        return profiles()[self.hardware].resource == "GPU"
