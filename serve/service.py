"""Replicas on Ray Serve: deploys them, watches them, drains them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from conf.errors import UserError
from conf.schema.serve import ProxyForm
from serve.cause import cause_of
from serve.gate import build_gate
from serve.middleware.proxy import BODY_VARIABLE, IMPORT_PATH, MARGIN_S, TIMEOUT_VARIABLE
from serve.plan import ServicePlan
from serve.router.ingress import behind_router
from serve.rpc.method import ADDRESS_VARIABLE, APPLICATION_VARIABLE, CALLS_PATH, LAYERS_PATH

POLL_S = 0.25
RETRY_AFTER_S = 1.0
"""What a request is told that finds the queue full."""
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 2.0, 30.0
LEAVE_S = 15.0
"""Seconds that Ray Serve may take to end replicas beyond `deployment.drain_s`."""
REPLICA = "replica"


class ServiceFailed(Exception):
    """The service cannot answer, for a cause that is no mistake of the user's."""


class ServiceLost(ServiceFailed):
    """An update failed, and the former configuration does not start again."""


def build_replicas(plan: ServicePlan, surge_percent: int) -> Any:
    """Returns the replicas of a plan as an application of Ray Serve; starts nothing.

    Args:
        plan: the service.
        surge_percent: how many new replicas may be beside the old ones in an update, of their number.
    """
    import ray.serve as rayserve

    from serve.replica import Replica

    spec, bundle = plan.job.deployment, plan.placement.bundles[0]
    options: dict[str, Any] = {}
    if plan.job.engine.world_size > 1:
        options["placement_group_bundles"] = plan.placement.bundles
        options["placement_group_strategy"] = plan.placement.strategy
    deployment: Any = rayserve.deployment(
        rayserve.ingress()(Replica),  # type: ignore[arg-type]
        name=REPLICA,
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
        max_surge_percent=surge_percent,
        logging_config={"enable_access_log": False},
        **options,
    )
    # Ray Serve would draw one, and take every deployment of the same replicas for an update
    deployment._version = plan.version
    application = deployment.bind(plan.job, plan.device, plan.num_replicas, plan.layers)
    if plan.form is ProxyForm.direct:
        return behind_router(application, REPLICA, plan.job.router, plan.job.engine.max_num_seqs)
    return application


