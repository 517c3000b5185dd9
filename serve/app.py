"""`manta serve`: deploys the replicas, says where they answer, and drains them at the end."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from cluster.connect import connect, keep_logs
from cluster.terminal import divert_output, interruptible, scratch_folder
from conf.errors import UserError
from conf.schema.engine import Device
from conf.schema.serve import ProxyForm, ServeJob
from conf.schema.task import Task
from serve.middleware.proxy import IMPORT_PATH, MARGIN_S, TIMEOUT_VARIABLE
from serve.plan import ServicePlan, check_room, make_plan
from serve.router.ingress import behind_router
from serve.router.proxy import decide_form, set_flags

POLL_S = 0.25
WATCH_S = 2.0
RETRY_AFTER_S = 1.0
"""What a request is told that finds the queue full."""
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 2.0, 30.0
LEAVE_S = 15.0
"""Seconds that Ray Serve may take to end replicas beyond `deployment.drain_s`."""


class ServiceFailed(Exception):
    """The service cannot answer, for a cause that is no mistake of the user's."""


def run(job: ServeJob) -> int:
    """Serves until Ctrl-C or SIGTERM; says on stderr how it stands.

    Returns:
        The exit code: 0 drained and stopped, 1 failed, 130 stopped before it was ready, or at once.

    Raises:
        UserError: for the user's mistake, before an engine starts.
    """
    plan = make_plan(job)
    try:
        with scratch_folder() as scratch, divert_output(plan.logs / "driver.log") as terminal:
            has_served = _serve(plan, Path(scratch), terminal)
    except ServiceFailed as error:
        print(f"manta serve: {error}\nlogs: {plan.logs}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("manta serve: stopped at once", file=sys.stderr, flush=True)
        # threads may still speak to Ray; its processes on this machine end with this one
        os._exit(130)
    return 0 if has_served else 130


def build_app(plan: ServicePlan) -> Any:
    """Returns Ray Serve's application of a service; starts nothing."""
    import ray.serve as rayserve

    from serve.replica import Replica

    spec, bundle = plan.job.deployment, plan.placement.bundles[0]
    options: dict[str, Any] = {}
    if plan.job.engine.world_size > 1:
        options["placement_group_bundles"] = plan.placement.bundles
        options["placement_group_strategy"] = plan.placement.strategy
    deployment: Any = rayserve.deployment(
        rayserve.ingress()(Replica),  # type: ignore[arg-type]
        name="replica",
        num_replicas=plan.num_replicas,
        ray_actor_options={"num_cpus": bundle.get("CPU", 0.0), "num_gpus": bundle.get("GPU", 0.0)},
        max_ongoing_requests=plan.max_ongoing_requests,
        max_queued_requests=spec.max_queued_requests,
        backpressure_config={"status_code": 503, "retry_after_s": RETRY_AFTER_S},
        graceful_shutdown_timeout_s=spec.drain_s,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        max_constructor_retry_count=1,  # what fails at first fails again; once it has run Ray Serve goes on trying
        logging_config={"enable_access_log": False},
        **options,
    )
    application = deployment.bind(plan.job, plan.device, plan.num_replicas, plan.layers)
    if plan.form is ProxyForm.direct:
        return behind_router(application, "replica", plan.job.router, plan.job.engine.max_num_seqs)
    return application


def _serve(plan: ServicePlan, scratch: Path, terminal: TextIO) -> bool:
    """Returns whether it was ready before it was interrupted."""
    job, began = plan.job, time.monotonic()
    engine = job.engine
    if (form := decide_form(job, scratch)) is ProxyForm.direct:
        set_flags(job, scratch, os.environ)
        plan = plan.behind(form)
    num_cpus = int(plan.num_replicas * plan.placement.total.get("CPU", 1)) + 1
    with connect(job.cluster, num_cpus, scratch) as connection, interruptible() as interrupted:
        try:
            if engine.device is Device.auto and job.cluster.address is not None:
                plan = plan.on_device(Device.cuda if connection.resources.get("GPU") else Device.cpu)
            check_room(plan, connection.resources)
            count = f"{plan.num_replicas} replica{'s' if plan.num_replicas > 1 else ''}"
            shape = f"TP {engine.tensor_parallel_size} x PP {engine.pipeline_parallel_size}, {plan.device.value}"
            print(f"manta serve: starting {count} of {job.model.name} ({shape})", file=terminal)
            _start_serve(plan)
            try:
                if is_ready := _deploy(plan, interrupted):
                    print(_greeting(plan, time.monotonic() - began), file=terminal)
                    _watch(job.deployment.name, interrupted, terminal)
                    print("manta serve: draining (again to stop at once)", file=terminal)
            finally:
                if not isinstance(sys.exception(), KeyboardInterrupt):
                    _stop(job)
            print("manta serve: stopped", file=terminal)
            return is_ready
        except ServiceFailed as error:
            raise ServiceFailed(f"{error}{_root_cause(connection.logs)}") from error
        finally:
            keep_logs(connection.logs, plan.logs)


def _start_serve(plan: ServicePlan) -> None:
    """Starts Ray Serve: one proxy, on this host's address only.

    Raises:
        UserError: when the cluster serves already.
    """
    import ray.serve as rayserve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if rayserve.status().proxies:
        raise UserError(f"cluster.address={plan.job.cluster.address}: Ray Serve runs there already")
    spec = plan.job.deployment
    rayserve.start(
        proxy_location="HeadOnly",
        http_options={"host": spec.host, "port": spec.port, "request_timeout_s": spec.request_timeout_s + MARGIN_S},
        controller_options={
            "runtime_env": {
                "env_vars": {
                    # an engine that hangs drains nothing: its requests would hold it for deployment.drain_s
                    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
                    # Ray kills a proxy that is not up within 5 s and starts another: on a busy machine for ever
                    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
                    # the controller starts the proxies, and they inherit this
                    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": IMPORT_PATH,
                    TIMEOUT_VARIABLE: str(spec.request_timeout_s),
                }
            }
        },
    )


def _deploy(plan: ServicePlan, interrupted: threading.Event) -> bool:
    """Returns whether all replicas became ready before somebody interrupted.

    Raises:
        ServiceFailed: when they do not become ready.
    """
    import ray.serve as rayserve
    from ray.serve.api import RunTarget, run_many
    from ray.serve.schema import ApplicationStatus

    name, timeout_s = plan.job.deployment.name, plan.job.engine.start_timeout_s
    run_many([RunTarget(build_app(plan), name=name)], wait_for_applications_running=False)
    deadline = time.monotonic() + timeout_s
    while not interrupted.wait(POLL_S):
        status = rayserve.status().applications.get(name)
        if status is not None and status.status is ApplicationStatus.RUNNING:
            return True
        if status is not None and status.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            messages = [status.message, *(deployment.message for deployment in status.deployments.values())]
            raise ServiceFailed(f"the engine does not start: {cause_of(messages)}")
        if time.monotonic() > deadline:
            raise ServiceFailed(f"not ready after engine.start_timeout_s={timeout_s:g}")
    return False


def cause_of(messages: list[str]) -> str:
    """Returns the telling line of what Ray Serve says about a failed start: the last error that it quotes."""
    lines = [line.strip() for message in messages for line in message.splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|EngineDead)\b.*: ", line)]
    return (errors or [line for line in lines if line] or ["no reason given"])[-1]


def _root_cause(logs: Path | None) -> str:
    """What the engine's own process said, where Ray's workers log on this machine."""
    for path in sorted(logs.glob("worker-*")) if logs else ():
        for line in reversed(path.read_text(errors="replace").splitlines()):
            match = re.search(r"\(EngineCore\S*.*\]\s+(\w+(?:Error|Exception): .+)", line)
            if match and "Engine core init" not in line:
                return f" ({match[1]})"
    return ""


def _watch(name: str, interrupted: threading.Event, terminal: TextIO) -> None:
    """Returns when somebody interrupts; tells of replicas that come and go.

    Raises:
        ServiceFailed: when the service is gone.
    """
    import ray.serve as rayserve

    before: dict[str, int] | None = None
    while not interrupted.wait(WATCH_S):
        status = rayserve.status().applications.get(name)
        if status is None:
            raise ServiceFailed("the service is gone: somebody else has stopped it")
        states: dict[str, int] = {}
        for deployment in status.deployments.values():
            for state, count in deployment.replica_states.items():
                states[state.lower()] = states.get(state.lower(), 0) + count
        if before is not None and states != before:
            shown = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
            print(f"manta serve: replicas: {shown or 'none'}", file=terminal)
        before = states


def _stop(job: ServeJob) -> None:
    """Ends the replicas when their requests have ended, then Ray Serve."""
    import ray.serve as rayserve

    name, spec = job.deployment.name, job.deployment
    deadline = time.monotonic() + spec.drain_s + LEAVE_S
    rayserve.delete(name, _blocking=False)
    while name in rayserve.status().applications and time.monotonic() < deadline:
        time.sleep(POLL_S)
    rayserve.shutdown()


def _greeting(plan: ServicePlan, seconds: float) -> str:
    model = plan.job.model
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    path, ask = {
        Task.generate: ("v1/chat/completions", chat),
        Task.embed: ("v1/embeddings", {"input": "Hello"}),
        Task.classify: ("classify", {"input": "Hello"}),
        Task.score: ("v1/score", {"text_1": "Hello", "text_2": "Hi"}),
    }[plan.job.task]
    body = json.dumps({"model": model.name, **ask})
    key = "" if plan.job.access.open else '-H "Authorization: Bearer $KEY" '
    lines = [
        f"manta serve: ready after {seconds:.0f} s at {plan.url}/v1",
        f"  models  {', '.join([model.name, *model.adapters])}; {plan.max_model_len:,} tokens of context",
        f"  logs    {plan.logs}",
        f"  try     curl {plan.url}/{path} {key}-H 'Content-Type: application/json' -d '{body}'",
        "Ctrl-C drains and stops.",
    ]
    return "\n".join(lines)
