"""Around Ray Serve's proxy: what it says by itself, in OpenAI's shape, and what it hears of a client.

Ray Serve calls `layers` in the proxy's process, or in the replica's where replicas take connections themselves.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable

from starlette.middleware import Middleware

from conf.schema.serve import ProxyForm
from serve.catalogue import Follower
from serve.middleware.answer import (
    ASGIApp,
    Message,
    Receive,
    Refused,
    Scope,
    Send,
    answer,
    error_event,
    nothing,
    refuse_with,
)
from serve.middleware.deadline import TIMEOUT, asked_timeout_s
from serve.middleware.dispatch import Dispatch
from serve.middleware.header import media_type
from serve.middleware.identity import REQUEST_ID, identify
from serve.middleware.kept import KeptBody, bounded
from serve.middleware.past import Asker, Past
from serve.middleware.room import FULL
from serve.middleware.routes import EXPOSED
from serve.notice import Size, read_notice
from serve.router.ingress import ROUTE
from serve.router.listeners import take_bursts
from serve.router.proxy import own_app

CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
IMPORT_PATH = "serve.middleware.proxy:layers"
NAME_VARIABLE = "MANTA_SERVICE"
TIMEOUT_VARIABLE, BODY_VARIABLE = "MANTA_REQUEST_TIMEOUT_S", "MANTA_MAX_BODY_BYTES"
AGAIN_VARIABLE = "MANTA_ASK_AGAIN"
"""Set where a second attempt reaches another replica: not in a replica's own process."""
AGAIN_HEADER = b"x-serve-router-again"
"""Of a second attempt. HAProxy takes headers that begin so from clients' requests, and so does this."""
READY_S = 5.0
"""Where no replica is there, Ray Serve has a request wait for one: whoever asks for /ready wants to know now."""
DISPATCH_VARIABLE = "MANTA_DISPATCH"
"""Set where Ray Serve's proxy may have several models behind it."""
MARGIN_S = 5.0
"""What the proxy waits for beyond a request's deadline, so that the replica's answer to it comes first."""
_log = logging.getLogger(__name__)
_RAY_TIMEOUT, _RAY_DEAF = b"x-request-timeout-seconds", b"x-request-disconnect-disabled"
_NOT_HEARD = (_RAY_TIMEOUT, _RAY_DEAF, AGAIN_HEADER)
"""By Ray Serve's two a client could have its request run on without end, whether it is there or not."""
_ALONE = [(_RAY_TIMEOUT, b"0"), (_RAY_DEAF, b"?1")]
"""In a replica `Deadline` watches the time, and vLLM, by `Deadline`, whether the client is there. Ray Serve would do it
once more, with two tasks and a queue for each request, which a burst waits for."""
_WATCHED = EXPOSED | {ROUTE}
"""Paths behind `Deadline`, and the router's."""
_ASKED = frozenset({"/health", "/ready", "/metrics"})
"""By machines, every few seconds: they wake no service that sleeps."""
LOOK_S = 1.0
_LOST = error_event("The replica is lost.", "server_error", "replica_lost")
_SAID = {
    404: ("there is nothing at this path", "not_found_error", "not_found"),
    408: ("The request was not answered in time.", "timeout_error", "deadline_exceeded"),
    429: (FULL.message, "rate_limit_error", FULL.code),
    500: ("The request failed.", "server_error", "internal_error"),
    503: (FULL.message, FULL.kind, FULL.code),
}
_LATE = error_event(*_SAID[408])


def environment(
    name: str, request_timeout_s: float, form: ProxyForm, max_body_bytes: int = sys.maxsize
) -> dict[str, str]:
    """Returns what Ray Serve's controller must find, and the proxies that it starts inherit.

    Args:
        name: of the service.
        request_timeout_s: the most that a request may ask for.
        form: of its proxy.
        max_body_bytes: the most that a replica reads of a body.
    """
    is_plain = form is ProxyForm.plain
    return {
        # an engine that hangs drains nothing: its requests would hold it for deployment.drain_s
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
        # Ray kills a proxy that is not up within 5 s and starts another: on a busy machine for ever
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        # by default the replica of the proxy's own node gets all until it is full, and those of other nodes nothing
        "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
        CALLBACK: IMPORT_PATH,
        TIMEOUT_VARIABLE: str(request_timeout_s),
        BODY_VARIABLE: str(max_body_bytes),
        NAME_VARIABLE: name,
        AGAIN_VARIABLE: str(int(is_plain)),  # HAProxy does it by itself
        **({DISPATCH_VARIABLE: "1"} if is_plain else {}),
    }


