"""What vLLM is started with: its engine arguments and its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conf.schema.engine import Device, EngineSpec
from conf.schema.model import ModelSpec
from conf.schema.task import Task
from serve.engine.adapters import highest_rank
from serve.engine.capability import overridden
from serve.engine.checkpoint import plain_config
from serve.engine.dtype import bulk_memory_bytes, served_dtype
from serve.engine.hardware import gpu_memory_bytes, host_memory_bytes
from serve.engine.model_size import ModelSize, measure_model, plain_parameters
from serve.engine.placement import cpu_threads
from serve.engine.room import cpu_kv_bytes, holds_graphs, leaves_graphs
from serve.engine.vllm.graphs import UNCOMPILED, needs_no_compiling, with_graphs

SHARED_FRACTION = 0.9
"""Of a GPU's memory that engines share; the rest is for what CUDA and others hold."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Source: vllm/config/lora.py, MaxLoRARanks (0.26-0.32)."""
MAX_ACTIVE_ADAPTERS = 8
"""Adapters in one batch on a GPU: each takes memory there, and rows in a batch rarely ask for more."""
MAX_LOADED_ADAPTERS = 64
"""Adapters kept in the host's memory; the others are read from their folders again when they are asked for."""


def prepare_engine(
    model: ModelSpec,
    spec: EngineSpec,
    device: Device,
    share: int,
    task: Task,
    is_inline: bool = False,
    is_bulk: bool = False,
) -> dict[str, Any]:
    """Sets what vLLM reads from the environment, before it is imported, and returns its engine arguments.

    What the user set wins: the environment, then `engine.env`; and `engine.vllm`.

    Args:
        model: the checkpoint and its adapters.
        spec: sizes and vLLM's own arguments.
        device: cpu or cuda, decided.
        share: engines that share this machine's cores; only the CPU cares.
        task: what its requests ask for.
        is_inline: whether the engine computes in this process.
        is_bulk: whether it is a job's, where as many sequences as may be are there at any time.

    Raises:
        UserError: when an adapter's folder cannot be read.
    """
    config = plain_config(model.path)
    memory = bulk_memory_bytes(spec, host_memory_bytes()) if is_bulk else 0.0
    dtype = served_dtype(model.dtype, device, plain_parameters(overridden(config, spec.vllm), spec.vllm), memory)
    arguments = engine_arguments(model, spec, device, dtype, task)
    captures = device is not Device.cpu and _has_room(model, spec, arguments, config)
    defaults = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    if device is Device.cpu:
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it to the actor's CPUs
        cache = spec.kv_cache_bytes or cpu_kv_bytes(_measured(model, dtype, arguments, config, device))
        arguments.setdefault("kv_cache_memory_bytes", cache)
        defaults |= cpu_threads(spec.world_size, share, is_inline)
    elif captures and needs_no_compiling(arguments, config):
        # ModelOpt says beside config.json that weights have fewer bits
        defaults |= {} if (Path(model.path).expanduser() / "hf_quant_config.json").exists() else {UNCOMPILED: "1"}
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    os.environ.update(spec.env)
    return with_graphs(arguments, os.environ.get(UNCOMPILED) == "1") if captures else arguments


def engine_arguments(
    model: ModelSpec, spec: EngineSpec, device: Device, dtype: str, task: Task = Task.generate
) -> dict[str, Any]:
    """Returns vLLM's engine arguments, but for its graphs; what `engine.vllm` holds wins.

    Args:
        model: the checkpoint and its adapters.
        spec: sizes and vLLM's own arguments.
        device: cpu or cuda, decided.
        dtype: of `served_dtype`.
        task: what its requests ask for.

    Raises:
        UserError: when an adapter's folder cannot be read.
    """
    arguments: dict[str, Any] = {
        "model": model.path,
        "tokenizer": model.tokenizer or model.path,
        "dtype": dtype,
        "trust_remote_code": model.trust_remote_code,
        # said always: vLLM would run a model with sentence-transformers' files as a pooling model
        "runner": "generate" if task is Task.generate else "pooling",
        "tensor_parallel_size": spec.tensor_parallel_size,
        "pipeline_parallel_size": spec.pipeline_parallel_size,
        "max_num_seqs": spec.max_num_seqs,
        "disable_log_stats": True,
        "worker_extension_cls": "serve.engine.vllm.worker.Worker",
        # "auto" tries a second compiler for what the first one refuses, but an engine keeps the compiler of its first
        # request: a later schema that needs the other one is then silently not kept (0.26-0.32). And where white space
        # is free, models spend all their tokens on it (3 of 6 answers of the demo's model)
        "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
    }
    if spec.max_model_len is not None:
        arguments["max_model_len"] = spec.max_model_len
    if spec.world_size > 1:
        # in a placement group vLLM would take Ray's executor, which wants a bundle for each rank; see placement.py
        arguments["distributed_executor_backend"] = "mp"
    if model.adapters:
        arguments |= _adapter_arguments(model, device)
    if device is Device.cpu:
        arguments["enforce_eager"] = True  # compiling takes longer than a small model's whole job
    elif spec.kv_cache_bytes is not None:
        arguments["kv_cache_memory_bytes"] = spec.kv_cache_bytes
        if spec.engines_per_device > 1:
            # vLLM refuses to start where less than this is free, whatever its cache is told to take
            arguments["gpu_memory_utilization"] = SHARED_FRACTION / spec.engines_per_device
    return arguments | spec.vllm


def _has_room(model: ModelSpec, spec: EngineSpec, arguments: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether this machine's GPU has room for graphs of large steps; those of which nothing is known have none."""
    memory = gpu_memory_bytes() if leaves_graphs(arguments) else None
    size = None if memory is None else _measured(model, model.dtype, arguments, config, Device.cuda)
    if memory is None or size is None:
        return False
    weights = size.device_weight_bytes(arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"])
    cache, fraction = arguments.get("kv_cache_memory_bytes"), spec.vllm.get("gpu_memory_utilization")
    return holds_graphs(memory, weights, spec.engines_per_device, cache, fraction)


def _measured(
    model: ModelSpec, dtype: str, arguments: Mapping[str, Any], config: Mapping[str, Any], device: Device
) -> ModelSize | None:
    """Returns a model's size; null where its config.json is no decoder's, or cannot be read."""
    try:
        known, folder = overridden(config, arguments), str(Path(model.path).expanduser())
        return measure_model(known, folder, dtype, arguments, device.value) if known else None
    except (ArithmeticError, KeyError, TypeError, ValueError):
        return None


def _adapter_arguments(model: ModelSpec, device: Device) -> dict[str, Any]:
    rank, count = highest_rank(model), len(model.adapters)
    active, loaded = min(count, MAX_ACTIVE_ADAPTERS), min(count, MAX_LOADED_ADAPTERS)
    if device is Device.cpu:
        # the CPU's kernels take a row without an adapter for one with the adapter in the last place, index -1
        # (0.26-0.32, lora/ops/torch_ops): that place must stay empty, and empty it does nothing
        active = loaded = count + 1
    return {
        "enable_lora": True,
        "max_lora_rank": next(allowed for allowed in LORA_RANKS if allowed >= rank),
        "max_loras": active,
        "max_cpu_loras": loaded,
    }


def with_objects(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments with vLLM's own object where vLLM sets attributes on it before it converts it."""
    from vllm.config import StructuredOutputsConfig

    grammar = arguments["structured_outputs_config"]
    if not isinstance(grammar, Mapping):
        return arguments
    return {**arguments, "structured_outputs_config": StructuredOutputsConfig(**grammar)}
