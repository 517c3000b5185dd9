"""vLLM's AsyncLLM: the core loop in a process of its own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from conf.schema.engine import EngineSpec
from conf.schema.task import Task
from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.in_flight import InFlight
from serve.engine.protocol import EngineStats, Outcome, Request
from serve.engine.vllm.core_process import prepare_core_process
from serve.engine.vllm.engine_log import EngineLog
from serve.engine.vllm.grammar import has_grammar
from serve.engine.vllm.llm import on_outputs, start_llm
from serve.engine.vllm.outcomes import cosine, outcome, rejected, request_errors
from serve.engine.vllm.questions import Questions


class SeparateVllm:
    """An `Engine` over AsyncLLM."""

    def __init__(self, spec: EngineSpec, stats: EngineStats, questions: Questions, log: EngineLog) -> None:
        """Args: the engine's node, the counters to keep, what turns requests into vLLM's terms, what vLLM writes."""
        self._log = log
        self._stats = stats
        self._questions = questions
        self._in_flight = InFlight(spec.in_flight_rows, stats)

    async def start(self, arguments: dict[str, Any]) -> None:
        """Imports vLLM, starts its process, loads the model and its adapters.

        Raises:
            Exception: what vLLM raises when it does not start.
        """
        began = time.monotonic()
        prepare_core_process()
        import vllm.v1.engine.async_llm  # noqa: F401 - most of the import, timed apart from the load
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._dead_error, self._generate_error = EngineDeadError, EngineGenerateError
        self._request_errors = request_errors()
        imported = time.monotonic()
        self._llm = await start_llm(arguments)
        tasks = await self._llm.get_supported_tasks()
        self._questions.bind(self._llm.model_config, self._llm.get_tokenizer(), tasks)
        for adapter in self._questions.adapters():
            await self._llm.add_lora(adapter)  # a broken one fails the start; at a request it would end the engine
        on_outputs(self._llm, self._count_step)
        self._stats.start_s |= {"import": imported - began, "load": time.monotonic() - imported}
        self._stats.max_model_len = self._llm.model_config.max_model_len

    def _count_step(self) -> None:
        self._stats.steps += 1

    def generate(self, requests: Iterable[Request], exclusive: bool = False) -> AsyncIterator[Outcome]:
        """See `Engine.generate`."""
        return self._in_flight.stream(requests, self._answer, exclusive)

    async def health(self) -> None:
        """See `Engine.health`."""
        try:
            await self._llm.check_health()
        except self._dead_error as error:
            raise EngineDead(self._log.cause(error)) from error

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        return self._stats

    async def close(self) -> None:
        """See `Engine.close`."""
        self._llm.shutdown()

    async def _answer(self, request: Request) -> Outcome:
        if self._questions.task is Task.score and not self._questions.is_joint:
            return await cosine(request, self._ask)
        return await self._ask(request)

    async def _ask(self, request: Request) -> Outcome:
        prompt: Any = {"prompt_token_ids": request.token_ids}
        adapter = self._questions.adapter(request)
        ask: Any = self._llm.generate if self._questions.task is Task.generate else self._llm.encode
        last = None
        try:
            parameters = self._questions.parameters(request)
            async for output in ask(prompt, parameters, request.id, lora_request=adapter):
                last = output
        except RequestRejected:
            raise
        except self._dead_error as error:
            raise EngineDead(self._log.cause(error)) from error
        except self._generate_error as error:
            # vLLM wraps whatever else was raised here, a plain ValueError against the request too (0.32)
            cause = error.__cause__
            if isinstance(cause, self._request_errors) or (cause is not None and has_grammar(request.sampling)):
                raise rejected(cause) from error
            raise EngineDead(f"{type(error).__name__}: {cause!r}") from error
        except self._request_errors as error:
            raise rejected(error) from error
        assert last is not None, "vLLM ended a request without an output"
        return outcome(self._questions.task, request, last)
