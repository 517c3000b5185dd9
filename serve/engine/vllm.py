"""The only importer of vllm (0.26-0.32, CPU and CUDA builds). Engine arguments keep vLLM's own names."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from conf.schema.engine import Device, EngineProcess, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from serve.engine.errors import EngineDead, RequestRejected
from serve.engine.in_flight import InFlight
from serve.engine.placement import cpu_threads
from serve.engine.protocol import Completion, Engine, EngineStats, Outcome, Request
from serve.engine.step_loop import StepLoop, Stepper

DEFAULT_KV_CACHE_BYTES = 1 << 30


async def start_vllm(model: ModelSpec, spec: EngineSpec, device: Device, share: int = 1) -> Engine:
    """Starts a vLLM engine in this process.

    Args:
        model: the checkpoint.
        spec: sizes and vLLM's own arguments.
        device: cpu or cuda, decided.
        share: engines that share this machine's cores; only the CPU cares.

    Raises:
        EngineDead: when it does not start; the cause says why.
    """
    before = time.monotonic()
    _set_environment(spec, device, share)
    inline = spec.process is EngineProcess.inline or (spec.process is EngineProcess.auto and device is Device.cpu)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if inline else "1"
    stats = EngineStats()
    if inline:
        engine: _InlineVllm | _SeparateVllm = _InlineVllm(spec, stats)
    else:
        engine = _SeparateVllm(spec, stats)
    try:
        await engine.start(engine_arguments(model, spec, device))
    except Exception as error:
        raise EngineDead(f"vLLM did not start: {type(error).__name__}: {error}") from error
    stats.start_s["total"] = time.monotonic() - before
    return engine


def engine_arguments(model: ModelSpec, spec: EngineSpec, device: Device) -> dict[str, Any]:
    """Returns vLLM's engine arguments; what `engine.vllm` holds wins."""
    arguments: dict[str, Any] = {
        "model": model.path,
        "tokenizer": model.tokenizer or model.path,
        "dtype": model.dtype,
        "trust_remote_code": model.trust_remote_code,
        "tensor_parallel_size": spec.tensor_parallel_size,
        "pipeline_parallel_size": spec.pipeline_parallel_size,
        "max_num_seqs": spec.max_num_seqs,
        "disable_log_stats": True,
    }
    if spec.max_model_len is not None:
        arguments["max_model_len"] = spec.max_model_len
    if spec.world_size > 1:
        # in a placement group vLLM would take Ray's executor, which wants a bundle for each rank; see placement.py
        arguments["distributed_executor_backend"] = "mp"
    if device is Device.cpu:
        arguments["enforce_eager"] = True  # compiling takes longer than a small model's whole job
    elif spec.kv_cache_bytes is not None:
        arguments["kv_cache_memory_bytes"] = spec.kv_cache_bytes
    return {**arguments, **spec.vllm}


def _set_environment(spec: EngineSpec, device: Device, share: int) -> None:
    """Sets what vLLM reads from the environment, before it is imported; what the user set wins."""
    defaults = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    if device is Device.cpu:
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it to the actor's CPUs
        gib = math.ceil((spec.kv_cache_bytes or DEFAULT_KV_CACHE_BYTES) / (1 << 30))
        defaults |= {"VLLM_CPU_KVCACHE_SPACE": str(gib), **cpu_threads(spec.world_size, share)}
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    os.environ.update(spec.env)


