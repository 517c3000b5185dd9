"""A service without an engine: policy around a Starlette app that says what reached it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from conf.schema.access import AccessSpec
from serve.keyring import KeyRing
from serve.keys import Limits, Priority, add_key, make_key
from serve.middleware.access import Access
from serve.middleware.answer import ASGIApp
from serve.middleware.deadline import Deadline
from serve.middleware.measure import Measure
from serve.middleware.negotiation import Negotiation
from serve.middleware.observe import Observe
from serve.middleware.proxy import Proxy
from serve.middleware.routes import Routes
from serve.middleware.tally import Tally
from serve.wire.formats import MEDIA_TYPES

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHAT = "/v1/chat/completions"


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def chat(request: Request) -> Response:
    """Answers with what it got, headers' names in a header; ``fake_usage`` in the body is the usage that it tells."""
    body = await request.json()
    usage = body.get("fake_usage")
    if body.get("stream"):
        events = [b'data: {"choices": [{"delta": {"content": "\\"usage\\""}}]}\n\n', b"data: [DONE]\n\n"]
        if usage:
            events.insert(1, b'data: {"choices": [], "usage": {"total_tokens": %d}}\n\n' % usage)
        return StreamingResponse(iter(events), media_type="text/event-stream")
    if body.get("model") == "unknown":
        return JSONResponse({"error": {"code": "model_not_found"}}, 404)
    manta = {name: request.scope["manta"].get(name) for name in ("key", "priority", "body")}
    is_framed = request.headers.getlist("content-length") == [str(len(await request.body()))]
    plain: dict[str, Any] = {"got": body, "manta": manta, "is_framed": is_framed}
    got = {"x-got": ",".join(request.headers)}
    return JSONResponse(plain | ({"usage": {"total_tokens": usage}} if usage else {}), headers=got)


async def missing(request: Request, error: Exception) -> Response:
    """What `Listing` says of a model that there is none of."""
    said = {"message": "There is no such model.", "type": "not_found_error", "param": None, "code": "model_not_found"}
    return JSONResponse({"error": said}, 404)


async def good(request: Request) -> Response:
    return PlainTextResponse("good")


def make_service(spec: AccessSpec, keys: KeyRing, clock: Callable[[], float]) -> Access:
    """Returns access and measure around the app."""
    return Access(Measure(_app(), spec), spec, keys, clock=clock)


def make_stack(spec: AccessSpec, keys: KeyRing, clock: Callable[[], float], timeout_s: float) -> ASGIApp:
    """Returns the layers of a replica around the app, but the cache, and before them that of Ray Serve's proxy."""
    access = Access(Negotiation(Measure(Deadline(_app(), timeout_s), spec), spec), spec, keys, MEDIA_TYPES, clock)

    async def is_ready() -> bool:
        return True

    return Proxy(Observe(Routes(access, is_ready), Tally(["m"])), timeout_s, spec.max_body_bytes)


def _app() -> ASGIApp:
    routes = [Route(path, good) for path in ("/health", "/ready", "/metrics", "/v1/models")]
    routes += [Route(path, chat, methods=["POST"]) for path in (CHAT, "/v1/completions", "/v1/embeddings")]
    # an error of the service is JSON: plain text is what Ray Serve says
    return Starlette(routes=routes, exception_handlers={404: missing})  # type: ignore[return-value]


def make_secret(
    path: Path, name: str, priority: Priority = Priority.interactive, expires: datetime | None = None, **limits: int
) -> str:
    """Stores a key and returns its secret."""
    return add_key(path, make_key(name, Limits(**limits), priority, expires, NOW))
