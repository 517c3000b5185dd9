"""What cannot work is refused before anything long begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.connect import local_devices
from conf.errors import UserError
from conf.schema.distill import Answers, DistillSpec
from conf.schema.prune import STRUCTURED, Pattern, PruneSpec
from conf.schema.quantize import QuantizeSpec, Scheme
from conf.schema.step import StepKind, StepSpec
from pipelines.optimize.decoder import check_shape, read_config
from pipelines.optimize.export.known import refusal
from pipelines.optimize.quantize.scheme import GROUPS
from pipelines.optimize.shapes import is_known, layer_widths, shape_after
from pipelines.optimize.step.distill import check_pair
from pipelines.optimize.step.prune import check_layers
from pipelines.optimize.step.task import StepFailed
from serve.engine.hardware import host_memory_bytes

SHARE = 0.8
"""Of the host's memory that a step may fill."""
COPIES = 3.0
"""Bytes of memory for each byte of 16-bit weights: the model in float32, and what is gathered beside it."""
PACKED = 32
"""What a layer's inputs in 4 bits must be a multiple of; on a CPU its outputs too, while Marlin on a GPU pads them.

Source: vllm/model_executor/kernels/linear/mixed_precision/cpu.py and marlin.py (0.32).
"""


def check_steps(steps: Mapping[str, StepSpec], config: Mapping[str, Any]) -> None:
    """Checks a recipe's steps against the shape that each will be given, and this machine.

    Args:
        steps: in their order, by name.
        config: the model's config.json.

    Raises:
        UserError: for the first that cannot work.
    """
    shape, changed = dict(config), False
    for name, step in steps.items():
        try:
            _check_step(step, shape, config, changed)
            if is_known(shape):
                shape = shape_after(step, shape)
        except StepFailed as failure:
            raise UserError(f"recipe.steps.{name}: {failure}") from failure
        changed = changed or step.kind in (StepKind.prune, StepKind.distill)


def _check_step(step: StepSpec, shape: Mapping[str, Any], model: Mapping[str, Any], changed: bool) -> None:
    if step.kind is StepKind.export and (why := refusal(shape, step.export)):
        raise StepFailed(why)
    if step.kind is StepKind.quantize:
        _check_quantize(step.quantize, shape)
    if step.kind is StepKind.prune:
        _check_prune(step.prune, shape)
    if step.kind is StepKind.distill:
        _check_distill(step.distill, shape, model, changed)


def _check_quantize(spec: QuantizeSpec, shape: Mapping[str, Any]) -> None:
    if spec.kv_cache and not local_devices():
        raise StepFailed("quantize.kv_cache=true needs an NVIDIA GPU to be served: vLLM has no FP8 cache on a CPU")
    size = spec.group_size
    for width in ("hidden_size", "intermediate_size"):
        value = shape.get(width)
        if size is not None and isinstance(value, int) and value % size:
            fits = [group for group in GROUPS if value % group == 0]
            hint = f" ({', '.join(map(str, fits))} would)" if fits else ""
            raise StepFailed(f"quantize.group_size must divide the model's {width}={value}, got {size}{hint}")
    if spec.scheme is not Scheme.w4a16 or not is_known(shape):
        return
    for layer, (inputs, outputs) in layer_widths(shape).items():
        is_odd = inputs % PACKED or (outputs % PACKED and not local_devices())
        if is_odd and not any(name.endswith(layer) for name in spec.ignore):
            raise StepFailed(
                f"quantize.scheme=w4a16 needs layers in multiples of {PACKED}, or vLLM has no kernel here: {layer} has"
                f" {inputs} inputs and {outputs} outputs; name it in quantize.ignore, or take quantize.scheme=w8a8"
            )


def _check_prune(spec: PruneSpec, shape: Mapping[str, Any]) -> None:
    if spec.method in STRUCTURED:
        check_shape(dict(shape), f"prune.method={spec.method.value}")
    if spec.pattern is Pattern.two_of_four and is_known(shape):
        widths = {layer: inputs for layer, (inputs, _) in layer_widths(shape).items()}
        check_layers({layer: widths[layer] for layer in widths if not any(layer in name for name in spec.ignore)}, spec)


def _check_distill(spec: DistillSpec, shape: Mapping[str, Any], model: Mapping[str, Any], changed: bool) -> None:
    if spec.teacher is not None:
        check_pair(dict(shape), read_config(Path(spec.teacher).expanduser()))
        return
    check_pair(dict(shape), dict(model))
    if not changed and (spec.kl_weight > 0 or spec.answers is Answers.teacher):
        raise StepFailed(
            "distill has nothing to learn as a recipe's first step: the student is the teacher itself; put a prune"
            " step before it, or set distill.teacher"
        )


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
