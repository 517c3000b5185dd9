from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conf.schema.autoscale import AutoscaleSpec
from serve.engine.speed import Waiting
from serve.middleware.answer import Message, Receive, Scope, Send
from serve.middleware.load import Load
from serve.middleware.usage import Usage

SPEC = AutoscaleSpec(short_window_s=10.0, long_window_s=20.0)


class Engine:
    """Streams an answer of four tokens, a second for the first and half a second for each other one."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.is_held = asyncio.Event()
        self.may_end = asyncio.Event()

    def clock(self) -> float:
        return self.now_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.is_held.set()
        await self.may_end.wait()
        if scope["path"] == "/v1/broken":
            raise ValueError("broken")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.now_s += 1.0
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        self.now_s += 1.5
        scope["manta"]["usage"] = Usage(prompt_tokens=50, completion_tokens=4)
        await send({"type": "http.response.body", "body": b"y"})


def request(path: str = "/v1/completions", method: str = "POST", size: int = 100) -> dict[str, Any]:
    headers = [(b"content-length", str(size).encode())]
    return {"type": "http", "method": method, "path": path, "headers": headers, "manta": {}}


async def receive() -> Message:
    return {"type": "http.request", "body": b""}


async def send(message: Message) -> None:
    pass


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def load(engine: Engine) -> Load:
    return Load(engine, SPEC, lambda: Waiting(7, 700), engine.clock)


async def test_a_request_is_load_from_its_arrival_to_its_end(engine: Engine, load: Load):
    task = asyncio.create_task(load(request(), receive, send))
    await engine.is_held.wait()
    held = load.report(3.0, 0.0, 0.0)
    assert (held.arrived, held.in_flight, held.prompt_tokens, held.answers) == (1, 1, 25.0, 0)
    assert (held.waiting, held.waiting_tokens) == (1, 700), "no more wait than are there"
    assert (held.ttft_s, held.tpot_s, held.start_s) == (-1.0, -1.0, 3.0)
    engine.may_end.set()
    await task
    ended = load.report(3.0, 0.0, 0.0)
    assert (ended.arrived, ended.in_flight, ended.prompt_tokens) == (1, 0, 50.0), "as the engine counted it"
    assert (ended.answers, ended.answer_tokens) == (1, 4)
    assert (ended.ttft_s, ended.tpot_s) == (1.0, 0.5)
    engine.now_s += 21.0
    assert load.report(3.0, 0.0, 0.0).ttft_s == -1.0, "the window has forgotten it"


async def test_a_body_s_bytes_are_tokens_as_they_were_in_those_before(engine: Engine, load: Load):
    engine.may_end.set()
    for _ in range(200):
        await load(request(), receive, send)
    before = load.report(0.0, 0.0, 0.0).prompt_tokens
    engine.may_end.clear()
    engine.is_held.clear()
    task = asyncio.create_task(load(request(size=1000), receive, send))
    await engine.is_held.wait()
    assert load.report(0.0, 0.0, 0.0).prompt_tokens - before == pytest.approx(500, rel=0.01)
    engine.may_end.set()
    await task


async def test_what_fails_is_no_longer_in_flight(engine: Engine, load: Load):
    engine.may_end.set()
    with pytest.raises(ValueError, match="broken"):
        await load(request("/v1/broken"), receive, send)
    report = load.report(0.0, 0.0, 0.0)
    assert (report.arrived, report.in_flight, report.answers) == (1, 0, 0)


@pytest.mark.parametrize("path, method", [("/v1/models", "GET"), ("/tokenize", "POST")])
async def test_what_needs_no_engine_is_no_load(engine: Engine, load: Load, path: str, method: str):
    engine.may_end.set()
    await load(request(path, method), receive, send)
    assert load.report(0.0, 0.0, 0.0).arrived == 0
