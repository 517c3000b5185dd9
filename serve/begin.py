"""Starts Ray Serve and its proxies, as a service wants them."""

from __future__ import annotations

import logging

from conf.errors import UserError
from serve.middleware.body import FORM_BYTES
from serve.middleware.proxy import CALLBACK, MARGIN_S, environment
from serve.plan import ServicePlan
from serve.rpc.method import ADDRESS_VARIABLE, APPLICATION_VARIABLE, CALLS_PATH, LAYERS_PATH


def begin(plan: ServicePlan) -> None:
    """Starts Ray Serve, with one proxy on this host's address only.

    Raises:
        UserError: when the cluster serves already.
    """
    import ray.serve as rayserve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if rayserve.status().proxies:
        raise UserError(f"cluster.address={plan.job.cluster.address}: Ray Serve runs there already")
    spec = plan.job.deployment
    variables = environment(plan.app, spec.request_timeout_s, plan.form, _max_body_bytes(plan))
    timeout_s, grpc = spec.request_timeout_s + MARGIN_S, None
    if plan.grpc_address is not None:
        grpc = {"port": spec.grpc_port, "grpc_servicer_functions": [CALLS_PATH], "enable_reflection": False}
        grpc["request_timeout_s"] = timeout_s
        variables |= {ADDRESS_VARIABLE: plan.grpc_address, APPLICATION_VARIABLE: plan.app, CALLBACK: LAYERS_PATH}
    rayserve.start(
        proxy_location="HeadOnly",
        http_options={"host": spec.host, "port": spec.port, "request_timeout_s": timeout_s},
        grpc_options=grpc,
        controller_options={"runtime_env": {"env_vars": variables}},
    )


def _max_body_bytes(plan: ServicePlan) -> int:
    """The longest body that anything reads: a file for a batch may be longer than a request."""
    batches = plan.job.batches
    longest = 0 if batches.path is None else batches.max_file_bytes + FORM_BYTES
    return max(plan.job.access.max_body_bytes, longest)
