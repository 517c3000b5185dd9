"""An engine under examination, and the actor that holds it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from conf.schema.engine import Device, EngineSpec
from conf.schema.evaluate import SpeedSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from pipelines.batch.record import versions
from pipelines.evaluate.machine import describe, gpu_used_bytes, resident_bytes
from pipelines.evaluate.rows import Row
from pipelines.evaluate.speed import Stopwatch
from serve.engine.errors import EngineDead
from serve.engine.protocol import Completion, ForcedToken, Outcome, Rejection, Request
from serve.engine.start import start_engine


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came of a row."""

    text: str | None
    """Null where it was rejected."""
    error: str | None
    """The class of why it was rejected."""
    is_cut: bool
    """Whether the answer ended for want of tokens."""
    tokens: int


class Examiner:
    """An engine, asked. An actor: its methods belong to one event loop, as the engine does."""

    def __init__(self, model: ModelSpec, engine: EngineSpec, device: Device, max_model_len: int) -> None:
        """Args: the checkpoint, the engine's node, where it runs, and its context in tokens."""
        self._model, self._spec, self._device = model, engine, device
        self._max_model_len = max_model_len
        self._done = 0

    async def start(self) -> dict[str, Any]:
        """Starts the engine and returns what that took: seconds by part, and bytes before and after.

        Raises:
            EngineDead: when it does not start.
        """
        before, gpu_before, began = resident_bytes(), gpu_used_bytes(), time.monotonic()
        starting = start_engine(self._model, self._spec, self._device, self._max_model_len)
        try:
            async with asyncio.timeout(self._spec.start_timeout_s):
                self._engine = await starting
        except TimeoutError:
            raise EngineDead(f"not ready after engine.start_timeout_s={self._spec.start_timeout_s:g}") from None
        took_s = time.monotonic() - began
        self._gpu_before = gpu_before
        return {
            "start_s": took_s,
            "parts_s": self._engine.stats().start_s,
            "before_bytes": before,
            "loaded_bytes": resident_bytes(),
            "hardware": describe(self._device),
            "versions": versions(),
        }

    async def answer(self, rows: Sequence[Row]) -> list[Answer]:
        """Answers rows, in their order.

        Raises:
            EngineDead: when the engine dies.
        """
        requests = [
            Request(id=str(at), token_ids=row.tokens, sampling=row.sampling, adapter=row.adapter)
            for at, row in enumerate(rows)
        ]
        return [_answer(outcome) for outcome in await self._ask(requests)]

    async def force(
        self, rows: Sequence[Row], answers: Sequence[list[int]], top: int
    ) -> list[tuple[ForcedToken, ...] | None]:
        """Says how likely given answers are, token by token; null where the engine rejects one.

        Args:
            rows: whose prompts stand before the answers.
            answers: token ids, at least one each.
            top: likely tokens of each place that are told too.

        Raises:
            EngineDead: when the engine dies.
        """
        requests = [
            Request(
                id=f"forced-{at}",
                token_ids=[*row.tokens, *answer],
                sampling=SamplingSpec(max_tokens=1),
                adapter=row.adapter,
                forced_from=len(row.tokens),
                forced_top=top,
            )
            for at, (row, answer) in enumerate(zip(rows, answers, strict=True))
        ]
        outcomes = await self._ask(requests)
        return [outcome.forced if isinstance(outcome, Completion) else None for outcome in outcomes]

    async def speed(self, rows: Sequence[Row], spec: SpeedSpec) -> list[dict[str, Any]]:
        """Measures how fast the engine is; see `Stopwatch`.

        Raises:
            EngineDead: when the engine dies.
        """
        batch = min(spec.batch or self._spec.max_num_seqs, self._spec.in_flight_rows)
        stopwatch = Stopwatch(self._engine, [row.tokens for row in rows], self._engine.stats().max_model_len, spec)
        return [pace.plain() for pace in await stopwatch.measure(batch)]

    async def memory(self) -> dict[str, Any]:
        """Returns the bytes that the engine's processes hold, and what its GPUs hold more than before it started."""
        now = gpu_used_bytes()
        gpu = sum(now) - sum(self._gpu_before) if now else None
        return {"resident_bytes": resident_bytes(), "gpu_bytes": gpu if self._device is Device.cuda else None}

    async def close(self) -> None:
        """Frees the device."""
        await self._engine.close()

    async def progress(self) -> tuple[int, int]:
        """Returns how many requests of this question have ended, and a number that grows while the engine lives."""
        stats = self._engine.stats()
        return self._done, stats.completions + stats.rejections + stats.steps

    async def _ask(self, requests: Sequence[Request]) -> list[Outcome]:
        found: dict[str, Outcome] = {}
        self._done = 0
        async for outcome in self._engine.generate(requests):
            found[outcome.request_id] = outcome
            self._done += 1
        return [found[request.id] for request in requests]


def _answer(outcome: Outcome) -> Answer:
    if isinstance(outcome, Completion):
        is_cut = outcome.finish_reason == "length"
        return Answer(text=outcome.text, error=None, is_cut=is_cut, tokens=outcome.completion_tokens)
    error = outcome.error if isinstance(outcome, Rejection) else "no_text"
    return Answer(text=None, error=error, is_cut=False, tokens=0)
