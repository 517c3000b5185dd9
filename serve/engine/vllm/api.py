"""vLLM's own OpenAI API over an AsyncLLM.

Source: vllm/entrypoints/launchers/ (0.32), vllm/entrypoints/openai/ (0.26). The pieces move with every release: nobody
else imports them.
"""

from __future__ import annotations

import logging
import time
from argparse import Namespace
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from conf.schema.engine import Device, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.task import Task
from serve.engine.errors import EngineDead
from serve.engine.heap import freeze_heap
from serve.engine.speed import Speed, Unbegun, Waiting
from serve.engine.vllm.arguments import prepare_engine
from serve.engine.vllm.core_process import prepare_core_process
from serve.engine.vllm.engine_log import EngineLog
from serve.engine.vllm.interval import StreamInterval
from serve.engine.vllm.llm import keep_turns, on_outputs, start_llm
from serve.engine.vllm.speed import measure_speed

_log = logging.getLogger(__name__)
_IDLE = ("CORSMiddleware", "PrometheusInstrumentatorMiddleware")
"""What vLLM puts around its routes and a replica has no use for."""


class VllmApi:
    """A running engine, and the ASGI app that answers for it."""

    def __init__(self, llm: Any, app: Any, log: EngineLog, hang_timeout_s: float, is_thinned: bool) -> None:
        """Args.

        llm: vLLM's AsyncLLM.
        app: its FastAPI app.
        log: what its processes write.
        hang_timeout_s: how long an engine with requests may give no token.
        is_thinned: whether a busy process sends several tokens in an event, see `StreamInterval`.
        """
        self._llm = llm
        self.app = app
        self._log = log
        self._hang_timeout_s = hang_timeout_s
        self._moved_at = time.monotonic()
        self._interval = None
        if is_thinned:
            self._interval = StreamInterval(llm.output_processor.request_states)
        on_outputs(llm, self._note_move)
        keep_turns(llm)

    def _note_move(self) -> None:
        self._moved_at = time.monotonic()
        if self._interval is not None:
            self._interval.look()

    @property
    def tokens_per_event(self) -> int | None:
        """Of streams now; null where it is fixed."""
        return None if self._interval is None else self._interval.tokens

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache has room for; 0 where vLLM does not say."""
        cache = self._llm.vllm_config.cache_config
        return (cache.num_gpu_blocks or 0) * cache.block_size

    @property
    def is_dead(self) -> bool:
        """Whether the engine has ended; one that hangs has not."""
        return self._llm.errored

    def waiting(self) -> Waiting:
        """Requests whose answer has not begun, those that the engine has begun to read included."""
        lengths = [
            state.prompt_len for state in self._llm.output_processor.request_states.values() if state.is_prefilling
        ]
        return Waiting(len(lengths), sum(lengths))

    def unbegun(self) -> Unbegun:
        """Requests whose answer has not begun, those that the engine has begun to read included."""
        states = self._llm.output_processor.request_states.values()
        turns = [getattr(state, "turn", 0) for state in states if state.is_prefilling]
        num_batch = sum(turn > 0 for turn in turns)
        return Unbegun(len(turns) - num_batch, num_batch)

    async def measure(self, max_num_seqs: int) -> Speed:
        """Measures what the engine does, see `measure_speed`; to be called before it has requests.

        What cannot be measured is not known, and no reason not to start.
        """
        try:
            return await measure_speed(self._llm, max_num_seqs)
        except Exception as error:
            _log.warning("the engine's speed cannot be measured: %s: %s", type(error).__name__, error)
            return Speed(0.0, 0.0)

    async def check(self) -> None:
        """Returns when the engine lives and does not hang. To be called now and then: idle time is no hang.

        Raises:
            EngineDead: when it answers nothing any more.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._llm.check_health()
        except EngineDeadError as error:
            raise EngineDead(self._log.cause(error)) from error
        now = time.monotonic()
        if not self._llm.output_processor.has_unfinished_requests():
            self._moved_at = now
        elif now - self._moved_at > self._hang_timeout_s:
            raise EngineDead(f"the engine holds requests and gave no token for {now - self._moved_at:.0f} s")

    def close(self) -> None:
        """Frees the device. Harmless when called twice."""
        self._llm.shutdown()


