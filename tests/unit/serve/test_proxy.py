from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from serve.middleware.answer import ASGIApp, Receive, Scope, Send, refuse
from serve.middleware.past import Past
from serve.middleware.proxy import (
    AGAIN_VARIABLE,
    BODY_VARIABLE,
    MARGIN_S,
    TIMEOUT_VARIABLE,
    Proxy,
    layers,
)


class Ray:
    """Says what Ray Serve's proxy says: convert_object_to_asgi_messages, and the id that it adds itself."""

    def __init__(self, status: int, *headers: tuple[bytes, bytes], is_said: bool = True) -> None:
        self.status, self.headers, self.is_said = status, headers, is_said
        self.got: dict[bytes, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.got = dict(scope["headers"])
        if self.is_said:
            headers: list[Any] = [[b"content-type", b"text/plain; charset=utf-8"], *map(list, self.headers)]
            headers.append((b"x-request-id", self.got[b"x-request-id"]))
            await send({"type": "http.response.start", "status": self.status, "headers": headers})
            await send({"type": "http.response.body", "body": b"Deployment replica of app at 10.0.0.1 timed out"})


async def ask(app: ASGIApp, path: str = "/v1/models", **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(Proxy(app, 600, 1000))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        return await client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    "status, said, code",
    [
        (404, 503, "unavailable"),
        (408, 504, "deadline_exceeded"),
        (429, 429, "overloaded"),
        (500, 500, "internal_error"),
        (503, 503, "overloaded"),
        (502, 502, "status_502"),
    ],
)
async def test_an_error_of_the_proxy_has_openai_s_shape_and_no_internals(status: int, said: int, code: str):
    answer = await ask(Ray(status))
    assert (answer.status_code, answer.json()["error"]["code"]) == (said, code)
    assert "10.0.0.1" not in answer.text
    assert len(answer.headers.get_list("x-request-id")) == 1
    assert ("retry-after" in answer.headers) == (said in (429, 503))


async def test_who_only_looks_wakes_no_service_that_sleeps():
    is_asleep, now_s, ray = True, 0.0, Ray(500)
    app = Proxy(ray, 600, clock=lambda: now_s, is_asleep=lambda: is_asleep)

    async def get(path: str, method: str = "GET") -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            return (await client.request(method, path)).status_code

    assert [await get(path) for path in ("/ready", "/health", "/metrics")] == [200, 200, 200]
    assert ray.got == {}
    assert await get("/ready", "POST") == 500
    assert await get("/v1/models") == 500
    is_asleep = False
    assert await get("/ready") == 200
    now_s = 1.0
    assert await get("/ready") == 500


async def test_when_to_come_again_is_kept():
    assert (await ask(Ray(503, (b"retry-after", b"7")))).headers["retry-after"] == "7"


async def test_a_lost_replica_is_a_500_and_in_a_stream_an_error_event():
    answer = await ask(Ray(200, is_said=False))
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"]

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: {}\n\ndata: {", "more_body": True})

    events = (await ask(broken)).text.strip().split("\n\n")
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "replica_lost"


async def test_answers_of_the_service_pass_as_they_are():
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await refuse(send, 429, "too many", code="rate_limit_exceeded", headers=[("retry-after", "9")])

    answer = await ask(app)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert answer.headers["retry-after"] == "9"
    plain = await ask(Ray(200))
    assert plain.text.startswith("Deployment")


async def test_what_a_client_says_to_ray_serve_is_not_heard_and_its_deadline_is():
    app = Ray(200)
    await ask(app, x_request_timeout_seconds="-1", x_request_disconnect_disabled="?1")
    assert not {b"x-request-timeout-seconds", b"x-request-disconnect-disabled"} & set(app.got)
    for asked, told_s in (("2.5", 2.5 + MARGIN_S), ("99999", 600 + MARGIN_S)):
        await ask(app, x_request_timeout=asked, x_request_timeout_seconds="0")
        assert float(app.got[b"x-request-timeout-seconds"]) == told_s
    await ask(app, x_request_timeout="never")
    assert b"x-request-timeout-seconds" not in app.got
    assert app.got[b"x-request-timeout"] == b"never"  # which the replica refuses


async def test_ray_serve_s_list_of_applications_is_not_shown():
    app = Ray(200)
    answer = await ask(app, "/-/routes")
    assert (answer.status_code, app.got) == (404, {})
    assert (await ask(app, "/-/healthz")).status_code == 200


async def test_ready_does_not_wait_for_a_replica():
    app = Ray(408)
    answer = await ask(app, "/ready")
    assert float(app.got[b"x-request-timeout-seconds"]) <= 5
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert "retry-after" in answer.headers


@pytest.mark.parametrize("is_again", [True, False])
def test_ray_serve_gets_its_layers(monkeypatch: pytest.MonkeyPatch, is_again: bool):
    monkeypatch.setenv(TIMEOUT_VARIABLE, "7.5")
    monkeypatch.setenv(AGAIN_VARIABLE, str(int(is_again)))
    monkeypatch.setenv(BODY_VARIABLE, "1234")
    past, proxy = layers()
    assert (past.cls, proxy.cls) == (Past, Proxy)
    assert past.kwargs.keys() == {"ask"}  # this is no replica's process
    assert {"timeout_s": 7.5, "is_again": is_again, "max_body_bytes": 1234}.items() <= proxy.kwargs.items()


async def test_a_body_without_end_is_taken_in_no_further_than_it_is_read():
    """Ray Serve reads as long as something comes, whether a replica has the request or none."""
    num_read = 0

    async def receive() -> Any:
        nonlocal num_read
        num_read += 1
        return {"type": "http.request", "body": b"a" * 300, "more_body": True}

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        reading = asyncio.create_task(drain(receive))
        for _ in range(100):
            await asyncio.sleep(0)
        reading.cancel()
        await refuse(send, 413, "too large")

    async def drain(receive: Receive) -> None:
        while True:
            await receive()

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await Proxy(waiting, 600, 1000)({"type": "http", "path": "/v1/x", "headers": []}, receive, send)
    assert (num_read, sent[0]["status"]) == (
        4,
        413,
    )  # the first that goes beyond is seen, and shows that it is too long


@pytest.mark.parametrize(
    "path, is_replica, is_alone",
    [
        ("/v1/completions", True, True),
        ("/internal/route", True, True),
        ("/v1/completions", False, False),
        ("/v1/files", True, False),
    ],
)
async def test_in_a_replica_ray_serve_leaves_watching_to_who_watches_already(
    path: str, is_replica: bool, is_alone: bool
):
    ray = Ray(200)
    transport = httpx.ASGITransport(Proxy(ray, 600, is_replica=is_replica))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        await client.post(path, headers={"x-request-disconnect-disabled": "?1", "x-request-timeout-seconds": "0"})
    said = {name: ray.got.get(name) for name in (b"x-request-disconnect-disabled", b"x-request-timeout-seconds")}
    assert list(said.values()) == ([b"?1", b"0"] if is_alone else [None, None])
