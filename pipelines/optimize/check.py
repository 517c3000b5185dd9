"""What cannot work is refused before anything long begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.connect import local_devices
from conf.errors import UserError
from conf.schema.step import StepKind, StepSpec
from pipelines.optimize.export.known import refusal
from pipelines.optimize.quantize.scheme import GROUPS
from serve.engine.hardware import host_memory_bytes

SHARE = 0.8
"""Of the host's memory that a step may fill."""
COPIES = 3.0
"""Bytes of memory for each byte of 16-bit weights: the model in float32, and what is gathered beside it."""


def check_step(name: str, step: StepSpec, config: Mapping[str, Any]) -> None:
    """Checks a step against the model's shapes and this machine.

    Args:
        name: the step's.
        step: what it does.
        config: the model's config.json.

    Raises:
        UserError: when it cannot work.
    """
    if step.kind is StepKind.export and (why := refusal(config, step.export)):
        raise UserError(f"recipe.steps.{name}: {why}")
    if step.kind is not StepKind.quantize:
        return
    key = f"recipe.steps.{name}.quantize"
    if step.quantize.kv_cache and not local_devices():
        raise UserError(f"{key}.kv_cache=true needs an NVIDIA GPU to be served: vLLM has no FP8 cache on a CPU")
    size = step.quantize.group_size
    for width in ("hidden_size", "intermediate_size"):
        value = config.get(width)
        if size is not None and isinstance(value, int) and value % size:
            fits = [group for group in GROUPS if value % group == 0]
            hint = f" ({', '.join(map(str, fits))} would)" if fits else ""
            raise UserError(f"{key}.group_size must divide the model's {width}={value}, got {size}{hint}")


def check_room(path: str) -> None:
    """Checks that the model fits into this machine's memory while it is worked on.

    Raises:
        UserError: when it does not.
    """
    files = [file for file in Path(path).iterdir() if file.suffix in (".safetensors", ".bin")]
    if not any(file.suffix == ".safetensors" for file in files):
        raise UserError(f"model.path={path}: no *.safetensors in it")
    weights, memory = sum(file.stat().st_size for file in files), host_memory_bytes()
    if weights * COPIES > memory * SHARE:
        raise UserError(
            f"model.path={path}: {weights / 2**30:,.1f} GiB of weights take about {weights * COPIES / 2**30:,.1f} GiB"
            f" while they are worked on, this machine has {memory / 2**30:,.1f} GiB"
        )
