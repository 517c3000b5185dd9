"""What no engine but vLLM can do: those that run on a CPU, for one purpose, with nothing of vLLM's."""

from __future__ import annotations

from conf.errors import UserError
from conf.schema.engine import Device, EngineSpec, Sizing
from conf.schema.model import ModelSpec
from conf.schema.sampling import SamplingSpec
from conf.schema.task import Task
from serve.engine.adapters import check_adapter_name
from serve.engine.errors import RequestRejected
from serve.engine.protocol import Request

GRAMMARS = ("json_schema", "regex", "choice")


def check_small_engine(name: str, model: ModelSpec, engine: EngineSpec, task: Task) -> None:
    """Checks that a job asks for nothing that only vLLM has.

    Args:
        name: the engine's, as its configuration is called.
        model: what it shall run.
        engine: its sizes.
        task: what it shall do.

    Raises:
        UserError: when it does.
    """
    key = f"has no use with engine={name}"
    if task is not Task.generate:
        raise UserError(f"task={task.value} {key}: it generates text, take engine=cpu")
    if model.adapters:
        raise UserError(f"model.adapters {key}: merge the adapter into the model, then export it")
    for argument in engine.vllm:
        raise UserError(f"engine.vllm.{argument} {key}: vLLM does not run")
    if engine.world_size > 1 or engine.engines_per_device > 1:
        raise UserError(f"engine={name} is not partitioned: leave the engine's sizes at 1, and set engine.num_replicas")
    if engine.device is Device.cuda:
        raise UserError(f"engine.device=cuda {key}: it runs on the CPU")
    if engine.sizing is not Sizing.given:
        raise UserError(f"engine.sizing=planned {key}: manta plan knows vLLM's speed")


def check_no_grammar(name: str, sampling: SamplingSpec) -> None:
    """Checks the sampling of a whole job.

    Raises:
        UserError: when it asks for a grammar.
    """
    for key in GRAMMARS:
        if getattr(sampling, key):
            raise UserError(f"sampling.{key} has no use with engine={name}: it keeps no grammar, take engine=cpu")


def check_small_request(name: str, request: Request, context: int) -> None:
    """Checks one request.

    Args:
        name: the engine's, as people call it.
        request: what is asked.
        context: tokens of a sequence at most.

    Raises:
        RequestRejected: when it has no tokens, more than there is room for, or asks for an adapter or a grammar.
    """
    num_tokens = len(request.token_ids)
    if request.adapter is not None:
        check_adapter_name(request.adapter, ())
    if num_tokens == 0:
        raise RequestRejected("empty_prompt", "the prompt has no tokens")
    if num_tokens >= context:
        raise RequestRejected("prompt_too_long", f"the prompt has {num_tokens} tokens, the context {context}")
    for key in GRAMMARS:
        if getattr(request.sampling, key):
            raise RequestRejected("bad_grammar", f"the {name} engine keeps no grammar: {key} has no use with it")
