"""What stands at a service's address while no replica does: it answers 503, and when to ask again."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cluster.replica_port import listen_on_this_node
from serve.middleware.answer import error_body
from serve.rpc.call import Calls

RETRY_AFTER_S = 5


class Gate(Calls):
    """A deployment of Ray Serve that answers in the place of replicas which start, or have been told to end.

    A call by gRPC is UNAVAILABLE: there is no app for it.
    """

    def __init__(self, *behind: Any) -> None:
        """Args: the replicas, where they are in the same application; nothing is asked of them."""
        listen_on_this_node()

    async def __call__(self, request: Request) -> Response:
        """Refuses every request but /health, which asks whether anybody is there."""
        if request.url.path == "/health":
            return Response()
        body = error_body("the service starts or stops", "service_unavailable")
        return Response(body, 503, {"retry-after": str(RETRY_AFTER_S)}, "application/json")


def build_gate(*behind: Any) -> Any:
    """Returns the gate as an application of Ray Serve; starts nothing.

    Args:
        behind: an application that is part of it, though the gate stands at its address.
    """
    import ray.serve as rayserve

    deployment: Any = rayserve.deployment(
        Gate,
        name="gate",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
        logging_config={"enable_access_log": False},
    )
    deployment._version = "1"  # what stands behind it is no reason to start it again
    return deployment.bind(*behind)
