"""The replicas of a model as an application of Ray Serve: how many requests each takes, and when it counts as ill."""

from __future__ import annotations

from typing import Any

from conf.schema.serve import ProxyForm
from serve.plan import ServicePlan
from serve.replica import Replica
from serve.router.ingress import behind_router
from serve.router.past import REPLICA
from serve.scaling import scaling_options

RETRY_AFTER_S = 1.0
"""What a request is told that finds the queue full."""
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 2.0, 30.0
CLOSE_S = 3.0
"""Seconds after `deployment.drain_s` for a replica to end what it still answers (`serve/middleware/leaving.py`); then
it is killed."""


def build_replicas(plan: ServicePlan, surge_percent: int, kind: type = Replica) -> Any:
    """Returns the replicas of a plan as an application of Ray Serve; starts nothing.

    Args:
        plan: the service.
        surge_percent: how many new replicas may be beside the old ones in an update, of their number.
        kind: what a replica is.
    """
    import ray.serve as rayserve

    spec, bundle = plan.job.deployment, plan.placement.bundles[0]
    options = scaling_options(plan.job, plan.app, plan.num_replicas)
    if plan.job.engine.world_size > 1:
        options["placement_group_bundles"] = plan.placement.bundles
        options["placement_group_strategy"] = plan.placement.strategy
    deployment: Any = rayserve.deployment(
        rayserve.ingress()(kind),  # type: ignore[arg-type]
        name=REPLICA,
        ray_actor_options={"num_cpus": bundle.get("CPU", 0.0), "num_gpus": bundle.get("GPU", 0.0)},
        max_ongoing_requests=plan.job.max_ongoing_requests,
        max_queued_requests=spec.max_queued_requests,
        backpressure_config={"status_code": 503, "retry_after_s": RETRY_AFTER_S},
        graceful_shutdown_timeout_s=spec.drain_s + CLOSE_S,
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
    # the share of a machine is that of the full fleet: replicas that come slow nobody down
    application = deployment.bind(plan.job, plan.device, plan.share, plan.layers)
    if plan.form is ProxyForm.direct:
        return behind_router(application, REPLICA, plan.job.router, plan.job.engine.max_num_seqs)
    return application
