"""An AsyncLLM, started the same way for batch jobs and for services."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from serve.engine.placement import has_few_cores
from serve.engine.vllm.arguments import with_objects

ONE_PROCESS = "serve.engine.vllm.one_process.OneProcess"
"""By its name, for vLLM to import it."""


async def start_llm(arguments: Mapping[str, Any], has_short_steps: bool = False) -> Any:
    """Starts vLLM's AsyncLLM; `prepare_core_process` comes before.

    Args:
        arguments: of `prepare_engine`.
        has_short_steps: whether its steps have 2,048 tokens where nothing is said, also on large GPUs.

    Raises:
        Exception: what vLLM raises when it does not start.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    own = {"distributed_executor_backend": ONE_PROCESS} if computes_alone(arguments) else {}
    llm = AsyncLLM.from_engine_args(
        AsyncEngineArgs(**own, **with_objects(dict(arguments))),
        # by it vLLM chooses how many tokens a step has: as a server's 8,192 on large GPUs, as any engine's 2,048
        usage_context=UsageContext.ENGINE_CONTEXT if has_short_steps else UsageContext.OPENAI_API_SERVER,
    )
    if arguments["pipeline_parallel_size"] > 1 and arguments.get("enforce_eager"):
        # in eager mode the CPU runner allocates the later ranks' intermediate tensors only here
        await llm.collective_rpc("execute_dummy_batch")
    return llm


def computes_alone(arguments: Mapping[str, Any]) -> bool:
    """Says whether a model in one piece is computed on few cores, and nobody says by whom."""
    from vllm.platforms import current_platform

    is_whole = arguments["tensor_parallel_size"] == arguments["pipeline_parallel_size"] == 1
    is_silent = "distributed_executor_backend" not in arguments
    return current_platform.is_cpu() and has_few_cores() and is_whole and is_silent


def on_outputs(llm: Any, note: Callable[[], None]) -> None:
    """Calls ``note`` whenever something comes from the engine's process: answers themselves may be minutes apart."""
    processor = llm.output_processor
    process = processor.process_outputs

    def noted(*args: Any, **options: Any) -> Any:
        note()
        return process(*args, **options)

    processor.process_outputs = noted


def keep_turns(llm: Any) -> None:
    """Has what vLLM keeps of each request in this process say its priority, as ``turn``; it sends that to the engine's
    process and keeps it nowhere else.
    """
    processor = llm.output_processor
    add = processor.add_request

    def added(request: Any, *args: Any, **options: Any) -> None:
        add(request, *args, **options)
        if (state := processor.request_states.get(request.request_id)) is not None:
            state.turn = request.priority

    processor.add_request = added
