"""Requests whose replica is lost: what the proxy asks once more, and what it says where it does not."""

from __future__ import annotations

import json

import httpx
import pytest

from serve.middleware.answer import ASGIApp, Receive, Scope, Send
from serve.middleware.kept import KEPT_BYTES
from serve.middleware.proxy import AGAIN_HEADER, MARGIN_S, Proxy


class Lossy:
    """Ray Serve with replicas that are lost: each reads some of the body, the last one answers with it."""

    def __init__(self, num_lost: int, says: bytes | None = None) -> None:
        self.num_lost, self.says = num_lost, says
        self.got: list[dict[bytes, bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.got.append(dict(scope["headers"]))
        is_lost = len(self.got) <= self.num_lost
        body, has_more = b"", True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, has_more = body + message["body"], message.get("more_body", False) and not is_lost
        if is_lost and self.says is None:
            return
        kind = b"text/event-stream" if is_lost else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await send({"type": "http.response.body", "body": self.says if is_lost else body, "more_body": is_lost})


async def put(app: ASGIApp, body: bytes | list[bytes], is_again: bool = True, **headers: str) -> httpx.Response:
    async def pieces():
        for piece in body:
            yield piece

    clock = iter(range(0, 1000, 4))
    transport = httpx.ASGITransport(Proxy(app, 600, is_again=is_again, clock=lambda: next(clock)))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        content = body if isinstance(body, bytes) else pieces()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.post("/v1/x", content=content, headers=named)


@pytest.mark.parametrize("body", [b"", b"whole", [b"in ", b"pieces ", b"of ", b"it"]])
async def test_a_request_whose_replica_is_lost_is_asked_once_more_with_all_of_its_body(body: bytes | list[bytes]):
    app = Lossy(1)
    answer = await put(app, body, x_request_timeout="10", x_serve_router_again="1")
    assert (answer.status_code, answer.content) == (200, b"".join([body] if isinstance(body, bytes) else body))
    first, second = app.got
    assert AGAIN_HEADER not in first  # no client says so
    assert second[AGAIN_HEADER] == b"1"
    assert float(second[b"x-request-timeout"]) == 6  # of ten seconds four are gone
    assert float(second[b"x-request-timeout-seconds"]) == 6 + MARGIN_S


@pytest.mark.parametrize(
    "app, body, is_again, timeout_s, status",
    [
        (Lossy(2), b"x", True, "", 500),  # twice at most
        (Lossy(1), b"x", False, "", 500),
        (Lossy(1), b"x" * (KEPT_BYTES + 1), True, "", 500),
        (Lossy(1), b"x", True, "4", 504),  # no time is left
        (Lossy(1, b"data: {}\n\n"), b"x", True, "", 200),  # it has begun
    ],
)
async def test_what_cannot_be_asked_again_is_not(app: Lossy, body: bytes, is_again: bool, timeout_s: str, status: int):
    answer = await put(app, body, is_again, **({"x_request_timeout": timeout_s} if timeout_s else {}))
    assert (answer.status_code, len(app.got)) == (status, app.num_lost)
    assert ("replica_lost" in answer.text) == (status == 200)


async def test_a_stream_that_ray_serve_ends_at_its_time_says_so():
    answer = await put(Lossy(1, b"data: {}\n\n"), b"x", x_request_timeout="8")
    last = answer.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("kind", [b"application/json", b"text/event-stream"])
async def test_headers_without_a_body_are_no_answer_yet(kind: bytes):
    asked = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        asked += 1
        await receive()
        await send({"type": "http.response.start", "status": 199 + asked, "headers": [(b"content-type", kind)]})
        if asked == 2:
            await send({"type": "http.response.body", "body": b"data: x"})

    answer = await put(app, b"x")
    assert (answer.status_code, answer.text, asked) == (201, "data: x", 2)
    asked = 0
    assert (await put(app, b"x", is_again=False)).status_code == 500


async def test_a_client_that_has_left_is_not_asked_for_again():
    messages = iter([{"type": "http.request", "body": b"x"}, {"type": "http.disconnect"}])
    num_asked, sent = 0, []

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal num_asked
        num_asked += 1
        while (await receive())["type"] != "http.disconnect":
            pass

    await Proxy(app, 600, is_again=True)({"type": "http", "method": "POST", "path": "/x", "headers": []}, receive, send)
    assert num_asked == 1
