"""Who may come in, and how much of a service a key may have.

One file, though it is long: each test asks the same small service with a key of its own.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from small_service import CHAT, Clock, make_secret, make_service
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from conf.schema.access import AccessSpec
from serve.keyring import KeyRing
from serve.keys import Priority, revoke_key
from serve.middleware.access import Access
from serve.middleware.answer import ASGIApp, Message, Receive, Scope, Send
from serve.middleware.body import replay
from serve.middleware.header import with_length
from serve.middleware.measure import Measure


class Service:
    """The service, a key in it, and a client."""

    def __init__(self, path: Path, spec: AccessSpec | None = None, **key: Any) -> None:
        self.clock, self.path = Clock(), path / "keys.json"
        self.secret = make_secret(self.path, "team", **key)
        self.keys = KeyRing(self.path, clock=self.clock)
        self.app = make_service(spec or AccessSpec(), self.keys, self.clock)
        self.client = self.client_of(self.app)

    def client_of(self, app: ASGIApp, secret: str | None = None) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {secret or self.secret}"}
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service", headers=headers)

    async def chat(self, **body: Any) -> httpx.Response:
        return await self.client.post(CHAT, json=body)

    async def tokens_left(self) -> int:
        return int((await self.client.get("/v1/models")).headers["x-ratelimit-remaining-tokens"])


def code(response: httpx.Response) -> tuple[int, str | None]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


async def test_a_key_opens_the_service_and_its_name_reaches_the_inside(tmp_path: Path):
    service = Service(tmp_path)
    answer = await service.chat(model="m", messages=[])
    assert answer.status_code == 200
    body = {"model": "m", "messages": []}
    assert answer.json() == {"got": body, "manta": {"key": "team", "priority": 0, "body": body}, "is_framed": True}
    assert service.secret not in answer.text
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


async def test_who_has_no_key_is_told_how_to_send_one(tmp_path: Path):
    service = Service(tmp_path)
    del service.client.headers["authorization"]
    answer = await service.chat()
    assert code(answer) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == 'Bearer realm="manta"'
    for path in ("/health", "/ready"):
        assert (await service.client.get(path)).text == "good"
    for path in ("/metrics", "/v1/models", "/health/", "/health/x", "/docs"):
        assert code(await service.client.get(path)) == (401, "invalid_api_key")


async def test_the_scheme_is_written_in_any_case(tmp_path: Path):
    service = Service(tmp_path)
    service.client.headers["authorization"] = f"bEARER  {service.secret} "
    assert (await service.chat()).status_code == 200


async def test_a_revoked_key_is_refused_without_a_restart(tmp_path: Path):
    service = Service(tmp_path)
    assert (await service.chat()).status_code == 200
    revoke_key(service.path, "team")
    service.clock.now_s += 1
    answer = await service.chat()
    assert code(answer) == (401, "invalid_api_key")
    assert service.secret not in answer.text


async def test_where_it_is_open_everybody_comes_in_and_a_key_still_counts(tmp_path: Path):
    service = Service(tmp_path, AccessSpec(open=True), priority=Priority.batch)
    assert (await service.chat()).json()["manta"]["key"] == "team"
    service.client.headers["authorization"] = "Bearer EMPTY"
    answer = (await service.chat()).json()["manta"]
    assert (answer["key"], answer["priority"]) == ("open", 0)
    del service.client.headers["authorization"]
    assert (await service.chat()).json()["manta"]["key"] == "open"


async def test_a_batch_key_comes_after_interactive_ones_whatever_it_asks(tmp_path: Path):
    service = Service(tmp_path, priority=Priority.batch)
    for asked, got in ((None, 100), (-5, 100), (100, 100), (2000, 2000)):
        answer = (await service.chat(**({} if asked is None else {"priority": asked}))).json()
        assert answer["got"]["priority"] == answer["manta"]["priority"] == answer["manta"]["body"]["priority"] == got
        assert answer["is_framed"]


async def test_requests_a_minute(tmp_path: Path):
    service = Service(tmp_path, AccessSpec(requests_per_min=100), requests_per_min=3)
    left = [(await service.chat()).headers["x-ratelimit-remaining-requests"] for _ in range(3)]
    assert left == ["2", "1", "0"]
    answer = await service.chat()
    assert code(answer) == (429, "rate_limit_exceeded")
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert answer.headers["x-ratelimit-limit-requests"] == "3"
    assert answer.headers["x-ratelimit-reset-requests"] == "61s"
    service.clock.now_s += int(answer.headers["retry-after"]) - 1
    assert (await service.chat()).status_code == 429
    service.clock.now_s += 1
    assert (await service.chat()).status_code == 200
    other = make_secret(service.path, "other")
    service.clock.now_s += 1
    assert (await service.client_of(service.app, other).get("/v1/models")).status_code == 200


async def test_tokens_are_reserved_then_settled_by_what_the_answer_says(tmp_path: Path):
    service = Service(tmp_path, tokens_per_min=10_000)
    answer = await service.chat(max_tokens=5000, fake_usage=40)
    left = int(answer.headers["x-ratelimit-remaining-tokens"])
    assert left == 5000 - len(answer.request.content) // 4
    assert await service.tokens_left() == 10_000 - 40
    assert (await service.chat(max_tokens=5000, fake_usage=60, stream=True)).status_code == 200
    assert await service.tokens_left() == 10_000 - 100
    assert (await service.chat(max_tokens=10, fake_usage=9900)).status_code == 200  # it said too little
    assert await service.tokens_left() == 0
    answer = await service.chat(max_tokens=1)
    assert code(answer) == (429, "rate_limit_exceeded")
    assert answer.headers["retry-after"] == "61"


async def test_a_stream_without_usage_keeps_the_estimate_and_an_error_costs_nothing(tmp_path: Path):
    service = Service(tmp_path, tokens_per_min=10_000)
    assert (await service.chat(max_tokens=5000, model="unknown")).status_code == 404
    assert await service.tokens_left() == 10_000
    await service.chat(max_tokens=5000, stream=True)
    assert 4900 < await service.tokens_left() < 5000


async def test_a_request_that_alone_exceeds_the_limit_is_not_worth_another_try(tmp_path: Path):
    service = Service(tmp_path, tokens_per_min=100, requests_per_min=1)
    answer = await service.chat(max_tokens=101)
    assert code(answer) == (429, "rate_limit_exceeded")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    assert (await service.chat(max_tokens=10)).status_code == 200  # the refused one was no request


def scope_of(service: Service, path: str = CHAT, method: str = "POST") -> Scope:
    headers = [(b"authorization", f"Bearer {service.secret}".encode()), (b"content-type", b"application/json")]
    return {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}


async def test_requests_at_once(tmp_path: Path):
    service = Service(tmp_path, max_concurrent=1)
    is_reading, may_end = asyncio.Event(), asyncio.Event()
    sent: list[Message] = []

    async def slow() -> Message:
        is_reading.set()
        await may_end.wait()
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    first = asyncio.create_task(service.app(scope_of(service), slow, send))
    await is_reading.wait()
    answer = await service.chat()
    assert code(answer) == (429, "rate_limit_exceeded")
    assert answer.headers["retry-after"] == "1"
    may_end.set()
    await first
    assert sent[0]["status"] == 200
    assert (await service.chat()).status_code == 200


@pytest.mark.parametrize("how", ["cancelled", "gone", "broken"])
async def test_a_request_that_ends_badly_gives_its_place_back(how: str, tmp_path: Path):
    service = Service(tmp_path, max_concurrent=1)
    is_reading = asyncio.Event()
    sent: list[Message] = []

    async def receive() -> Message:
        is_reading.set()
        if how == "gone":
            return {"type": "http.disconnect"}
        if how == "broken":
            raise ConnectionResetError
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    task = asyncio.create_task(service.app(scope_of(service), receive, send))
    await is_reading.wait()
    if how == "cancelled":
        task.cancel()
    [end] = await asyncio.gather(task, return_exceptions=True)
    assert type(end) is {"cancelled": asyncio.CancelledError, "gone": type(None), "broken": ConnectionResetError}[how]
    assert sent == []
    assert (await service.chat()).status_code == 200


async def test_a_stream_is_not_held_back_and_the_client_who_leaves_is_seen_inside(tmp_path: Path):
    service = Service(tmp_path, tokens_per_min=1000)
    got: asyncio.Queue[bytes] = asyncio.Queue()
    has_left, seen = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"{}"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: 1", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        seen.set()

    messages = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

    async def receive() -> Message:
        if message := next(messages, None):
            return message
        await has_left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        await got.put(message.get("body", b""))

    access = Access(Measure(app, AccessSpec()), AccessSpec(), service.keys)
    task = asyncio.create_task(access(scope_of(service), receive, send))
    assert [await got.get(), await got.get()] == [b"", b"data: 1"]  # while the answer is under way
    has_left.set()
    await task
    assert seen.is_set()


class FromPack:
    """Stands where the negotiation does: MessagePack to JSON and back."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = msgspec.json.encode(msgspec.msgpack.decode((await receive())["body"]))
        others = [pair for pair in scope["headers"] if pair[0] != b"content-type"]
        scope = {**scope, "headers": [*others, (b"content-type", b"application/json")]}
        start: Message = {}

        async def pack(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            body = msgspec.msgpack.encode(msgspec.json.decode(message["body"]))
            await send({**start, "headers": [(b"content-type", b"application/x-msgpack")]})
            await send({"type": "http.response.body", "body": body})

        await self.app(with_length(scope, len(raw)), replay(raw, receive), pack)


async def test_other_formats_have_the_same_limits_and_the_same_turn(tmp_path: Path):
    service = Service(tmp_path, priority=Priority.batch, tokens_per_min=1000)

    async def chat(request: Request) -> JSONResponse:
        return JSONResponse({"got": await request.json(), "usage": {"total_tokens": 30}})

    spec, kind = AccessSpec(max_tokens=500), "application/x-msgpack"
    inner = Measure(Starlette(routes=[Route(CHAT, chat, methods=["POST"])]), spec)
    client = service.client_of(Access(FromPack(inner), spec, service.keys, [kind], service.clock))

    async def post(body: Any) -> tuple[int, Any, str | None]:
        answer = await client.post(CHAT, content=msgspec.msgpack.encode(body), headers={"content-type": kind})
        left = answer.headers.get("x-ratelimit-remaining-tokens")
        return answer.status_code, msgspec.msgpack.decode(answer.content), left

    status, answer, left = await post({"priority": -1, "max_tokens": 500})
    assert (status, answer["got"]["priority"]) == (200, 100)
    assert 450 < int(left or 0) < 500
    assert (await post({"max_tokens": 501}))[1]["error"]["code"] == "max_tokens_too_large"
    assert (await post({"max_tokens": 500}))[0] == 200
    assert (await post({"max_tokens": 500}))[0] == 200
    assert (await post({"max_tokens": 500, "n": 2}))[1]["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("kind", ["lifespan", "another"])
async def test_what_is_no_request_passes(kind: str, tmp_path: Path):
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    service = Service(tmp_path)
    await Access(app, AccessSpec(), service.keys)({"type": kind}, None, None)  # type: ignore[arg-type]
    assert seen == [kind]
