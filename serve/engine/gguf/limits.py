"""What the GGUF engine cannot do: said before any work where a job asks for it, and to the row where a row does."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from conf.errors import UserError
from conf.schema.engine import EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from serve.engine.architecture import count_parts, text_config
from serve.engine.errors import RequestRejected
from serve.engine.gguf.folder import gguf_file
from serve.engine.limits import check_no_grammar, check_small_engine, check_small_request
from serve.engine.protocol import Request

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
    check_small_engine("gguf", model, engine, task)


def check_gguf_sampling(sampling: SamplingSpec) -> None:
    """Checks the sampling of a whole job.

    Raises:
        UserError: when the GGUF engine has no such thing.
    """
    check_no_grammar("gguf", sampling)
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
    check_small_request("GGUF", request, context)
    if request.forced_from is not None:
        raise RequestRejected("engine_rejected", "the GGUF engine does not say how likely a given text is")
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