class Service:
    """What runs on a cluster under one name.

    It is one application of Ray Serve, in three forms: the gate alone; the gate with replicas that start behind it; and
    the replicas. Ray Serve gives the address from one form to the next at once, and drains what a form has lost.
    """

    def __init__(
        self,
        plan: ServicePlan,
        interrupted: threading.Event,
        say: Callable[[str], None],
        build: Callable[[ServicePlan, int], Any] = build_replicas,
    ) -> None:
        """Args: what runs; what says that it should end; where news go; what makes the replicas."""
        self.plan = plan
        self._interrupted = interrupted
        self._say = say
        self._build = build
        self._states: dict[str, int] | None = None
        self._has_begun = False
        self._is_open = False

    @property
    def _name(self) -> str:
        return self.plan.job.deployment.name

    def start(self) -> bool:
        """Starts Ray Serve, with one proxy on this host's address only, and the replicas.

        Returns:
            Whether all were ready before somebody interrupted.

        Raises:
            UserError: when the cluster serves already.
            ServiceFailed: when they do not become ready.
        """
        import ray.serve as rayserve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        if rayserve.status().proxies:
            raise UserError(f"cluster.address={self.plan.job.cluster.address}: Ray Serve runs there already")
        self._has_begun = True
        spec = self.plan.job.deployment
        timeout_s = spec.request_timeout_s + MARGIN_S
        grpc = {"port": spec.grpc_port, "grpc_servicer_functions": [CALLS_PATH], "enable_reflection": False}
        rayserve.start(
            proxy_location="HeadOnly",
            http_options={"host": spec.host, "port": spec.port, "request_timeout_s": timeout_s},
            grpc_options=None if spec.grpc_port is None else {**grpc, "request_timeout_s": timeout_s},
            controller_options={"runtime_env": {"env_vars": _flags(self.plan)}},
        )
        return self._open(self.plan)

    def roll(self, plan: ServicePlan, surge_percent: int) -> bool:
        """Puts the replicas of another plan in the place of these, without a moment when none takes requests.

        Args:
            plan: the other plan.
            surge_percent: of its replicas that may be there beside the old ones; none needs two old replicas at least.

        Returns:
            Whether all were ready before somebody interrupted.

        Raises:
            ServiceFailed: when they do not become ready; the old ones go on.
        """
        try:
            is_ready = self._deploy(self._build(plan, surge_percent), plan)
        except ServiceFailed:
            self._deploy(self._build(self.plan, surge_percent), self.plan)
            raise
        if is_ready:
            self.plan = plan
        return is_ready

    def replace(self, plan: ServicePlan) -> bool:
        """Drains these replicas and then starts those of another plan; requests get 503 meanwhile.

        Returns:
            Whether all were ready before somebody interrupted.

        Raises:
            ServiceFailed: when they do not become ready; the old ones are started again.
            ServiceLost: when those do not become ready either.
        """
        self.close()
        try:
            is_ready = self._open(plan)
        except ServiceFailed as error:
            self.close()
            try:
                self._open(self.plan)
            except ServiceFailed as again:
                raise ServiceLost(f"{error}; the former configuration does not start either: {again}") from error
            raise
        if is_ready:
            self.plan = plan
        return is_ready

    def close(self) -> None:
        """Takes no more requests, and returns when the replicas have ended those that they had."""
        import ray.serve as rayserve

        if self.plan.form is ProxyForm.direct:
            rayserve.delete(self._name, _blocking=False)
        else:
            if self._is_open:
                self._run(build_gate(self._build(self.plan, 0)))
                self._wait_for_queue()
            self._is_open = False
            self._run(build_gate())
        deadline = time.monotonic() + self.plan.job.deployment.drain_s + LEAVE_S
        # Ray Serve's status forgets a deployment at once; its replicas are there until their requests have ended
        while self._actors() and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Drains the replicas and ends Ray Serve, where it was started."""
        import ray.serve as rayserve

        if self._has_begun:
            self.close()
            rayserve.shutdown()

    def look(self) -> None:
        """Tells of replicas that come and go.

        Raises:
            ServiceFailed: when the service is gone.
        """
        import ray.serve as rayserve

        status = rayserve.status().applications.get(self._name)
        if status is None:
            raise ServiceFailed("the service is gone: somebody else has stopped it")
        replicas = status.deployments.get(REPLICA)
        states = {state.lower(): count for state, count in replicas.replica_states.items()} if replicas else {}
        if self._states is not None and states != self._states:
            shown = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
            self._say(f"replicas: {shown or 'none'}")
        self._states = states

    def _wait_for_queue(self) -> None:
        """Returns when no request waits for a replica: it would find none, once they are told to end."""
        import ray
        from ray.exceptions import RayError

        deadline = time.monotonic() + self.plan.job.deployment.drain_s
        calm = 0
        while calm < 3 and time.monotonic() < deadline:
            try:
                actors = [ray.get_actor(name, namespace="serve") for name in self._actors()]
                held = ray.get([actor.get_num_ongoing_requests.remote() for actor in actors], timeout=2 * POLL_S)
            except (RayError, ValueError):  # one that dies or hangs
                held = []
            # a request that waits is given to the next free replica within half a second
            calm = calm + 1 if not held or min(held) < self.plan.max_ongoing_requests else 0
            time.sleep(POLL_S)

    def _actors(self) -> list[str]:
        """Names of the replicas' actors, of those that drain too."""
        import ray

        named: list[Any] = ray.util.list_named_actors(all_namespaces=True)
        beginning = f"SERVE_REPLICA::{self._name}#{REPLICA}#"
        return [actor["name"] for actor in named if actor["name"].startswith(beginning)]

    def _open(self, plan: ServicePlan) -> bool:
        if plan.form is ProxyForm.direct:  # HAProxy says itself that nobody is there
            return self._deploy(self._build(plan, 0), plan)
        if not self._deploy(build_gate(self._build(plan, 0)), plan):
            return False
        self._is_open = True
        return self._deploy(self._build(plan, 0), plan)

    def _deploy(self, app: Any, plan: ServicePlan) -> bool:
        """Returns whether all of the application became ready before somebody interrupted.

        Raises:
            ServiceFailed: when it does not.
        """
        import ray.serve as rayserve
        from ray.serve.schema import ApplicationStatus

        self._run(app)
        self._states = None  # what an update does is told of elsewhere
        timeout_s = plan.job.engine.start_timeout_s
        deadline = time.monotonic() + timeout_s
        while not self._interrupted.wait(POLL_S):
            status = rayserve.status().applications.get(self._name)
            if status is not None and status.status is ApplicationStatus.RUNNING:
                return True
            if status is not None and status.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                messages = [status.message, *(deployment.message for deployment in status.deployments.values())]
                raise ServiceFailed(f"the engine does not start: {cause_of(messages)}")
            if time.monotonic() > deadline:
                raise ServiceFailed(f"not ready after engine.start_timeout_s={timeout_s:g}")
        return False

    def _run(self, app: Any) -> None:
        from ray.serve.api import RunTarget, run_many

        run_many([RunTarget(app, name=self._name)], wait_for_applications_running=False)


def _flags(plan: ServicePlan) -> dict[str, str]:
    job, grpc = plan.job, {}
    if plan.grpc_address is not None:
        grpc = {ADDRESS_VARIABLE: plan.grpc_address, APPLICATION_VARIABLE: job.deployment.name}
    return {
        # an engine that hangs drains nothing: its requests would hold it for deployment.drain_s
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        # Ray kills a proxy that is not up within 5 s and starts another: on a busy machine for ever
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # the controller starts the proxies, and they inherit this
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": LAYERS_PATH if grpc else IMPORT_PATH,
        TIMEOUT_VARIABLE: str(job.deployment.request_timeout_s),
        BODY_VARIABLE: str(job.access.max_body_bytes),
        **grpc,
    }
