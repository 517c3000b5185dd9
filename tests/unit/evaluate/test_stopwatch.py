"""Speed of an engine in a time of its own: a step takes a second, a newcomer's prompt is read in its first step."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable

import pytest

from conf.schema.evaluate import SpeedSpec
from pipelines.evaluate.speed import Pace, Stopwatch
from serve.engine.protocol import Completion, EngineStats, Outcome, Request, Sample


class SteppedEngine:
    """All requests that it holds get a token in each step; a step ends when all that run wait for its end."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen: list[Request] = []
        self.most = 0
        self._left: dict[str, int] = {}
        self._ends: dict[str, asyncio.Future[None]] = {}
        self._loop: asyncio.Task[None] | None = None

    async def generate(self, requests: Iterable[Request], exclusive: bool = False) -> AsyncIterator[Outcome]:
        mine = list(requests)
        for request in mine:
            self.seen.append(request)
            self._left[request.id] = request.sampling.max_tokens
            self._ends[request.id] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self._left))
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._run())
        try:
            for request in mine:
                await self._ends[request.id]
                sample = Sample(text="", finish_reason="length", completion_tokens=request.sampling.max_tokens)
                yield Completion(request_id=request.id, samples=(sample,), prompt_tokens=len(request.token_ids))
        finally:
            for request in mine:
                self._left.pop(request.id, None)

    async def _run(self) -> None:
        while self._left:
            for _ in range(10):  # whoever was woken may ask again
                await asyncio.sleep(0)
            self.now += 1.0 + (0.5 if len(self._left) > 1 else 0.0)
            for name in list(self._left):
                self._left[name] -= 1
                if not self._left[name]:
                    del self._left[name]
                    self._ends[name].set_result(None)

    async def health(self) -> None:
        return

    def stats(self) -> EngineStats:
        return EngineStats(max_model_len=1000)

    async def close(self) -> None:
        return


async def measured(batch: int, **spec: float) -> tuple[SteppedEngine, list[Pace]]:
    engine = SteppedEngine()
    prompts = [list(range(at, at + 10)) for at in range(6)]
    chosen = SpeedSpec(**{"runs": 3, "answer_tokens": 8, "probes": 4, "limit_s": 1e9, **spec})  # type: ignore[arg-type]
    stopwatch = Stopwatch(engine, prompts, 1000, chosen, clock=lambda: engine.now)
    return engine, await stopwatch.measure(batch)


async def test_tokens_a_second_and_first_tokens_alone_and_in_a_full_batch():
    engine, (alone, full) = await measured(batch=5)
    assert (alone.batch, alone.tokens_per_s, alone.ttft_s) == (1, [1.0] * 3, [1.0] * 4)
    assert (full.batch, full.tokens_per_s) == (5, [pytest.approx(40 / 12)] * 3)
    assert full.ttft_s == [1.5] * 4
    assert engine.most == 5


async def test_no_two_requests_begin_alike_and_all_have_the_rows_lengths():
    engine, _ = await measured(batch=5)
    begins = [tuple(request.token_ids[:2]) for request in engine.seen]
    assert len(set(begins)) == len(begins)
    assert {len(request.token_ids) for request in engine.seen} == {10}
    assert all(request.sampling.ignore_eos for request in engine.seen)


async def test_a_batch_of_one_is_measured_once():
    _, paces = await measured(batch=1)
    assert [pace.batch for pace in paces] == [1]


async def test_no_run_begins_when_time_is_up():
    _, (alone, full) = await measured(batch=5, runs=100, limit_s=30)
    assert len(alone.tokens_per_s) == 4  # of 8 s each: the fifth would begin after 32
    assert len(full.tokens_per_s) == 3
    assert full.plain()["tokens_per_s"]["median"] == pytest.approx(40 / 12)


async def test_prompts_that_leave_no_room_for_an_answer_are_cut():
    engine = SteppedEngine()
    stopwatch = Stopwatch(
        engine, [list(range(40))], 20, SpeedSpec(runs=1, answer_tokens=8, probes=1), clock=lambda: engine.now
    )
    await stopwatch.measure(3)
    assert all(len(r.token_ids) + r.sampling.max_tokens <= 20 for r in engine.seen)
    assert {len(r.token_ids) for r in engine.seen} == {12}


def test_a_pace_says_its_median_and_spread():
    pace = Pace(batch=2, tokens_per_s=[3.0, 1.0, 2.0], ttft_s=[0.4, 0.1, 0.2])
    plain = pace.plain()
    assert plain["tokens_per_s"] == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert plain["ttft_p50_s"] == 0.2
    assert Pace(batch=2, tokens_per_s=[1.0], ttft_s=[]).plain()["ttft_p50_s"] is None
    assert list(itertools.chain(plain["runs"]["tokens_per_s"])) == [3.0, 1.0, 2.0]
