"""A real cluster: its machines, where they come from, what runs on them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from omegaconf import MISSING

from conf.errors import UserError
from conf.schema.node_type import NodeTypeSpec
from conf.schema.provider import AwsSpec, GcpSpec, KubeSpec, OnPremSpec, Provider, SshSpec

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?")
"""Kubernetes makes longer names of it: 63 letters at most."""
_KIND = re.compile(r"[a-z]([a-z0-9_-]{0,28}[a-z0-9])?")


@dataclass(kw_only=True, slots=True)
class ImageSpec:
    """Container images, by tag. The targets of the Dockerfile, pushed where the cluster can pull them."""

    cpu: str = "registry.example.com/manta:0.2.0-cpu"
    """Of machines without a GPU."""
    gpu: str = "registry.example.com/manta:0.2.0-gpu"
    """Of machines with GPUs."""
    tpu: str = "registry.example.com/manta:0.2.0-tpu"
    """Of machines with TPUs: Ray, and the TPU variant of vLLM. The Dockerfile has no such target."""

    def __post_init__(self) -> None:
        for key in ("cpu", "gpu", "tpu"):
            image = getattr(self, key)
            tag = image.rpartition("/")[2].partition(":")[2]
            if not tag or tag == "latest":
                raise UserError(f"fleet.image.{key} must have a tag other than latest, got '{image}'")


@dataclass(kw_only=True, slots=True)
class FleetSpec:
    """A head without accelerators, and workers that come and go with the work."""

    provider: Provider = MISSING
    """Where the machines come from."""
    name: str = "manta"
    """The cluster's name; a letter, then lower-case letters, digits and '-', 30 at most."""
    ray_version: str = "2.60.0"
    """The Ray of the images."""
    image: ImageSpec = field(default_factory=ImageSpec)
    head: NodeTypeSpec = field(default_factory=NodeTypeSpec)
    workers: dict[str, NodeTypeSpec] = field(default_factory=dict)
    """Kinds of workers by names of your own: fleet.workers.gpu.hardware=h100 fleet.workers.gpu.num_devices=8."""
    idle_timeout_s: int = 300
    """A worker that has had nothing to do for so long leaves."""
    ssh: SshSpec = field(default_factory=SshSpec)
    aws: AwsSpec = field(default_factory=AwsSpec)
    gcp: GcpSpec = field(default_factory=GcpSpec)
    on_prem: OnPremSpec = field(default_factory=OnPremSpec)
    kube: KubeSpec = field(default_factory=KubeSpec)
    model: str = "/data/models/MODEL"
    """The checkpoint that the RayService serves and the RayJob runs, as every pod sees it."""
    batch: list[str] = field(default_factory=list)
    """Further words of `manta batch` in the RayJob."""
    serve: list[str] = field(default_factory=list)
    """Further words of `manta serve` in the RayService; none with TPUs, where Ray Serve LLM answers."""

    def check(self) -> None:
        """Checks what its parts say together; alone, without a provider, it is no cluster yet.

        Raises:
            UserError: when a rule is broken.
        """
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"fleet.name must be a letter, then small letters, digits and '-', 30 at most, got '{self.name}'"
            )
        if self.idle_timeout_s < 1:
            raise UserError(f"fleet.idle_timeout_s must be >= 1, got {self.idle_timeout_s}")
        self.head.check("fleet.head")
        if self.head.hardware != "cpu":
            raise UserError(f"fleet.head.hardware must be cpu: the head computes nothing, got '{self.head.hardware}'")
        for name, node in self.workers.items():
            if not _KIND.fullmatch(name):
                raise UserError(
                    f"fleet.workers.{name}: a name is a letter, then small letters, digits, '_' and '-', 30 at most"
                )
            node.check(f"fleet.workers.{name}")
        getattr(self, f"_check_{self.provider.value}")()

    def _check_machines(self) -> None:
        """Of a cloud: each kind has the provider's name of the machine."""
        for name, node in self.nodes.items():
            if node.instance is None:
                raise UserError(f"{name}.instance must be set with fleet.provider={self.provider.value}")
            if node.is_tpu:
                raise UserError(
                    f"{name}.hardware={node.hardware} needs fleet.provider=kuberay: `ray up` does not scale slices"
                    f" of several hosts, got {self.provider.value}"
                )
        self._check_workers()

    def _check_workers(self) -> None:
        if not self.workers:
            raise UserError("fleet.workers must have one kind of machine at least")

    def _check_aws(self) -> None:
        self._check_machines()
        if self.aws.image_id is None:
            raise UserError("fleet.aws.image_id must be set: an image with docker and NVIDIA's driver, such as ami-...")

    def _check_gcp(self) -> None:
        self._check_machines()
        if not self.gcp.zone.startswith(self.gcp.region + "-"):
            raise UserError(f"fleet.gcp.zone must be in fleet.gcp.region={self.gcp.region}, got '{self.gcp.zone}'")

    def _check_on_prem(self) -> None:
        if self.workers:
            raise UserError(
                "fleet.workers has no use with fleet.provider=on_prem: Ray finds what fleet.on_prem.worker_ips have"
            )
        if not self.on_prem.worker_ips:
            raise UserError("fleet.on_prem.worker_ips must name one machine at least")
        if self.ssh.private_key is None:
            raise UserError("fleet.ssh.private_key must be set with fleet.provider=on_prem")

    def _check_kuberay(self) -> None:
        self._check_workers()
        for name in self.workers:
            if "_" in name:
                raise UserError(f"fleet.workers.{name}: with fleet.provider=kuberay a name has no '_'; write '-'")
        if self.slices and self.serve:
            raise UserError(f"fleet.serve has no use with TPUs (fleet.workers.{next(iter(self.slices))}): leave it out")
        if all(node.spot for node in self.workers.values()):
            raise UserError("fleet.workers must have one kind with spot=false: a service gets no spot machines")

    @property
    def nodes(self) -> dict[str, NodeTypeSpec]:
        """All kinds of machines, by the names of their keys."""
        return {"fleet.head": self.head} | {f"fleet.workers.{name}": node for name, node in self.workers.items()}

    @property
    def slices(self) -> dict[str, NodeTypeSpec]:
        """The kinds of workers that are slices of TPUs."""
        return {name: node for name, node in self.workers.items() if node.is_tpu}

    def image_of(self, node: NodeTypeSpec) -> str:
        """Returns the image that a kind of machine runs."""
        return self.image.tpu if node.is_tpu else self.image.gpu if node.is_gpu else self.image.cpu


@dataclass(kw_only=True, slots=True)
class RenderJob:
    """The root of `manta cluster render`."""

    fleet: FleetSpec = field(default_factory=FleetSpec)
