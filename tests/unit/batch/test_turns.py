"""Units that share one stream of an engine: each gets its own, whoever ends how."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

import pytest

from conf.schema.sampling import SamplingSpec
from pipelines.batch.gathering import Gathering
from pipelines.batch.order import Feed, Ordering, Waiting, Window
from pipelines.batch.turns import Turns
from serve.engine.errors import EngineDead
from serve.engine.in_flight import InFlight
from serve.engine.protocol import Completion, EngineStats, Outcome, Request, Sample

ORDERING = Ordering(by_prefix=True, longest_first=True, num_seqs=2, units=9, next_units=1, rows=1 << 30, spare_rows=0)


class Gate:
    """An engine that answers each request when the test says so."""

    def __init__(self, slots: int) -> None:
        self.stats = EngineStats()
        self._slots = InFlight(slots, self.stats)
        self.asked: list[str] = []
        self.answers: dict[str, asyncio.Future[Outcome]] = {}

    def generate(self, requests: Iterable[Request], exclusive: bool = False) -> AsyncIterator[Outcome]:
        return self._slots.stream(requests, self._answer, exclusive)

    async def _answer(self, request: Request) -> Outcome:
        self.asked.append(request.id)
        return await self.answers.setdefault(request.id, asyncio.get_running_loop().create_future())

    async def end(self, *names: str) -> None:
        for name in names:
            sample = Sample(text=name, finish_reason="stop", completion_tokens=1)
            self.answers[name].set_result(Completion(request_id=name, samples=(sample,), prompt_tokens=1))
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Unit:
    """One that asks; its requests are letters, in the order of the alphabet."""

    def __init__(self, turns: Turns, names: str, is_alone: bool = False, on_tick: Callable[[], None] | None = None):
        self.began: list[str] = []
        self.got: list[str] = []
        waiting = [Waiting(id=name, tokens=name.encode() * 4, sampling=SamplingSpec()) for name in names]
        feed = Feed(waiting, lambda one: self.began.append(one.id))
        keep = on_tick or (lambda: None)
        self.task = asyncio.ensure_future(
            turns.ask(feed, is_alone, lambda outcome: self.got.append(outcome.request_id), keep)
        )


def turns_of(gate: Gate) -> Turns:
    return Turns(gate, Window(ORDERING), Gathering(9, None), lambda: None)  # type: ignore[arg-type]


async def test_rows_of_two_units_go_in_one_order_and_each_gets_its_own() -> None:
    gate = Gate(2)
    turns = turns_of(gate)
    one = Unit(turns, "eca")
    await settle()
    assert gate.asked == ["a", "c"]
    other = Unit(turns, "bdf")
    await settle()
    await gate.end("a")
    await gate.end("c")
    assert gate.asked == ["a", "c", "e", "f"]  # e had come to the door: b and d lie behind it
    await gate.end("e")
    assert one.task.done()
    assert one.got == ["a", "c", "e"]
    assert not other.task.done()
    await gate.end("f")
    await gate.end("b", "d")
    await asyncio.gather(one.task, other.task)
    assert (other.began, other.got) == (["f", "b", "d"], ["f", "b", "d"])


async def test_a_request_begins_when_the_engine_asks_for_it() -> None:
    gate = Gate(1)
    unit = Unit(turns_of(gate), "abcd")
    await settle()
    assert unit.began == ["a", "b"]  # one is at the door
    for name in "abcd":
        await gate.end(name)
    await unit.task


async def test_a_unit_that_comes_when_the_window_is_empty_starts_anew() -> None:
    gate = Gate(4)
    turns = turns_of(gate)
    one = Unit(turns, "a")
    await settle()
    other = Unit(turns, "b")
    await settle()
    assert gate.asked == ["a", "b"]
    await gate.end("b")
    assert (other.task.done(), one.task.done()) == (True, False)
    await gate.end("a")
    await asyncio.gather(one.task, other.task)


async def test_suspects_are_alone_and_in_their_own_order() -> None:
    gate = Gate(2)
    turns = turns_of(gate)
    clean = Unit(turns, "cd")
    await settle()
    alone = Unit(turns, "ba", is_alone=True)
    await settle()
    late = Unit(turns, "e")
    await settle()
    assert (gate.asked, alone.began) == (["c", "d"], [])
    await gate.end("c", "d")
    assert gate.asked == ["c", "d", "b", "a"]
    await gate.end("b", "a")
    assert gate.asked[4:] == ["e"]
    await gate.end("e")
    await asyncio.gather(clean.task, alone.task, late.task)
    assert alone.got == ["b", "a"]


@pytest.mark.parametrize("is_alone", [False, True])
async def test_a_stop_ends_all_with_what_they_have(is_alone: bool) -> None:
    gate = Gate(2)
    turns = turns_of(gate)
    units = [Unit(turns, "abc", is_alone), Unit(turns, "def", is_alone)]
    await settle()
    await gate.end("a")
    turns.stop()
    await asyncio.wait_for(asyncio.gather(*(unit.task for unit in units)), 5)
    assert [unit.got for unit in units] == [["a"], []]
    assert gate.stats.running == 0
    after = Unit(turns, "g")
    await after.task
    assert after.began == []


@pytest.mark.parametrize("is_alone", [False, True])
async def test_a_dead_engine_is_dead_for_all(is_alone: bool) -> None:
    gate = Gate(2)
    turns = turns_of(gate)
    units = [Unit(turns, "abc", is_alone), Unit(turns, "d")]
    await settle()
    gate.answers["a"].set_exception(EngineDead("gone"))
    results = await asyncio.wait_for(asyncio.gather(*(unit.task for unit in units), return_exceptions=True), 5)
    assert [type(result) for result in results] == [EngineDead, EngineDead]


async def test_a_log_that_cannot_be_written_ends_the_asking_and_the_next_can_ask() -> None:
    def full() -> None:
        raise OSError("disk full")

    gate = Gate(2)
    turns = turns_of(gate)
    units = [Unit(turns, "ab", on_tick=full), Unit(turns, "c")]
    await settle()
    await gate.end("a")
    results = await asyncio.wait_for(asyncio.gather(*(unit.task for unit in units), return_exceptions=True), 5)
    assert [str(result) for result in results] == ["disk full", "disk full"]
    await settle()
    assert gate.stats.running == 0
    after = Unit(turns, "xy")
    await settle()
    await gate.end("x", "y")
    await after.task
    assert after.got == ["x", "y"]
