"""A scheme in compressed-tensors' terms. Nothing here imports a library: what is wrong is known before one is loaded.

Source: compressed_tensors/quantization/quant_scheme.py (0.19), the presets FP8, FP8_DYNAMIC, W8A8 and W4A16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conf.schema.quantize import WHOLE_ROW, QuantizeSpec, Scheme
from pipelines.optimize.step.task import StepFailed

GROUPS = (128, 64, 32)
"""Weights that may share a scale in 4 bits: the first that fits. vLLM's kernels know these.

Source: vllm/model_executor/layers/quantization/utils/marlin_utils.py (0.26-0.32).
"""


def weight_args(spec: QuantizeSpec, group_size: int | None) -> dict[str, Any]:
    """Returns how weights are quantized: symmetric, one scale a row, or one for ``group_size`` weights of it."""
    is_float = spec.scheme in (Scheme.fp8, Scheme.fp8_static)
    args: dict[str, Any] = {
        "num_bits": 4 if spec.scheme is Scheme.w4a16 else 8,
        "type": "float" if is_float else "int",
        "symmetric": True,
        "dynamic": False,
    }
    if group_size is not None:
        return {**args, "strategy": "group", "group_size": group_size}
    return {**args, "strategy": "tensor" if spec.scheme is Scheme.fp8_static else "channel"}


def activation_args(spec: QuantizeSpec) -> dict[str, Any] | None:
    """Returns how a linear layer's input is quantized; null leaves it as it is."""
    if spec.scheme is Scheme.w4a16:
        return None
    is_static = spec.scheme in (Scheme.fp8_static, Scheme.w8a8_static)
    return {
        "num_bits": 8,
        "type": "float" if spec.scheme in (Scheme.fp8, Scheme.fp8_static) else "int",
        "symmetric": True,
        "dynamic": not is_static,
        "strategy": "tensor" if is_static else "token",
    }


def kv_cache_args() -> dict[str, Any]:
    """Returns how keys and values are quantized: FP8, a scale for each layer."""
    return {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": "tensor"}


def quantization_config(spec: QuantizeSpec, group_size: int | None) -> dict[str, Any]:
    """Returns what a quantized checkpoint's config.json says under ``quantization_config``.

    Args:
        spec: the step.
        group_size: of `choose_group`.
    """
    forms = {Scheme.fp8: "float", Scheme.fp8_static: "float", Scheme.w4a16: "pack"}
    group: dict[str, Any] = {"targets": ["Linear"], "weights": weight_args(spec, group_size)}
    return {
        "quant_method": "compressed-tensors",
        "format": f"{forms.get(spec.scheme, 'int')}-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "input_activations": activation_args(spec)}},
        "kv_cache_scheme": kv_cache_args() if spec.kv_cache else None,
        "ignore": list(spec.ignore),
    }


def choose_group(spec: QuantizeSpec, in_features: Mapping[str, int]) -> int | None:
    """Returns how many weights share a scale; null is a whole row.

    Args:
        spec: the step.
        in_features: of each layer that is quantized, by name.

    Raises:
        StepFailed: when no size fits every layer, or the user's does not.
    """
    if spec.scheme is not Scheme.w4a16 or spec.group_size == WHOLE_ROW:
        return None
    for size in (spec.group_size,) if spec.group_size is not None else GROUPS:
        odd = next((name for name, width in in_features.items() if width % size), None)
        if odd is None:
            return size
        if spec.group_size is not None:
            raise StepFailed(f"quantize.group_size must divide the inputs of {odd}, {in_features[odd]}, got {size}")
    name = next(name for name, width in in_features.items() if width % GROUPS[-1])
    raise StepFailed(
        f"quantize.scheme=w4a16 needs inputs of a multiple of {GROUPS[-1]}, {name} has {in_features[name]};"
        " name it in quantize.ignore"
    )
