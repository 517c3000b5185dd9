"""What goes past Ray Serve's queue, and what waits there."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from serve.middleware.answer import ASGIApp, Message, Receive, Scope, Send, answer
from serve.middleware.past import Past, answer_of


class App:
    """Says its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await answer(send, 200, b"", [("x-name", self.name)])


async def ask(app: ASGIApp, path: str, method: str = "GET") -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        return (await client.request(method, path)).headers["x-name"]


REQUESTS = [
    ("GET", "/metrics", True),
    ("HEAD", "/metrics", True),
    ("GET", "/v1/models", True),
    ("GET", "/v1/models/a/b", True),
    ("GET", "/openapi.json", True),
    ("GET", "/ready", True),
    ("HEAD", "/health", True),
    ("POST", "/v1/completions", False),
    ("POST", "/metrics", False),
    ("GET", "/v1/files/file-1/content", False),  # as long as it is, and waited for when a replica leaves
    ("GET", "/-/healthz", False),
    ("GET", "/v1/modelsx", False),
    ("GET", "/_model/other/metrics", False),
]


@pytest.mark.parametrize("method, path, is_past", REQUESTS)
async def test_what_needs_no_engine_goes_to_a_replica_s_own_app(method: str, path: str, is_past: bool):
    app = Past(App("queue"), own=lambda has_room: None if has_room else App("own"))
    assert await ask(app, path, method) == ("own" if is_past else "queue")


@pytest.mark.parametrize(
    "method, path, way",
    [
        ("POST", "/v1/completions", "room"),
        ("POST", "/tokenize", "room"),
        ("GET", "/metrics", "own"),
        ("POST", "/v1/files", "queue"),
        ("POST", "/v1/batches", "queue"),
        ("POST", "/internal/route", "queue"),
        ("PUT", "/v1/completions", "queue"),
    ],
)
async def test_what_needs_an_engine_waits_in_a_replica_s_own_room(method: str, path: str, way: str):
    app = Past(App("queue"), own=lambda has_room: App("room" if has_room else "own"))
    assert await ask(app, path, method) == way


@pytest.mark.parametrize("method, path, is_past", REQUESTS)
async def test_in_the_proxy_a_replica_is_asked(method: str, path: str, is_past: bool):
    async def of_replica(scope: Scope) -> list[Message]:
        return await answer_of(App("replica"), {name: scope[name] for name in ("type", "path", "method", "headers")})

    app = Past(App("queue"), ask=of_replica)
    assert await ask(app, path, method) == ("replica" if is_past else "queue")


async def test_where_nobody_can_be_asked_a_request_waits_as_others_do():
    async def nobody(_: Scope) -> list[Message]:
        return []

    assert await ask(Past(App("queue")), "/metrics") == "queue"
    assert await ask(Past(App("queue"), ask=nobody), "/metrics") == "queue"
    seen: list[Any] = []

    async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await Past(lifespan, own=lambda _: App("own"))({"type": "lifespan"}, nobody, nobody)  # type: ignore[arg-type]
    assert seen == ["lifespan"]
