from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_service import CHAT

from conf.schema.cache import CacheKind, CacheSpec
from serve.middleware.answer import ASGIApp, Message, Receive, Refused, Scope, Send, answer
from serve.middleware.cache import Cache
from serve.middleware.deadline import TIMEOUT, Deadline, asked_timeout_s
from serve.middleware.leaving import Leaving

LONG_S = 100.0
EVENT = b"data: {}\n\n"


class Engine:
    """An app that answers when it is told to, and, as vLLM does, stops for a disconnect but not for a cancellation."""

    def __init__(self, first: list[Message] | None = None) -> None:
        self.first = first or []
        self.may_end, self.is_begun = asyncio.Event(), asyncio.Event()
        self.num_running = self.num_aborted = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        for message in self.first:
            await send(message)
        work, gone = asyncio.create_task(self.work()), asyncio.create_task(receive())
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            assert gone.result()["type"] == "http.disconnect"
            work.cancel()
            self.num_aborted += 1
            self.num_running -= 1
            await answer(send, 200, b"null")  # as FastAPI does where a handler returns nothing
            return
        gone.cancel()
        await answer(send, 200, b"done") if not self.first else await send(body(EVENT, False))

    async def work(self) -> None:
        self.num_running += 1
        self.is_begun.set()
        await self.may_end.wait()
        self.num_running -= 1


def body(data: bytes, is_more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": is_more}


def start(kind: bytes = b"text/event-stream; charset=utf-8") -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}


async def call(app: ASGIApp, timeout: bytes | None = None, raw: bytes = b"{}") -> list[Message]:
    """The messages of an answer to a client that stays."""
    sent: list[Message] = []
    asked = iter([{"type": "http.request", "body": raw, "more_body": False}])

    async def receive() -> Message:
        if message := next(asked, None):
            return message
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [] if timeout is None else [(TIMEOUT, timeout)]
    await app({"type": "http", "method": "POST", "path": CHAT, "headers": headers, "manta": {}}, receive, send)
    return sent


def error(message: Message) -> dict[str, str]:
    return json.loads(message["body"].strip().removeprefix(b"data: "))["error"]


@pytest.mark.parametrize("timeout, limit_s", [(b"0.01", LONG_S), (None, 0.01), (b"90", 0.01)])
async def test_before_the_first_byte_it_is_504_and_the_engine_is_free(timeout: bytes | None, limit_s: float):
    engine = Engine()
    first, second = await call(Deadline(engine, limit_s), timeout)
    assert first["status"] == 504
    assert error(second)["code"] == "deadline_exceeded"
    assert (b"x-should-retry", b"false") in first["headers"]
    assert (engine.num_running, engine.num_aborted) == (0, 1)


@pytest.mark.parametrize("last", [EVENT, b'data: {"half'])
async def test_in_a_stream_it_is_an_event_of_its_own_and_the_end(last: bytes):
    engine = Engine([start(), body(EVENT), body(last)])
    messages = await call(Deadline(engine, LONG_S), b"0.01")
    text = b"".join(message.get("body", b"") for message in messages)
    event = text.split(b"\n\n")[-2]
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"
    assert text.startswith(EVENT + last)
    assert not messages[-1].get("more_body", False)
    assert [message["type"] for message in messages].count("http.response.start") == 1
    assert engine.num_running == 0


async def test_a_body_that_is_under_way_is_broken_off():
    engine = Engine([start(b"application/json"), body(b"{")])
    with pytest.raises(TimeoutError):
        await call(Deadline(engine, LONG_S), b"0.01")
    assert engine.num_running == 0


@pytest.mark.parametrize("first", [[], [start(), body(EVENT)]])
async def test_what_comes_in_time_is_passed_on_as_it_is(first: list[Message]):
    engine = Engine(first)
    engine.may_end.set()
    messages = await call(Deadline(engine, LONG_S), b"50")
    assert messages[: len(first)] == first
    assert not messages[-1].get("more_body", False)


async def test_a_call_that_is_cancelled_lets_the_engine_hear_a_disconnect():
    engine = Engine()
    task = asyncio.create_task(call(Deadline(engine, LONG_S)))
    await engine.is_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (engine.num_running, engine.num_aborted) == (0, 1)


async def test_an_app_that_hears_nothing_is_cancelled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serve.middleware.deadline.GRACE_S", 0.01)
    ended = asyncio.Event()

    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    assert (await call(Deadline(deaf, 0.01)))[0]["status"] == 504
    await asyncio.wait_for(ended.wait(), 5)


