"""Offline work beside interactive requests: a job's engine and its clients in one loop, each timed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

from conf.schema.engine import EngineKind, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.service import AdmissionRule, AdmissionSpec, ServiceSpec
from conf.schema.task import Task
from serve.engine.protocol import Completion, Outcome, Request
from serve.engine.service.engine import ServiceEngine

ROWS, ROW_TOKENS = 24, 48
"""In flight at most, and of each answer."""
PERIOD_S, ASKED_TOKENS = 0.25, 16
"""From one interactive request to the next, and of each answer."""
_drawn = random.Random(0)


def prompt(tokens: int) -> list[int]:
    """Token ids that no two prompts share."""
    return [_drawn.randint(5, 400) for _ in range(tokens)]


@dataclass(kw_only=True)
class Job:
    """Rows without end, until it is told to finish."""

    engine: ServiceEngine
    row_tokens: int = ROW_TOKENS
    sent: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    is_finishing: bool = False
    running: asyncio.Task[None] | None = None

    @classmethod
    async def begin(cls, url: str, rule: AdmissionRule, priority: int, row_tokens: int = ROW_TOKENS) -> Job:
        service = ServiceSpec(url=url, priority=priority, admission=AdmissionSpec(rule=rule))
        spec = EngineSpec(kind=EngineKind.service, service=service, max_in_flight=ROWS)
        engine = ServiceEngine(ModelSpec(path=".", name="demo"), spec, 1 << 20, Task.generate, None)
        job = cls(engine=engine, row_tokens=row_tokens)
        await job.engine.start()
        job.running = asyncio.create_task(job._run())
        return job

    async def _run(self) -> None:
        async for outcome in self.engine.generate(self._rows()):
            self.outcomes.append(outcome)

    def _rows(self) -> Iterator[Request]:
        sampling = SamplingSpec(max_tokens=self.row_tokens, ignore_eos=True)
        while not self.is_finishing:
            yield Request(id=str(self.sent), token_ids=prompt(32), sampling=sampling)
            self.sent += 1

    @property
    def held(self) -> int:
        """Rows that are at the service."""
        return self.engine._gate.held

    async def watch_held(self, seen: list[tuple[float, int]]) -> None:
        """Writes down when how many rows were at the service, until it is cancelled."""
        while True:
            seen.append((time.monotonic(), self.held))
            await asyncio.sleep(0.02)

    @property
    def tokens(self) -> int:
        """Of all rows that have been answered."""
        return sum(outcome.completion_tokens for outcome in self.outcomes if isinstance(outcome, Completion))

    async def tokens_per_s(self, seconds: float) -> float:
        """Returns what it gets in that time."""
        before, began = self.tokens, time.monotonic()
        await asyncio.sleep(seconds)
        return (self.tokens - before) / (time.monotonic() - began)

    async def finish(self) -> list[Outcome]:
        """Has all rows answered that were begun, and returns what became of each."""
        self.is_finishing = True
        assert self.running is not None
        await self.running
        await self.engine.close()
        return self.outcomes


async def ask(client: httpx.AsyncClient, tokens: int = ASKED_TOKENS) -> float:
    """One interactive stream, to its end; returns the seconds to its first token."""
    began, first_s, is_whole = time.monotonic(), 0.0, False
    body = {"model": "demo", "prompt": prompt(24), "max_tokens": tokens, "ignore_eos": True, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and not first_s:
                first_s = time.monotonic() - began
            is_whole = is_whole or line == "data: [DONE]"
    assert is_whole
    return first_s


async def asked(client: httpx.AsyncClient, seconds: float) -> list[float]:
    """Interactive requests one after another, come what may; returns the seconds to each first token."""
    tasks = []
    for _ in range(round(seconds / PERIOD_S)):
        tasks.append(asyncio.create_task(ask(client)))
        await asyncio.sleep(PERIOD_S)
    return list(await asyncio.gather(*tasks))
