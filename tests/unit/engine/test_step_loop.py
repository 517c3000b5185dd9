from __future__ import annotations

import asyncio
import threading

import pytest

from conf.schema.sampling import SamplingSpec
from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.protocol import Completion, Outcome, Request, Sample
from serve.engine.step_loop import StepLoop


class CountDown:
    """A stepper whose requests end after as many steps as they may have tokens."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.threads: set[int] = {threading.get_ident()}
        self.is_closed = False
        self.death: Exception | None = None

    def add(self, request: Request) -> None:
        if not request.token_ids:
            raise RequestRejected("empty_prompt", "no tokens")
        self.left[request.id] = request.sampling.max_tokens

    def abort(self, request: Request) -> None:
        self.left.pop(request.id, None)

    def step(self) -> list[Outcome]:
        self.threads.add(threading.get_ident())
        if self.death:
            raise self.death
        ended = [name for name, left in self.left.items() if left == 1]
        self.left = {name: left - 1 for name, left in self.left.items() if left > 1}
        sample = Sample(text="", finish_reason="stop", completion_tokens=1)
        return [Completion(request_id=name, samples=(sample,), prompt_tokens=1) for name in ended]

    def has_work(self) -> bool:
        return bool(self.left)

    def close(self) -> None:
        self.is_closed = True


def request(name: str, steps: int) -> Request:
    token_ids = [0] if steps else []
    return Request(id=name, token_ids=token_ids, sampling=SamplingSpec(max_tokens=max(1, steps)))


class Started:
    """A loop with its stepper, closed at the end."""

    def __init__(self) -> None:
        self.stepper: CountDown | None = None

    def _make(self) -> CountDown:
        self.stepper = CountDown()
        return self.stepper

    async def __aenter__(self) -> tuple[StepLoop, CountDown]:
        self.loop = StepLoop(self._make)
        await self.loop.start()
        assert self.stepper is not None
        return self.loop, self.stepper

    async def __aexit__(self, *_: object) -> None:
        await self.loop.close()


async def test_requests_end_in_their_own_time_and_one_thread_does_it_all() -> None:
    async with Started() as (loop, stepper):
        order: list[str] = []

        async def ask(name: str, steps: int) -> None:
            outcome = await loop.answer(request(name, steps))
            order.append(outcome.request_id)

        await asyncio.gather(ask("slow", 2000), ask("fast", 1))
        assert order == ["fast", "slow"]
        assert len(stepper.threads) == 1
        assert threading.get_ident() not in stepper.threads


async def test_a_rejection_reaches_its_caller_and_no_other() -> None:
    async with Started() as (loop, _):
        results = await asyncio.gather(
            loop.answer(request("a", 3)), loop.answer(request("b", 0)), return_exceptions=True
        )
        assert isinstance(results[0], Completion)
        assert isinstance(results[1], RequestRejected)


async def test_a_cancelled_request_is_aborted() -> None:
    async with Started() as (loop, stepper):
        task = asyncio.ensure_future(loop.answer(request("a", 10**9)))
        while not stepper.left:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (await loop.answer(request("b", 1))).request_id == "b"
        assert stepper.left == {}


async def test_a_step_that_raises_kills_the_loop_and_tells_everyone() -> None:
    async with Started() as (loop, stepper):
        tasks = [asyncio.ensure_future(loop.answer(request(name, 10**9))) for name in "ab"]
        while len(stepper.left) < 2:
            await asyncio.sleep(0.001)
        stepper.death = MemoryError("out of memory")
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, EngineDead)
        with pytest.raises(EngineDead, match="out of memory"):
            await loop.answer(request("c", 1))
        await loop.close()  # the thread tells its callers first
        assert stepper.is_closed


async def test_a_stepper_that_cannot_be_built_fails_the_start() -> None:
    def fail() -> CountDown:
        raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"):
        await StepLoop(fail).start()


async def test_a_closed_loop_answers_nothing() -> None:
    async with Started() as (loop, stepper):
        await loop.close()
        assert stepper.is_closed
        with pytest.raises(EngineDead):
            await loop.answer(request("a", 1))