async def start_api(
    model: ModelSpec,
    spec: EngineSpec,
    device: Device,
    share: int,
    task: Task,
    options: Mapping[str, Any],
    exposed: Collection[str],
) -> VllmApi:
    """Starts an engine, in a process of its own, with vLLM's API in front of it.

    To be called from a thread that lives as long as the process; see `prepare_core_process`.

    Args:
        model: the checkpoint; its adapters are models under their names.
        spec: sizes and vLLM's own arguments.
        device: cpu or cuda, decided.
        share: engines that share this machine's cores; only the CPU cares.
        task: what its requests ask for.
        options: vLLM's own arguments of the API.
        exposed: the paths that its OpenAPI document shows.

    Raises:
        EngineDead: when it does not start; the cause says why.
    """
    log = EngineLog()
    try:
        made = prepare_engine(model, spec, device, share, task)
        prepare_core_process()
        # who waits for an answer goes before what runs in bulk: the requests say which they are
        own = {"served_model_name": [model.name], "scheduling_policy": "priority"}
        arguments = {**own, **made}
        arguments["disable_log_stats"] = spec.vllm.get("disable_log_stats", False)  # metrics are made of them
        # who came first is answered first, and one prompt more delays all streams less: decision 29
        llm = await start_llm(arguments, has_short_steps=task is Task.generate)
        app = await _build(llm, _namespace(model, arguments, options, llm), exposed)
        freeze_heap()
    except Exception as error:
        raise EngineDead(f"vLLM did not start: {log.cause(error)}") from error
    is_thinned = task is Task.generate and "stream_interval" not in spec.vllm
    return VllmApi(llm, app, log, spec.hang_timeout_s, is_thinned)


def _namespace(model: ModelSpec, arguments: Mapping[str, Any], options: Mapping[str, Any], llm: Any) -> Namespace:
    """The command line that vLLM's server would have been called with."""
    from vllm.entrypoints.openai.models.protocol import LoRAModulePath
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    where = ("launchers.cli_args", "openai.cli_args")
    args = _piece("make_arg_parser", *where)(FlexibleArgumentParser()).parse_args([])
    for name, value in {**arguments, **options}.items():
        setattr(args, name, value)
    args.structured_outputs_config = llm.vllm_config.structured_outputs_config
    args.model = model.name  # /v1/models shows it: a path is nobody's business
    args.chat_template = model.chat_template
    args.lora_modules = [LoRAModulePath(name, folder) for name, folder in model.adapters.items()] or None
    args.allowed_origins = []  # vLLM lets the scripts of every web page in
    _piece("validate_parsed_serve_args", *where)(args)
    return args


async def _build(llm: Any, args: Namespace, exposed: Collection[str]) -> Any:
    build_app = _piece("build_app", "launchers.app", "openai.api_server")
    init_app_state = _piece("init_app_state", "launchers.api_server.app_state", "openai.api_server")
    tasks = await llm.get_supported_tasks()
    app = build_app(args, tasks, llm.model_config)
    # each would cost every event of a stream a call: no page of another origin is let in, and `Observe` counts requests
    app.user_middleware = [one for one in app.user_middleware if getattr(one.cls, "__name__", "") not in _IDLE]
    await init_app_state(llm, app.state, args, tasks)
    # vLLM tells its own server to end when the engine is dead; here the health check does
    app.state.server = SimpleNamespace(should_exit=False)
    document = app.openapi

    def shown() -> dict[str, Any]:
        schema = document()
        return {**schema, "paths": {path: node for path, node in schema["paths"].items() if path in exposed}}

    app.openapi = shown
    return app


def _piece(name: str, *modules: str) -> Any:
    """A function of vLLM's server, from the first module below vllm.entrypoints that has it."""
    for module in modules:
        with suppress(ImportError, AttributeError):
            return getattr(import_module(f"vllm.entrypoints.{module}"), name)
    raise ImportError(f"vllm.entrypoints has no {name} in {', '.join(modules)}")