class _Parameters:
    """vLLM's sampling parameters, made once for rows that share a node."""

    def __init__(self) -> None:
        self._spec: SamplingSpec | None = None
        self._made: Any = None

    def of(self, spec: SamplingSpec) -> Any:
        if spec is not self._spec:
            from vllm import SamplingParams
            from vllm.sampling_params import RequestOutputKind

            # FINAL_ONLY: nobody streams here, and each intermediate output costs (21-29 % of throughput on a GPU)
            self._made = SamplingParams(
                max_tokens=spec.max_tokens,
                temperature=spec.temperature,
                top_p=spec.top_p,
                top_k=spec.top_k,
                min_p=spec.min_p,
                repetition_penalty=spec.repetition_penalty,
                presence_penalty=spec.presence_penalty,
                frequency_penalty=spec.frequency_penalty,
                seed=spec.seed,
                stop=list(spec.stop),
                ignore_eos=spec.ignore_eos,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._spec = spec
        return self._made


def _completion(request_id: str, output: Any) -> Completion:
    answer = output.outputs[0]
    return Completion(
        request_id=request_id,
        text=answer.text,
        finish_reason=str(answer.finish_reason),
        prompt_tokens=len(output.prompt_token_ids or ()),
        completion_tokens=len(answer.token_ids),
    )


def _request_errors() -> tuple[type[Exception], ...]:
    """What vLLM raises against a request: ValueError, or in newer versions classes of its own that are none."""
    from vllm import exceptions

    names = ("VLLMClientError", "VLLMValidationError")
    return (ValueError, *(getattr(exceptions, name) for name in names if hasattr(exceptions, name)))


def _rejected(error: Exception) -> RequestRejected:
    """vLLM's word against a request."""
    text = " ".join(str(error).split())
    too_long = "longer than the maximum model length" in text or "maximum context length" in text
    return RequestRejected("prompt_too_long" if too_long else "engine_rejected", text)


class _VllmStepper(Stepper):
    """vLLM's synchronous engine, in this process."""

    def __init__(self, arguments: dict[str, Any], stats: EngineStats) -> None:
        began = time.monotonic()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        imported = time.monotonic()
        self._llm = LLMEngine.from_engine_args(EngineArgs(**arguments))
        if arguments["pipeline_parallel_size"] > 1:
            # in eager mode the CPU runner allocates the later ranks' intermediate tensors only here
            self._llm.collective_rpc("execute_dummy_batch")
        stats.start_s |= {"import": imported - began, "load": time.monotonic() - imported}
        stats.max_model_len = self._llm.model_config.max_model_len
        self._parameters = _Parameters()
        self._request_errors = _request_errors()

    def add(self, request: Request) -> str:
        prompt: Any = {"prompt_token_ids": request.token_ids}
        try:
            handle = self._llm.add_request(request.id, prompt, self._parameters.of(request.sampling))
        except self._request_errors as error:
            raise _rejected(error) from error
        return handle or request.id  # 0.26 returns None and keeps our id

    def abort(self, handle: str) -> None:
        self._llm.abort_request([handle], internal=True)

    def step(self) -> list[Outcome]:
        return [_completion(out.request_id, out) for out in self._llm.step() if out.finished]

    def has_work(self) -> bool:
        return self._llm.has_unfinished_requests()

    def close(self) -> None:
        self._llm.engine_core.shutdown()


class _InlineVllm:
    """vLLM's core loop in a thread of this process: one import, nothing serialized between processes."""

    def __init__(self, spec: EngineSpec, stats: EngineStats) -> None:
        self._stats = stats
        self._in_flight = InFlight(spec.in_flight_rows, stats)

    async def start(self, arguments: dict[str, Any]) -> None:
        self._loop = StepLoop(lambda: _VllmStepper(arguments, self._stats))
        await self._loop.start()

    def generate(self, requests: Iterable[Request]) -> AsyncIterator[Outcome]:
        return self._in_flight.stream(requests, self._loop.answer)

    async def health(self) -> None:
        self._loop.check()

    def stats(self) -> EngineStats:
        return self._stats

    async def close(self) -> None:
        await self._loop.close()


class _SeparateVllm:
    """vLLM's AsyncLLM: the core loop in a process of its own."""

    def __init__(self, spec: EngineSpec, stats: EngineStats) -> None:
        self._stats = stats
        self._in_flight = InFlight(spec.in_flight_rows, stats)
        self._parameters = _Parameters()

    async def start(self, arguments: dict[str, Any]) -> None:
        began = time.monotonic()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._dead_errors = (EngineDeadError, EngineGenerateError)
        self._request_errors = _request_errors()
        imported = time.monotonic()
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        if arguments["pipeline_parallel_size"] > 1 and arguments.get("enforce_eager"):
            await self._llm.collective_rpc("execute_dummy_batch")
        self._stats.start_s |= {"import": imported - began, "load": time.monotonic() - imported}
        self._stats.max_model_len = self._llm.model_config.max_model_len

    def generate(self, requests: Iterable[Request]) -> AsyncIterator[Outcome]:
        return self._in_flight.stream(requests, self._answer)

    async def health(self) -> None:
        try:
            await self._llm.check_health()
        except self._dead_errors as error:
            raise EngineDead(str(error)) from error

    def stats(self) -> EngineStats:
        return self._stats

    async def close(self) -> None:
        self._llm.shutdown()

    async def _answer(self, request: Request) -> Outcome:
        prompt: Any = {"prompt_token_ids": request.token_ids}
        last = None
        try:
            async for output in self._llm.generate(prompt, self._parameters.of(request.sampling), request.id):
                last = output
        except self._dead_errors as error:
            raise EngineDead(f"{type(error).__name__}: {error}") from error
        except self._request_errors as error:
            raise _rejected(error) from error
        assert last is not None, "vLLM ended a request without an output"
        return _completion(request.id, last)
