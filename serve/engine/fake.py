"""An engine with no model: deterministic answers, and faults on demand. For tests of what stands around an engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path

from conf.schema.engine import EngineSpec
from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.in_flight import InFlight
from serve.engine.protocol import Completion, EngineStats, Outcome, Request

Decode = Callable[[Sequence[int]], str]


class FakeEngine:
    """Answers with the prompt's own last tokens, `sampling.max_tokens` of them at most."""

    def __init__(self, spec: EngineSpec, max_model_len: int, decode: Decode) -> None:
        """Args: the engine's node (its ``fault``), the context in tokens, and what turns token ids into text.

        Raises:
            EngineDead: where ``fault.fail_start`` asks for it.
        """
        if spec.fault.fail_start:
            raise EngineDead("injected: the engine does not start")
        self._fault = spec.fault
        self._decode = decode
        self._stats = EngineStats(max_model_len=max_model_len, start_s={"load": 0.0})
        self._in_flight = InFlight(spec.in_flight_rows, self._stats)
        self._death: str | None = None

    def generate(self, requests: Iterable[Request]) -> AsyncIterator[Outcome]:
        """See `Engine.generate`."""
        return self._in_flight.stream(requests, self._answer)

    async def health(self) -> None:
        """See `Engine.health`."""
        if self._death is not None:
            raise EngineDead(self._death)

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        return self._stats

    async def close(self) -> None:
        """See `Engine.close`."""
        self._death = self._death or "closed"

    async def _answer(self, request: Request) -> Outcome:
        await self.health()
        fault, limit = self._fault, self._stats.max_model_len
        if len(request.token_ids) >= limit:
            message = f"the prompt has {len(request.token_ids)} tokens, the context {limit}"
            raise RequestRejected("prompt_too_long", message)
        prompt = self._decode(request.token_ids)
        if fault.reject_marker and fault.reject_marker in prompt:
            raise RequestRejected("engine_rejected", f"injected: the prompt has '{fault.reject_marker}'")
        if fault.die_marker and fault.die_marker in prompt:
            self._die(f"injected: the prompt has '{fault.die_marker}'")
        if fault.die_after and self._stats.completions >= fault.die_after and fault.die_once_file:
            memory = Path(fault.die_once_file)
            if not memory.exists():
                memory.touch()
                self._die(f"injected: {fault.die_after} completions")
        await asyncio.sleep(fault.latency_ms / 1000)
        await self.health()
        room = min(request.sampling.max_tokens, limit - len(request.token_ids))
        answer = request.token_ids[-room:]
        text, reason = self._decode(answer), "length" if len(answer) == room else "stop"
        for stop in request.sampling.stop:
            if stop in text:
                text, reason = text.split(stop)[0], "stop"
        return Completion(
            request_id=request.id,
            text=text,
            finish_reason=reason,
            prompt_tokens=len(request.token_ids),
            completion_tokens=len(answer),
        )

    def _die(self, cause: str) -> None:
        self._death = cause
        raise EngineDead(cause)
