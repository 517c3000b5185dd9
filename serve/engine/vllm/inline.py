"""vLLM's core loop in a thread of this process: one import, nothing serialized between processes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from conf.schema.engine import EngineSpec
from conf.schema.task import Task
from serve.engine.errors import RequestRejected
from serve.engine.in_flight import InFlight
from serve.engine.protocol import EngineStats, Outcome, Request
from serve.engine.step_loop import StepLoop, Stepper
from serve.engine.vllm.arguments import with_objects
from serve.engine.vllm.grammar import has_grammar
from serve.engine.vllm.outcomes import cosine, outcome, rejected, request_errors
from serve.engine.vllm.questions import Questions


class VllmStepper(Stepper):
    """vLLM's synchronous engine."""

    def __init__(self, arguments: dict[str, Any], stats: EngineStats, questions: Questions) -> None:
        """Imports vLLM, loads the model and its adapters.

        Raises:
            Exception: what vLLM raises when it does not start.
        """
        began = time.monotonic()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

        imported = time.monotonic()
        context = UsageContext.OPENAI_API_SERVER  # see llm.py
        self._llm = LLMEngine.from_engine_args(EngineArgs(**with_objects(arguments)), context)
        if arguments["pipeline_parallel_size"] > 1:
            # in eager mode the CPU runner allocates the later ranks' intermediate tensors only here
            self._llm.collective_rpc("execute_dummy_batch")
        questions.bind(self._llm.model_config, self._llm.get_tokenizer(), self._llm.get_supported_tasks())
        for adapter in questions.adapters():
            self._llm.add_lora(adapter)  # a broken one fails the start; at a request it would end the engine
        stats.start_s |= {"import": imported - began, "load": time.monotonic() - imported}
        stats.max_model_len = self._llm.model_config.max_model_len
        self._stats = stats
        self._questions = questions
        self._request_errors = request_errors()
        self._asked: dict[str, tuple[str, Request]] = {}  # vLLM's own id for each of ours

    def add(self, request: Request) -> None:
        """See `Stepper.add`."""
        prompt: Any = {"prompt_token_ids": request.token_ids}
        adapter = self._questions.adapter(request)
        try:
            parameters = self._questions.parameters(request)
            handle = self._llm.add_request(request.id, prompt, parameters, lora_request=adapter)
        except RequestRejected:
            raise
        except self._request_errors as error:
            raise rejected(error) from error
        except Exception as error:
            if not has_grammar(request.sampling):
                raise
            # grammar compilers raise what they like, some of it after the request was taken
            self._llm.abort_request([request.id])
            raise rejected(error) from error
        self._asked[request.id] = handle, request

    def abort(self, request: Request) -> None:
        """See `Stepper.abort`."""
        if request.id in self._asked:
            handle, _ = self._asked.pop(request.id)
            self._llm.abort_request([handle], internal=True)

    def step(self) -> list[Outcome]:
        """See `Stepper.step`."""
        outputs = self._llm.step()
        self._stats.steps += 1
        finished = ((self._asked.pop(output.request_id), output) for output in outputs if output.finished)
        return [outcome(self._questions.task, request, output) for (_, request), output in finished]

    def has_work(self) -> bool:
        """See `Stepper.has_work`."""
        return self._llm.has_unfinished_requests()

    def close(self) -> None:
        """See `Stepper.close`."""
        self._llm.engine_core.shutdown()


class InlineVllm:
    """An `Engine` over a `VllmStepper`."""

    def __init__(self, spec: EngineSpec, stats: EngineStats, questions: Questions) -> None:
        """Args: the engine's node, the counters to keep, and what turns requests into vLLM's terms."""
        self._stats = stats
        self._questions = questions
        self._in_flight = InFlight(spec.in_flight_rows, stats)

    async def start(self, arguments: dict[str, Any]) -> None:
        """Loads the model.

        Raises:
            Exception: what vLLM raises when it does not start.
        """
        self._loop = StepLoop(lambda: VllmStepper(arguments, self._stats, self._questions))
        await self._loop.start()

    def generate(self, requests: Iterable[Request], exclusive: bool = False) -> AsyncIterator[Outcome]:
        """See `Engine.generate`."""
        return self._in_flight.stream(requests, self._answer, exclusive)

    async def health(self) -> None:
        """See `Engine.health`."""
        self._loop.check()

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        return self._stats

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._loop.close()

    async def _answer(self, request: Request) -> Outcome:
        if self._questions.task is Task.score and not self._questions.is_joint:
            return await cosine(request, self._loop.answer)
        return await self._loop.answer(request)
