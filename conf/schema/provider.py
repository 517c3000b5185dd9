"""Where the machines of a real cluster come from, and what each place must be told."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from conf.errors import UserError

_KUBE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class Provider(Enum):
    """``aws``, ``gcp`` and ``on_prem`` are for `ray up`, ``kuberay`` is for `kubectl apply`."""

    aws = "aws"
    gcp = "gcp"
    on_prem = "on_prem"
    kuberay = "kuberay"


@dataclass(kw_only=True, slots=True)
class SshSpec:
    """How `ray up` reaches machines."""

    user: str = "ubuntu"
    """The account, which may run docker."""
    private_key: str | None = None
    """A file on the machine that calls `ray up`, and on premises the head too; null has Ray make a key at a cloud."""


@dataclass(kw_only=True, slots=True)
class AwsSpec:
    """A place at Amazon."""

    region: str = "us-west-2"
    """Where the machines are."""
    zones: list[str] = field(default_factory=list)
    """Availability zones, tried in this order; none: whatever the subnets say."""
    image_id: str | None = None
    """The machine image (AMI), with docker and NVIDIA's driver (580 or later for CUDA 13). Must be set: what Ray would
    take by itself is an Ubuntu 18.04 with an older driver."""
    instance_profile: str | None = None
    """The ARN of what machines may do at AWS; null has Ray make one."""


@dataclass(kw_only=True, slots=True)
class GcpSpec:
    """A place at Google."""

    project: str = "my-project"
    """The project's id."""
    region: str = "us-central1"
    """Where the machines are."""
    zone: str = "us-central1-a"
    """The zone within the region."""
    source_image: str = "projects/my-project/global/images/family/docker-nvidia"
    """The machine image or its family, with docker and NVIDIA's driver (580 or later for CUDA 13)."""


@dataclass(kw_only=True, slots=True)
class OnPremSpec:
    """Machines that are there already."""

    head_ip: str = "192.168.0.10"
    """The machine of the head."""
    worker_ips: list[str] = field(default_factory=list)
    """The machines of the workers."""


@dataclass(kw_only=True, slots=True)
class KubeSpec:
    """A place in a Kubernetes cluster with the KubeRay operator."""

    namespace: str = "manta"
    """Where everything is put."""
    token_secret: str = "manta-ray-token"
    """The Secret whose key auth_token holds Ray's token. It is made by hand, never rendered."""
    keys_secret: str = "manta-api-keys"
    """The Secret whose key MANTA_API_KEYS holds the keys of the service's clients. Made by hand, never rendered."""
    claim: str = "manta-data"
    """The PersistentVolumeClaim with models and results, which every pod sees at /data (ReadWriteMany)."""
    deletion_delay_s: int = 120
    """After an update the old cluster of a service stays for so long, so that its requests can end."""

    def __post_init__(self) -> None:
        for key in ("namespace", "token_secret", "keys_secret", "claim"):
            if not _KUBE_NAME.fullmatch(getattr(self, key)):
                raise UserError(
                    f"fleet.kube.{key} must be small letters, digits and '-', 63 at most, got '{getattr(self, key)}'"
                )
        if self.deletion_delay_s < 0:
            raise UserError(f"fleet.kube.deletion_delay_s must be >= 0, got {self.deletion_delay_s}")
