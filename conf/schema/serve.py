"""The root of `manta serve`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from conf.errors import UserError
from conf.schema.access import AccessSpec
from conf.schema.autoscale import AutoscaleSpec
from conf.schema.batches import BatchesSpec
from conf.schema.cache import CacheSpec
from conf.schema.cluster import ClusterSpec
from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.router import RouterSpec
from conf.schema.served_model import ServedModelSpec, check_model_key, service_engine
from conf.schema.task import Task

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class ProxyForm(Enum):
    """What stands between clients and replicas.

    ``direct`` is HAProxy, which asks the router for a replica and lets data go straight to it; ``plain`` is Ray
    Serve's own proxy, which knows no prefixes; ``auto`` is direct where HAProxy is there and Ray is started for this
    service.
    """

    auto = "auto"
    direct = "direct"
    plain = "plain"


def check_name(name: str) -> None:
    """Checks the name of a service, which names files.

    Raises:
        UserError: when it is none.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"deployment.name must be letters, digits, '.', '_' and '-', 63 at most, got '{name}'")


class Update(Enum):
    """How a service that runs gets another configuration: new replicas beside the old ones, or in place of them."""

    rolling = "rolling"
    replace = "replace"


@dataclass(kw_only=True, slots=True)
class DeploymentSpec:
    """Where the service listens, and how much it takes on."""

    name: str = "manta"
    """What `manta serve status|stop` and Ray Serve call it."""
    detach: bool = False
    """Go on in the background: the command returns once the service is ready. Where a service of this name runs, it is
    updated to this configuration."""
    update: Update = Update.rolling
    """What an update does: rolling starts new replicas, then drains the old ones, and is refused where there is no room
    for both; replace drains the old ones first, and requests get 503 until the new ones are ready."""
    host: str = "127.0.0.1"
    """The address that it listens on; 0.0.0.0 is every one of this machine's."""
    port: int = 8000
    """The port that it listens on."""
    grpc_port: int | None = None
    """The port for gRPC at the same address, see docs/formats.md; null is none. It makes auto below plain."""
    proxy: ProxyForm = ProxyForm.auto
    """What stands between clients and replicas: HAProxy and the router (direct), or Ray Serve's own proxy (plain)."""
    max_ongoing_requests: int | None = None
    """Requests that one replica holds at a time, waiting ones included; engine.max_in_flight where null."""
    max_queued_requests: int = 1024
    """Requests that wait for a replica at most; one more is refused with 503 and Retry-After."""
    request_timeout_s: float = 600.0
    """A request that takes longer is ended with 504, or an error event in its stream, and its engine freed. With the
    header X-Request-Timeout it gives itself less."""
    drain_s: float = 60.0
    """Seconds that requests in flight may take to end when the service stops or a replica leaves. What takes longer is
    asked of another replica where its answer has not begun, and a stream is ended with an error event."""
    logs: str | None = None
    """The folder for logs; null is out/serve-NAME under the current folder."""
    log_requests: bool = True
    """Write a line of JSON for each request, without text of prompts, to a file in the folder for logs."""
    vllm: dict[str, Any] = field(default_factory=dict)
    """Passed to vLLM's API under vLLM's own names, such as enable_auto_tool_choice and tool_call_parser."""
    models: dict[str, ServedModelSpec] = field(default_factory=dict)
    """Further models, with replicas of their own, by a name for these keys; a request's model says which one answers.
    Below each name are the keys of model and engine, task and vllm: deployment.models.small.model=demo
    deployment.models.small.engine.num_replicas=2. Requests call it by its model.name."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.host:
            raise UserError("deployment.host must be an address, got ''")
        if not 1 <= self.port <= 65535:
            raise UserError(f"deployment.port must be in 1..65535, got {self.port}")
        self._check_grpc()
        if self.max_ongoing_requests is not None and self.max_ongoing_requests < 1:
            raise UserError(f"deployment.max_ongoing_requests must be >= 1 or null, got {self.max_ongoing_requests}")
        if self.max_queued_requests < 0:
            raise UserError(f"deployment.max_queued_requests must be >= 0, got {self.max_queued_requests}")
        if not 0 < self.request_timeout_s < float("inf"):
            raise UserError(f"deployment.request_timeout_s must be > 0 and finite, got {self.request_timeout_s}")
        if not self.drain_s >= 0:
            raise UserError(f"deployment.drain_s must be >= 0, got {self.drain_s}")
        for key in self.models:
            check_model_key(key)

    def _check_grpc(self) -> None:
        if self.grpc_port is None:
            return
        if not 1 <= self.grpc_port <= 65535 or self.grpc_port == self.port:
            raise UserError(
                f"deployment.grpc_port must be in 1..65535 and not deployment.port={self.port}, got {self.grpc_port}"
            )
        if self.proxy is ProxyForm.direct:
            raise UserError(
                f"deployment.grpc_port needs deployment.proxy=plain (HAProxy has no gRPC), got {self.proxy.value}"
            )


@dataclass(kw_only=True, slots=True)
class ServeJob:
    """Models behind OpenAI's API: the first one, and those of deployment.models."""

    task: Task = Task.generate
    """What is asked of the model."""
    model: ModelSpec = field(default_factory=ModelSpec)
    engine: EngineSpec = field(default_factory=service_engine)
    cluster: ClusterSpec = field(default_factory=ClusterSpec)
    deployment: DeploymentSpec = field(default_factory=DeploymentSpec)
    access: AccessSpec = field(default_factory=AccessSpec)
    autoscale: AutoscaleSpec = field(default_factory=AutoscaleSpec)
    cache: CacheSpec = field(default_factory=CacheSpec)
    batches: BatchesSpec = field(default_factory=BatchesSpec)
    router: RouterSpec = field(default_factory=RouterSpec)

    @property
    def max_ongoing_requests(self) -> int:
        """Requests that one replica holds at a time."""
        return self.deployment.max_ongoing_requests or self.engine.in_flight_rows

    def of(self, key: str) -> ServeJob:
        """Returns the job as it were with one of `deployment.models` alone."""
        spec = self.deployment.models[key]
        deployment = replace(self.deployment, models={}, vllm=spec.vllm)
        return replace(self, model=spec.model, engine=spec.engine, task=spec.task, deployment=deployment)