def layers() -> list[Middleware]:
    """Returns what Ray Serve puts around its proxy, the outermost last. Called before the server of it starts."""
    take_bursts()
    is_replica = _is_replica()
    past = {"own": own_app} if is_replica else {"ask": Asker(os.environ.get(NAME_VARIABLE, ""))}
    inner = [Middleware(Past, **past)]  # type: ignore[arg-type]
    if os.environ.get(DISPATCH_VARIABLE):
        inner.append(Middleware(Dispatch, know=Follower()))  # type: ignore[arg-type]
    outer = Middleware(
        Proxy,  # type: ignore[arg-type]
        timeout_s=float(os.environ.get(TIMEOUT_VARIABLE, "600")),
        max_body_bytes=int(os.environ.get(BODY_VARIABLE, sys.maxsize)),
        is_again=os.environ.get(AGAIN_VARIABLE) == "1",
        is_asleep=_is_asleep,
        is_replica=is_replica,
    )
    return [*inner, outer]


def _is_replica() -> bool:
    import ray.serve as rayserve
    from ray.serve.exceptions import RayServeException

    try:
        rayserve.get_replica_context()
    except RayServeException:
        return False
    return True


def _is_asleep() -> bool:
    try:
        size = read_notice(os.environ.get(NAME_VARIABLE, ""), Size)
    except Exception as error:  # Ray's store does not answer: the request goes on, as if there were none
        _log.warning("the size of the service cannot be read: %s", type(error).__name__)
        return False
    return size is not None and size.target == 0


class Proxy:
    """Bounds how long a request waits for a replica, and how much of its body; puts errors into OpenAI's shape.

    A request whose replica is lost before the answer has begun is given to Ray Serve once more, which has forgotten
    that replica by then. One that kills the engines that take it kills two, not all.
    """

    def __init__(
        self,
        app: ASGIApp,
        timeout_s: float,
        max_body_bytes: int = sys.maxsize,
        is_again: bool = False,
        clock: Callable[[], float] = time.monotonic,
        is_asleep: Callable[[], bool] = lambda: False,
        is_replica: bool = False,
    ) -> None:
        """Args.

        app: Ray Serve's.
        timeout_s: the most that a request may ask for.
        max_body_bytes: the most that a replica reads of a body.
        is_again: whether a request is asked a second time.
        clock: seconds.
        is_asleep: whether no replica is wanted.
        is_replica: whether this stands in a replica's own process.
        """
        self.app, self._timeout_s, self._max_bytes = app, timeout_s, max_body_bytes
        self._is_again, self._is_replica, self._clock = is_again, is_replica, clock
        self._look, self._is_asleep, self._looked_s = is_asleep, False, -LOOK_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, request_id, _ = identify(scope["headers"])
        answered = _Answer(send, request_id.encode(), scope["path"] == "/ready")
        if scope["path"] == "/-/routes":  # Ray Serve's own; it names the applications
            await refuse_with(answered.send, _refused(404, []))
            return
        headers = [pair for pair in headers if pair[0] not in _NOT_HEARD]
        if scope["path"] in _ASKED and scope["method"] in ("GET", "HEAD") and self._sleeps():
            await answer(answered.send, 200, b"")
            return
        try:
            asked_s = asked_timeout_s(headers)
        except Refused:
            asked_s = None  # the replica says so, once it knows who asks
        came_at, hint = self._clock(), []
        if self._is_replica and scope["method"] == "POST" and scope["path"] in _WATCHED:
            hint = _ALONE
        elif asked_s is not None:
            hint = [_seconds(_RAY_TIMEOUT, min(asked_s, self._timeout_s) + MARGIN_S)]
        elif answered.is_ready:
            hint = [_seconds(_RAY_TIMEOUT, READY_S)]
        body = KeptBody(bounded(receive, self._max_bytes), lambda: self._is_again and not answered.is_begun)
        await self.app({**scope, "headers": [*headers, *hint]}, body.receive, answered.send)
        until = came_at + min(asked_s or self._timeout_s, self._timeout_s)
        left_s = until - self._clock()
        if not answered.is_begun and left_s > 0.001 and body.rewind():
            answered.forget()
            kept = [pair for pair in headers if pair[0] != TIMEOUT]
            hint = [_seconds(TIMEOUT, left_s), _seconds(_RAY_TIMEOUT, left_s + MARGIN_S), (AGAIN_HEADER, b"1")]
            await self.app({**scope, "headers": [*kept, *hint]}, body.receive, answered.send)
        await answered.finish(self._clock() >= until)

    def _sleeps(self) -> bool:
        now_s = self._clock()
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s, self._is_asleep = now_s, self._look()
        return self._is_asleep


