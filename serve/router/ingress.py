"""The deployment that HAProxy asks which replica takes a request, and what replicas tell it. `Flights` decides."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from typing import Any

from cluster.replica_port import listen_on_this_node
from conf.schema.router import RouterSpec
from serve.router.choose import Capacity
from serve.router.flights import Event, Flights
from serve.router.proxy import BUFFER_BYTES, running_replicas, watch_replicas, with_router
from serve.router.router import Router

NAME, ROUTE = "router", "/internal/route"
"""Of the deployment, and where HAProxy asks it."""
FLIGHT_HEADER = "x-serve-router-flight"
"""HAProxy takes headers that begin so from clients' requests, and puts in those that the router gave."""
SESSION_HEADER = b"x-session-id"
REQUEST_ID = b"x-request-id"
"""The client's, or HAProxy's; the same where HAProxy asks a second time (`serve/router/haproxy.py`, AGAIN)."""
KV_TOKENS = "kv_tokens"
"""What a replica calls its cache's size in `record_routing_stats`."""
DEFAULT_KV_TOKENS = 131_072
"""Until the replica has said."""
REPORT_S = 0.1
"""What happened in a replica is told within this time, and no oftener."""
SHARE_S = 0.004
"""With many replicas each tells less often: a report costs a router about 1 ms."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_log = logging.getLogger(__name__)


class RouterIngress:
    """Answers HAProxy at /internal/route. Ray Serve calls what is here; requests go to the app."""

    def __init__(self, spec: RouterSpec, target: str, capacity: Capacity) -> None:
        """Args.

        spec: policy, weights, bounds.
        target: the deployment whose replicas are chosen.
        capacity: what one is thought to hold until it has said.
        """
        self._router = Router(spec)
        self._flights = Flights(self._router, uuid.uuid4().hex[:8])
        self._target = target
        self._capacity = capacity
        self._known: dict[str, Capacity] = {}
        listen_on_this_node()

    async def __serve_build_asgi_app__(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """Begins to watch the replicas and returns the app."""
        self._watch = watch_replicas(self._target, self._set_replicas)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:  # uvicorn takes a method for ASGI 2
            if scope["type"] == "http":
                await self._answer(scope, receive, send)

        return app

    async def report(self, replica_id: str, events: list[tuple[int, str, int]]) -> None:
        """A replica tells what happened to its requests, see `Flights.hear`."""
        self._flights.hear(replica_id, events)

    def _set_replicas(self, target: Any) -> None:
        stats = running_replicas(target)
        for replica_id in self._known.keys() - stats.keys():
            del self._known[replica_id]
            self._router.drop(replica_id)
        for replica_id, told in stats.items():
            capacity = replace(self._capacity, kv_tokens=told.get(KV_TOKENS) or self._capacity.kv_tokens)
            if self._known.get(replica_id) != capacity:
                self._known[replica_id] = capacity
                self._router.place(replica_id, capacity)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, answer = 404, {}
        if scope["path"] == ROUTE:
            chunks, size, has_more = [], 0, True
            while has_more and size <= BUFFER_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                has_more = message.get("more_body", False)
            headers = dict(scope["headers"])
            session, request_id = (
                headers[name].decode("latin-1") if headers.get(name) else None for name in (SESSION_HEADER, REQUEST_ID)
            )
            sent = self._flights.send(b"".join(chunks), session, request_id)
            status = 503
            if sent is not None:
                status, answer = 200, {"replica_id": sent.replica_id, "request_headers": {FLIGHT_HEADER: sent.flight}}
        body = json.dumps(answer).encode()
        said = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": said})
        await send({"type": "http.response.body", "body": body})


class Reporter:
    """Tells the routers what happens to the requests of this replica, some of it at a time."""

    def __init__(self) -> None:
        """Starts with nothing to tell."""
        self._events: list[Event] = []
        self._task: asyncio.Task[None] | None = None
        self._handle: Any = None
        self._replica_id = ""
        self._share = 1

    def note(self, event: Event) -> None:
        """Something happened. To be called where a loop runs; returns at once."""
        self._events.append(event)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        while self._events:
            await asyncio.sleep(max(REPORT_S, SHARE_S * self._share))
            events, self._events = self._events, []
            try:
                await self._call([(int(event.moment), event.flight, event.tokens) for event in events])
            except Exception as error:  # no router is up: nobody counts, and HAProxy chooses
                _log.debug("no router was told: %s", type(error).__name__)

    async def _call(self, events: list[tuple[int, str, int]]) -> None:
        import ray.serve as rayserve

        if self._handle is None:
            context = rayserve.get_replica_context()
            self._replica_id = context.replica_id.to_full_id_str()
            self._share = context.world_size
            self._handle = rayserve.get_deployment_handle(NAME, app_name=context.app_name)
        await self._handle.broadcast("report", self._replica_id, events).results_async(timeout_s=5.0)


def behind_router(application: Any, target: str, spec: RouterSpec, max_requests: int) -> Any:
    """Returns an application of Ray Serve whose replicas the router chooses; HAProxy must stand before it.

    Args:
        application: of one deployment.
        target: the deployment's name.
        spec: policy, weights, bounds.
        max_requests: that one replica runs at a time.
    """
    import ray.serve as rayserve

    deployment: Any = rayserve.deployment(
        rayserve.ingress()(RouterIngress),  # type: ignore[arg-type]
        name=NAME,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=2.0,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2.0,
        logging_config={"enable_access_log": False},
    )
    capacity = Capacity(kv_tokens=DEFAULT_KV_TOKENS, max_requests=max_requests)
    return with_router(application, deployment.bind(spec, target, capacity))
