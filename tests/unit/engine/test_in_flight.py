from __future__ import annotations

import asyncio

import pytest

from conf.schema.sampling import SamplingSpec
from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.in_flight import InFlight
from serve.engine.protocol import Completion, EngineStats, Outcome, Rejection, Request, Sample


def request(name: str) -> Request:
    return Request(id=name, token_ids=[1, 2], sampling=SamplingSpec())


def completion(name: str) -> Completion:
    sample = Sample(text=name, finish_reason="stop", completion_tokens=1)
    return Completion(request_id=name, samples=(sample,), prompt_tokens=2)


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


async def test_a_stream_that_is_closed_before_its_tasks_began_leaks_no_slot() -> None:
    gate, stats = Gate(), EngineStats()
    slots = InFlight(2, stats)
    stream = slots.stream([request("a"), request("b")], gate.answer)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    first.cancel()  # comes when the feeder has made its tasks, and none has run
    await asyncio.gather(first, return_exceptions=True)
    await stream.aclose()
    rest = asyncio.ensure_future(collect(slots, "cd", gate))
    await settle()
    assert gate.asked[-2:] == ["c", "d"]
    for name in "cd":
        gate.end(name)
    assert await rest == ["c", "d"]


async def collect(slots: InFlight, names: str, gate: Gate, exclusive: bool = False) -> list[str]:
    requests = [request(name) for name in names]
    return [outcome.request_id async for outcome in slots.stream(requests, gate.answer, exclusive)]


async def test_an_exclusive_stream_waits_until_it_is_alone_and_holds_others_back() -> None:
    gate = Gate()
    slots = InFlight(2, EngineStats())
    before = asyncio.ensure_future(collect(slots, "abc", gate))
    await settle()
    alone = asyncio.ensure_future(collect(slots, "xyz", gate, exclusive=True))
    await settle()
    after = asyncio.ensure_future(collect(slots, "d", gate))
    await settle()
    assert gate.asked == ["a", "b"]
    gate.end("a")
    await settle()
    assert gate.asked == ["a", "b", "c"]  # it had come to the door first
    gate.end("b")
    await settle()
    assert gate.asked == ["a", "b", "c"]  # a slot is free, and kept for the exclusive stream
    gate.end("c")
    await settle()
    assert gate.asked[3:] == ["x", "y"]  # no more than the limit at a time
    gate.end("x")
    await settle()
    assert gate.asked[3:] == ["x", "y", "z"]
    gate.end("y")
    await settle()
    assert gate.asked[3:] == ["x", "y", "z"]  # d waits for the last of them
    gate.end("z")
    await settle()
    gate.end("d")
    assert await before == ["a", "b", "c"]
    assert await alone == ["x", "y", "z"]
    assert await after == ["d"]


async def test_exclusive_streams_take_turns() -> None:
    gate = Gate()
    slots = InFlight(3, EngineStats())
    tasks = [asyncio.ensure_future(collect(slots, names, gate, exclusive=True)) for names in ("ab", "cd")]
    await settle()
    assert gate.asked == ["a", "b"]
    gate.end("a")
    gate.end("b")
    await settle()
    assert gate.asked == ["a", "b", "c", "d"]
    gate.end("c")
    gate.end("d")
    assert await asyncio.gather(*tasks) == [["a", "b"], ["c", "d"]]


async def test_an_exclusive_stream_that_is_closed_while_it_waits_gives_its_slots_back() -> None:
    gate = Gate()
    slots = InFlight(2, EngineStats())
    held = asyncio.ensure_future(collect(slots, "a", gate))
    await settle()
    alone = asyncio.ensure_future(collect(slots, "x", gate, exclusive=True))
    await settle()  # it holds one of the two
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)
    others = asyncio.ensure_future(collect(slots, "b", gate))
    await settle()
    assert gate.asked == ["a", "b"]
    gate.end("a")
    gate.end("b")
    assert [await held, await others] == [["a"], ["b"]]


@pytest.mark.parametrize("ending", ["closed", "failed"])
async def test_an_exclusive_stream_that_ends_early_gives_all_slots_back(ending: str) -> None:
    gate = Gate()
    slots = InFlight(2, EngineStats())
    alone = asyncio.ensure_future(collect(slots, "xyz", gate, exclusive=True))
    await settle()
    if ending == "closed":
        alone.cancel()
    else:
        gate.answers["x"].set_exception(RuntimeError("gone"))
    (result,) = await asyncio.gather(alone, return_exceptions=True)
    assert isinstance(result, asyncio.CancelledError if ending == "closed" else RuntimeError)
    assert "y" in gate.cancelled
    after = asyncio.ensure_future(collect(slots, "ab", gate))
    await settle()
    assert gate.asked[-2:] == ["a", "b"]
    gate.end("a")
    gate.end("b")
    assert await after == ["a", "b"]


async def test_an_exclusive_stream_frees_nothing_before_its_tasks_have_ended() -> None:
    gate = Gate()
    slots = InFlight(1, EngineStats())
    aborted = asyncio.Event()

    async def slow_to_abort(request: Request) -> Outcome:
        try:
            return await gate.answer(request)
        finally:
            await aborted.wait()

    stream = slots.stream([request("x")], slow_to_abort, exclusive=True)
    first = asyncio.ensure_future(anext(stream))
    await settle()
    first.cancel()
    after = asyncio.ensure_future(collect(slots, "a", gate))
    await settle()
    assert gate.cancelled == ["x"]
    assert gate.asked == ["x"]
    aborted.set()
    await settle()
    assert gate.asked == ["x", "a"]
    gate.end("a")
    assert await after == ["a"]
    await asyncio.gather(first, return_exceptions=True)
    await stream.aclose()


@pytest.mark.parametrize("is_alone", [True, False])
async def test_nothing_begins_in_an_engine_that_has_died_of_another(is_alone: bool) -> None:
    gate, begun = Gate(), []

    def innocent():
        for name in ("b", "c"):
            begun.append(name)
            yield request(name)

    slots = InFlight(2, EngineStats())
    guilty = asyncio.ensure_future(anext(slots.stream([request("a")], gate.answer, exclusive=True)))
    await settle()
    waiting = asyncio.ensure_future(anext(slots.stream(innocent(), gate.answer, exclusive=is_alone)))
    await settle()
    gate.answers["a"].set_exception(EngineDead("a killed it"))
    for stream in (guilty, waiting):
        with pytest.raises(EngineDead, match="a killed it"):
            await asyncio.wait_for(stream, timeout=5)
    assert begun == ([] if is_alone else ["b"])  # one waits for a slot, as it may for any
    assert gate.asked == ["a"]
