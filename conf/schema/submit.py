"""The root of `manta submit`: what is sent with a job, and how it is looked after."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from conf.errors import UserError
from conf.schema.cluster import ClusterSpec

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Environment(Enum):
    """What the nodes run a job with: what they have (``none``), or the versions of the lock file (``lock``)."""

    none = "none"
    lock = "lock"


@dataclass(kw_only=True, slots=True)
class SubmitSpec:
    """What travels, and what is done when the driver dies."""

    files: list[str] = field(default_factory=list)
    """Files and folders that travel with the job, beside Manta's own code. Of a folder in a git repository, what is
    tracked; of another one, all. The job finds them under the paths that it names here."""
    max_bytes: int = 100 << 20
    """More than this, code included, is not sent: put it where the nodes can see it."""
    env: list[str] = field(default_factory=list)
    """Names of environment variables whose values travel, sealed with the cluster's token: [HF_TOKEN]."""
    environment: Environment = Environment.none
    """What the nodes run it with: none takes what they have; lock installs the versions of submit.lock there first."""
    lock: str | None = None
    """The lock file for environment=lock; null is Manta's own, requirements/gpu.txt where the cluster has a GPU, else
    cpu.txt. torch and ray are the nodes' own in any case."""
    python: str | None = None
    """Python on the nodes; null is this one on a cluster of this machine, else 'python'."""
    driver_cpus: float = 0.0
    """CPUs that the driver takes: 0 runs it on the head; more on any node that has them."""
    max_restarts: int = 3
    """How often a driver of batch or serve that died, with its node or by a signal, is started again by the command
    that follows it."""

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise UserError(f"submit.max_bytes must be >= 1, got {self.max_bytes}")
        for name in self.env:
            if not _VARIABLE.fullmatch(name):
                raise UserError(f"submit.env takes names of environment variables, got '{name}'")
        if self.lock is not None and self.environment is not Environment.lock:
            raise UserError("submit.lock needs submit.environment=lock")
        if not 0 <= self.driver_cpus < float("inf"):
            raise UserError(f"submit.driver_cpus must be >= 0, got {self.driver_cpus}")
        if self.max_restarts < 0:
            raise UserError(f"submit.max_restarts must be >= 0, got {self.max_restarts}")


@dataclass(kw_only=True, slots=True)
class SubmitJob:
    """How a verb's job reaches a cluster, and which one."""

    submit: SubmitSpec = field(default_factory=SubmitSpec)
    cluster: ClusterSpec = field(default_factory=ClusterSpec)
