"""What the GGUF engine cannot do: said before any work where a job asks for it, and to the row where a row does."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from conf.errors import UserError
from conf.schema.engine import Device, EngineSpec, Sizing
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from serve.engine.adapters import check_adapter_name
from serve.engine.architecture import count_parts, text_config
from serve.engine.errors import RequestRejected
from serve.engine.gguf.folder import gguf_file
from serve.engine.protocol import Request

GRAMMARS = ("json_schema", "regex", "choice")
PENALTIES = ("presence_penalty", "frequency_penalty")
"""llama.cpp counts the prompt's tokens in them, vLLM the answer's alone."""
KV_BYTES = 1 << 30
"""For the KV cache where `engine.kv_cache_bytes` says nothing."""


def check_gguf(model: ModelSpec, engine: EngineSpec, task: Task) -> None:
    """Checks that the GGUF engine can do what is asked.

    Raises:
        UserError: when it cannot.
    """
    gguf_file(model.path)
    if find_spec("xllamacpp") is None:
        raise UserError("engine=gguf needs llama.cpp, an extra: run 'make gguf' (requirements/gguf.txt)")
    if task is not Task.generate:
        raise UserError(f"task={task.value} has no use with engine=gguf: it generates text, take engine=cpu")
    if model.adapters:
        raise UserError("model.adapters has no use with engine=gguf: merge the adapter into the model, then export it")
    for name in engine.vllm:
        raise UserError(f"engine.vllm.{name} has no use with engine=gguf: vLLM does not run")
    if engine.world_size > 1 or engine.engines_per_device > 1:
        raise UserError("engine=gguf is not partitioned: leave the engine's sizes at 1, and set engine.num_replicas")
    if engine.device is Device.cuda:
        raise UserError("engine.device=cuda has no use with engine=gguf: it runs on the CPU")
    if engine.sizing is not Sizing.given:
        raise UserError("engine.sizing=planned has no use with engine=gguf: manta plan knows vLLM's speed")


def check_gguf_sampling(sampling: SamplingSpec) -> None:
    """Checks the sampling of a whole job.

    Raises:
        UserError: when the GGUF engine has no such thing.
    """
    for key in GRAMMARS:
        if getattr(sampling, key):
            raise UserError(f"sampling.{key} has no use with engine=gguf: it keeps no grammar, take engine=cpu")
    for key in PENALTIES:
        if getattr(sampling, key):
            raise UserError(f"sampling.{key} has no use with engine=gguf: it would count the prompt too")


def check_gguf_request(request: Request, context: int) -> None:
    """Checks one request.

    Args:
        request: what is asked.
        context: tokens of a sequence at most.

    Raises:
        RequestRejected: when it can never be answered.
    """
    tokens = request.token_ids
    if request.adapter is not None:
        check_adapter_name(request.adapter, ())
    if not tokens:
        raise RequestRejected("empty_prompt", "the prompt has no tokens")
    if len(tokens) >= context:
        raise RequestRejected("prompt_too_long", f"the prompt has {len(tokens)} tokens, the context {context}")
    if request.forced_from is not None:
        raise RequestRejected("engine_rejected", "the GGUF engine does not say how likely a given text is")
    for key in GRAMMARS:
        if getattr(request.sampling, key):
            raise RequestRejected("bad_grammar", f"the GGUF engine keeps no grammar: {key} has no use with it")
    for key in PENALTIES:
        if getattr(request.sampling, key):
            raise RequestRejected("engine_rejected", f"{key} has no use with the GGUF engine")


def count_slots(config: Mapping[str, Any], engine: EngineSpec, context: int) -> int:
    """Returns how many sequences are computed at a time: each has room for a whole context, in 16 bits.

    Args:
        config: the model's config.json.
        engine: its sizes.
        context: tokens of a sequence.

    Raises:
        UserError: when not even one has room.
    """
    parts = count_parts(text_config(config))
    layers = int(text_config(config)["num_hidden_layers"])
    each = 2 * 2 * layers * parts.kv_heads * parts.head_dim * context
    room = engine.kv_cache_bytes or KV_BYTES
    if room < each:
        raise UserError(
            f"engine.kv_cache_bytes={room} holds no sequence of {context} tokens, which takes {each}: raise it, or"
            " lower engine.max_model_len"
        )
    return min(engine.max_num_seqs, room // each)
