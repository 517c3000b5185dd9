"""How fast an engine is, asked through its own contract: with one request at a time, and with a full batch."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from conf.schema.evaluate import SpeedSpec
from conf.schema.sampling import SamplingSpec
from serve.engine.protocol import Completion, Engine, Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """With so many requests at a time."""

    batch: int
    tokens_per_s: list[float]
    """Answer tokens a second of each run, from the first request to the last answer: prompts are read in that time."""
    ttft_s: list[float]
    """Seconds from a request to its first token; with a full batch, of one that comes while all others are answered."""

    def plain(self) -> dict[str, Any]:
        """As what JSON can hold."""
        spread = {"median": statistics.median, "least": min, "most": max}
        return {
            "batch": self.batch,
            "tokens_per_s": {name: of(self.tokens_per_s) for name, of in spread.items()},
            "ttft_p50_s": statistics.median(self.ttft_s) if self.ttft_s else None,
            "runs": asdict(self),
        }


class Stopwatch:
    """Times an engine that has nothing else to do."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[list[int]],
        max_model_len: int,
        spec: SpeedSpec,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Args.

        engine: what is timed.
        prompts: the rows' token ids; runs take them in turn.
        max_model_len: its context in tokens.
        spec: how often and how much.
        clock: seconds.
        """
        self._engine = engine
        room = max_model_len - spec.answer_tokens
        # the longest that leave room for an answer count as they are; longer ones are cut
        self._prompts = itertools.cycle([prompt[:room] for prompt in prompts])
        self._known = sorted({token for prompt in prompts[:64] for token in prompt})
        self._max_model_len = max_model_len
        self._spec = spec
        self._clock = clock
        self._number = 0

    async def measure(self, batch: int) -> list[Pace]:
        """Measures with one request at a time, and with ``batch`` where that is more.

        Raises:
            EngineDead: when the engine dies of it.
        """
        await self._run(1)  # what is done once is done
        alone = Pace(
            batch=1,
            tokens_per_s=await self._runs(1),
            ttft_s=[await self._first_token() for _ in range(self._spec.probes)],
        )
        if batch < 2:
            return [alone]
        return [
            alone,
            Pace(batch=batch, tokens_per_s=await self._runs(batch), ttft_s=await self._newcomers(batch)),
        ]

    async def _runs(self, count: int) -> list[float]:
        """Rates of runs with so many requests at a time, until there are enough or time is up."""
        began, rates = self._clock(), []
        while len(rates) < self._spec.runs and (not rates or self._clock() - began < self._spec.limit_s):
            rates.append(await self._run(count))
        return rates

    async def _run(self, count: int) -> float:
        """Answer tokens a second of so many requests at once."""
        requests = [self._request(self._spec.answer_tokens) for _ in range(count)]
        began, tokens = self._clock(), 0
        async for outcome in self._engine.generate(requests):
            tokens += outcome.completion_tokens if isinstance(outcome, Completion) else 0
        return tokens / (self._clock() - began)

    async def _first_token(self) -> float:
        began = self._clock()
        async for _ in self._engine.generate([self._request(1)]):
            pass
        return self._clock() - began

    async def _newcomers(self, batch: int) -> list[float]:
        """Times to first token of requests that come one by one while all other slots are being answered."""
        ended = asyncio.Event()

        async def keep_full() -> None:
            try:
                requests = (self._request(None) for _ in itertools.count())
                async for _ in self._engine.generate(itertools.islice(requests, batch - 1)):
                    ended.set()  # from here on the batch is not full
            finally:
                ended.set()

        others = asyncio.create_task(keep_full())
        try:
            await asyncio.sleep(0)
            await self._first_token()  # it came last: when it has begun, all others have
            began, found = self._clock(), []
            while len(found) < self._spec.probes and not ended.is_set():
                if found and self._clock() - began > self._spec.limit_s:
                    break
                found.append(await self._first_token())
            return found
        finally:
            others.cancel()
            (left,) = await asyncio.gather(others, return_exceptions=True)
            if isinstance(left, Exception):
                raise left

    def _request(self, tokens: int | None) -> Request:
        """A request that no prefix cache knows: its first two tokens are a number that none had before."""
        prompt = next(self._prompts)
        self._number += 1
        size = len(self._known)
        first = [self._known[self._number % size], self._known[self._number // size % size]]
        ids = [*first, *prompt[2:]]
        room = self._max_model_len - len(ids)
        sampling = SamplingSpec(max_tokens=max(1, room if tokens is None else min(tokens, room)), ignore_eos=True)
        return Request(id=f"speed-{self._number}", token_ids=ids, sampling=sampling)