class _Answer:
    """An answer on its way out: its headers leave with the first of its body.

    Where a replica dies between the two, nothing has been sent, and the request can be asked again. They left one by
    one: of eight replicas that were killed with 16 answers under way on a busy machine, one had sent headers alone.
    """

    def __init__(self, send: Send, request_id: bytes, is_ready: bool) -> None:
        self._send, self._request_id, self.is_ready = send, request_id, is_ready
        self.is_begun = self._is_ended = self._is_stream = self._is_replaced = False
        self._start: Message | None = None

    def forget(self) -> None:
        """Forgets headers that came without a body."""
        self._start = None

    async def finish(self, is_late: bool) -> None:
        """Ends an answer whose replica is lost: Ray Serve says nothing then. Nobody hears it where the client left.

        Args:
            is_late: whether the request's time is over: Ray Serve ends what has begun then, and says nothing.
        """
        if not self.is_begun:
            await refuse_with(self._send, _refused(408 if is_late else 500, [(REQUEST_ID, self._request_id)]))
        elif self._is_stream and not self._is_ended:
            await self._send({"type": "http.response.body", "body": b"\n\n" + (_LATE if is_late else _LOST)})

    def send(self, message: Message) -> Awaitable[None]:
        """Passes a message on. Nearly all are events of a stream, which cost no coroutine here."""
        if message["type"] != "http.response.body":
            return self._open(message)
        self._is_ended = not message.get("more_body", False)
        if self._start is not None:
            return self._begin(message)
        return nothing() if self._is_replaced else self._send(message)

    async def _begin(self, message: Message) -> None:
        start, self._start, self.is_begun = self._start, None, True
        assert start is not None
        await self._send(start)
        await self._send(message)

    async def _open(self, message: Message) -> None:
        if message["type"] != "http.response.start":
            if not self._is_replaced:
                await self._send(message)
            return
        # Ray Serve adds the id to the one that the replica has said
        headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != REQUEST_ID]
        message = {**message, "headers": [*headers, (REQUEST_ID, self._request_id)]}
        self._is_stream = media_type(headers) == "text/event-stream"
        # an answer of the service itself is never plain text where it is an error
        if message["status"] >= 400 and media_type(headers) in ("text/plain", ""):
            self._is_replaced = self.is_begun = True
            await refuse_with(self._send, _said_by_ray(message["status"], message["headers"], self.is_ready))
        else:
            self._start = message


def _said_by_ray(status: int, headers: list[tuple[bytes, bytes]], is_ready: bool) -> Refused:
    """Puts what Ray Serve says of a request into words of ours."""
    if status == 404:  # it knows no application: a service that is there has all paths
        kept = _refused(503, headers).headers
        return Refused(503, "The service is not ready, or has ended.", "service_unavailable", "unavailable", kept)
    return _refused(503 if is_ready and status == 408 else status, headers)


def _refused(status: int, headers: list[tuple[bytes, bytes]]) -> Refused:
    message, kind, code = _SAID.get(status, ("The request failed.", "server_error", f"status_{status}"))
    kept = [(name.decode(), value.decode()) for name, value in headers if name in (b"retry-after", REQUEST_ID)]
    if status in (429, 503) and all(name != "retry-after" for name, _ in kept):
        kept.append(("retry-after", "1"))
    if status == 408:  # as the replica says it
        status, kept = 504, [*kept, ("x-should-retry", "false")]
    return Refused(status, message, kind, code, kept)


def _seconds(name: bytes, value: float) -> tuple[bytes, bytes]:
    return name, f"{value:.3f}".encode()