async def test_one_deadline_of_two_equal_requests_leaves_the_other_its_answer():
    engine = Engine()
    app = Deadline(Cache(engine, CacheSpec(kind=CacheKind.memory), "f"), LONG_S)
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0}).encode()
    patient = asyncio.create_task(call(app, raw=raw))
    await engine.is_begun.wait()
    assert (await call(app, b"0.01", raw))[0]["status"] == 504
    assert (engine.num_running, engine.num_aborted) == (1, 0)
    engine.may_end.set()
    assert (await patient)[0]["status"] == 200


async def test_an_exception_of_the_app_goes_through():
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await call(Deadline(broken, LONG_S))


async def test_a_real_client_gets_it_and_what_is_no_request_passes():
    client = httpx.AsyncClient(transport=httpx.ASGITransport(Deadline(Engine(), LONG_S)), base_url="http://service")
    got = await client.post(CHAT, headers={"x-request-timeout": "0.01"})
    assert (got.status_code, set(got.json()["error"])) == (504, {"message", "type", "param", "code"})
    got = await client.post(CHAT, headers={"x-request-timeout": "tomorrow"})
    assert (got.status_code, got.json()["error"]["code"]) == (400, "invalid_header")
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await Deadline(app, 1)({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert seen == ["lifespan"]


@given(st.floats(1e-6, 1e8).map(lambda seconds: f"{seconds:.6f}"))
def test_seconds_are_read_as_they_are(text: str):
    assert asked_timeout_s([(TIMEOUT, text.encode())]) == float(text)


@given(
    st.one_of(st.binary(max_size=20), st.sampled_from([b"inf", b"nan", b"1e5", b"-1", b"0", b"0.0", b"1" * 50, b"1_0"]))
)
def test_whatever_is_sent_is_a_positive_number_or_refused(value: bytes):
    with suppress(Refused):
        seconds = asked_timeout_s([(TIMEOUT, value)])
        assert seconds is not None
        assert 0 < seconds < 1e9


def test_two_timeouts_are_refused():
    with pytest.raises(Refused):
        asked_timeout_s([(TIMEOUT, b"1"), (TIMEOUT, b"1")])


async def test_a_replica_that_leaves_ends_a_stream_with_an_event_once_its_time_is_over():
    engine = Engine([start(), body(EVENT)])
    leaving = Leaving(Deadline(engine, LONG_S), drain_s=0.05)
    task = asyncio.create_task(call(leaving))
    await engine.is_begun.wait()
    leaving.set_leaving(True)
    sent = await task
    assert json.loads(sent[-1]["body"].removeprefix(b"data: "))["error"] == {
        "message": "The service had to stop before the answer was complete.",
        "type": "service_unavailable",
        "param": None,
        "code": "replica_leaving",
    }
    assert not sent[-1].get("more_body", False)
    assert (engine.num_running, engine.num_aborted) == (0, 1)


async def test_a_replica_that_leaves_lets_another_one_answer_what_it_has_not_begun():
    engine = Engine()
    leaving = Leaving(Deadline(engine, LONG_S), drain_s=0.05)
    task = asyncio.create_task(call(leaving))
    await engine.is_begun.wait()
    leaving.set_leaving(True)
    sent = await task
    assert sent[0]["status"] == 503  # for which HAProxy asks another replica
    assert (b"retry-after", b"1") in sent[0]["headers"]
    assert engine.num_aborted == 1
    assert (await call(leaving))[0]["status"] == 503  # what comes late


async def test_a_replica_that_leaves_lets_end_what_does_in_time():
    engine = Engine()
    leaving = Leaving(Deadline(engine, LONG_S), drain_s=LONG_S)
    task = asyncio.create_task(call(leaving))
    await engine.is_begun.wait()
    leaving.set_leaving(True)
    engine.may_end.set()
    assert (await task)[0]["status"] == 200


@pytest.mark.parametrize("drain_s", [0.0, LONG_S])
async def test_a_replica_that_was_lost_from_sight_goes_on(drain_s: float):
    engine = Engine()
    engine.may_end.set()
    leaving = Leaving(Deadline(engine, LONG_S), drain_s)
    leaving.set_leaving(True)
    await asyncio.sleep(0.01)
    leaving.set_leaving(False)
    assert (await call(leaving))[0]["status"] == 200


@pytest.mark.parametrize("first", [[], [start(), body(EVENT)]])
async def test_what_is_said_to_a_client_that_has_left_is_no_answer(first: list[Message]):
    engine, has_left, sent = Engine(first), asyncio.Event(), []
    asked: list[Message] = [{"type": "http.request", "body": b"{}", "more_body": False}]

    async def receive() -> Message:
        if asked:
            return asked.pop()
        await has_left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "manta": {}}
    running = asyncio.create_task(Deadline(engine, LONG_S)(scope, receive, send))  # type: ignore[arg-type]
    await engine.is_begun.wait()
    has_left.set()
    await running
    assert (engine.num_aborted, engine.num_running) == (1, 0)
    assert sent == first
