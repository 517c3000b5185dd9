from __future__ import annotations

import asyncio

import pytest

from conf.schema.sampling import SamplingSpec
from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.in_flight import InFlight
from serve.engine.protocol import Completion, EngineStats, Outcome, Rejection, Request


def request(name: str) -> Request:
    return Request(id=name, token_ids=[1, 2], sampling=SamplingSpec())


def completion(name: str) -> Completion:
    return Completion(request_id=name, text=name, finish_reason="stop", prompt_tokens=2, completion_tokens=1)


class Gate:
    """Answers each request when the test says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.answers: dict[str, asyncio.Future[Outcome]] = {}

    async def answer(self, request: Request) -> Outcome:
        self.asked.append(request.id)
        future = self.answers.setdefault(request.id, asyncio.get_running_loop().create_future())
        try:
            return await future
        except asyncio.CancelledError:
            self.cancelled.append(request.id)
            raise

    def end(self, name: str) -> None:
        self.answers[name].set_result(completion(name))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_no_more_than_the_limit_is_asked_and_a_freed_slot_takes_the_next() -> None:
    gate, stats = Gate(), EngineStats()
    stream = InFlight(2, stats).stream([request(name) for name in "abcd"], gate.answer)
    first = asyncio.ensure_future(anext(stream))
    await settle()
    assert gate.asked == ["a", "b"]
    assert stats.running == 2
    gate.end("b")
    assert (await first).request_id == "b"  # b did not wait for a
    await settle()
    assert gate.asked == ["a", "b", "c"]
    await stream.aclose()


async def test_two_streams_share_the_slots() -> None:
    gate, stats = Gate(), EngineStats()
    slots = InFlight(2, stats)
    streams = [slots.stream([request(f"{s}{i}") for i in range(3)], gate.answer) for s in "xy"]
    tasks = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await settle()
    assert len(gate.asked) == 2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for stream in streams:
        await stream.aclose()
    assert stats.running == 0


async def test_a_rejected_request_is_an_outcome_and_the_others_go_on() -> None:
    async def answer(request: Request) -> Outcome:
        if request.id == "bad":
            raise RequestRejected("prompt_too_long", "the prompt has 9 tokens, the context 8")
        return completion(request.id)

    stats = EngineStats()
    outcomes = [o async for o in InFlight(4, stats).stream([request("a"), request("bad"), request("c")], answer)]
    rejection = next(o for o in outcomes if isinstance(o, Rejection))
    assert (rejection.request_id, rejection.error) == ("bad", "prompt_too_long")
    assert (stats.completions, stats.rejections, stats.prompt_tokens, stats.completion_tokens) == (2, 1, 4, 2)


async def test_a_dead_engine_ends_the_stream_and_cancels_the_rest() -> None:
    gate, stats = Gate(), EngineStats()

    async def answer(request: Request) -> Outcome:
        if request.id == "last":
            raise EngineDead("gone")
        return await gate.answer(request)

    stream = InFlight(8, stats).stream([request("a"), request("b"), request("last")], answer)
    with pytest.raises(EngineDead, match="gone"):
        await anext(stream)
    assert sorted(gate.cancelled) == ["a", "b"]
    assert stats.running == 0


async def test_closing_a_stream_cancels_what_runs_and_asks_no_more() -> None:
    gate, stats = Gate(), EngineStats()
    stream = InFlight(2, stats).stream([request(name) for name in "abcd"], gate.answer)
    first = asyncio.ensure_future(anext(stream))
    await settle()
    gate.end("a")
    await first
    await stream.aclose()
    assert stats.running == 0
    assert "d" not in gate.asked


async def test_an_error_of_the_requests_themselves_reaches_the_caller() -> None:
    def requests():
        yield request("a")
        raise LookupError("no more")

    gate = Gate()
    with pytest.raises(LookupError, match="no more"):
        await anext(InFlight(2, EngineStats()).stream(requests(), gate.answer))
