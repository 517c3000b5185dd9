"""The step `quantize`: llm-compressor writes what vLLM loads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conf.schema.quantize import QuantizeSpec, Rounding
from pipelines.optimize.decoder import copy_tokenizer, load_decoder, narrow
from pipelines.optimize.quantize.scheme import choose_group, quantization_config
from pipelines.optimize.step.task import StepFailed, StepTask
from pipelines.tensors import read_tensors


def run(task: StepTask) -> dict[str, Any]:
    """Quantizes a checkpoint.

    Returns:
        ``bits`` of a quantized weight as it was saved, ``group_size`` (null: a whole row) and ``quantized_layers``.

    Raises:
        StepFailed: when the model's shapes do not allow it, or nothing was quantized.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    from llmcompressor import oneshot

    from pipelines.optimize.quantize.qat import share_elsewhere, train_rounded

    spec = task.spec.quantize
    is_trained = spec.rounding is Rounding.qat
    model = load_decoder(task.source, torch.float32 if is_trained else None)
    widths = _in_features(model, spec)
    group_size = choose_group(spec, widths)
    seen = train_rounded(model, task, group_size, frozenset(widths)) if is_trained else {}
    rows = _loader(task) if spec.needs_rows and not is_trained else None
    _leave_memory_unpinned()
    oneshot(
        model=model,
        recipe=_modifiers(spec, group_size),
        dataset=rows,
        num_calibration_samples=len(rows) if rows is not None else 0,
    )
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "quantization_scheme")}
    values = {name: module.in_features * module.out_features for name, module in layers.items()}
    model.save_pretrained(task.target, save_compressed=True)
    copy_tokenizer(task.source, task.target)
    if is_trained:
        narrow(task.source, task.target)
    bits = saved_bits(task.target, values)
    if not bits:
        raise StepFailed(f"quantize.ignore={spec.ignore} leaves no linear layer to quantize")
    measured = {"bits": bits, "group_size": group_size, "quantized_layers": len(values)}
    return measured | ({"elsewhere": share_elsewhere(task.target, seen)} if is_trained else {})


def saved_bits(folder: Path, values: Mapping[str, int]) -> float:
    """Returns the bits that a saved weight takes, scales included; 0 where there are none.

    Args:
        folder: the checkpoint.
        values: how many weights each layer has.

    Raises:
        StepFailed: when a layer was saved as it was: in 16 bits or more.
    """
    taken = dict.fromkeys(values, 0)
    for name, tensor in read_tensors(folder).items():
        layer, _, part = name.rpartition(".")
        if layer in taken and part.startswith("weight"):
            taken[layer] += 8 * tensor.num_bytes
    plain = next((layer for layer, bits in taken.items() if not 0 < bits < 16 * values[layer]), None)
    if plain is not None:
        raise StepFailed(
            f"{plain} was saved with {taken[plain] / values[plain]:.1f} bits a weight: nothing was quantized"
        )
    return sum(taken.values()) / sum(values.values()) if values else 0.0


def _in_features(model: Any, spec: QuantizeSpec) -> dict[str, int]:
    import torch

    return {
        name: module.in_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in spec.ignore
    }


def _modifiers(spec: QuantizeSpec, group_size: int | None) -> list[Any]:
    """The step in llm-compressor's terms, in the order in which it applies them."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    wanted = quantization_config(spec, group_size)
    how: dict[str, Any] = {key: wanted[key] for key in ("config_groups", "ignore", "kv_cache_scheme")}
    made: list[Any] = []
    if spec.smooth is not None:
        made.append(SmoothQuantModifier(smoothing_strength=spec.smooth))
    if spec.rounding is Rounding.awq:
        made.append(AWQModifier())
    made.append((GPTQModifier if spec.rounding is Rounding.gptq else QuantizationModifier)(**how))
    return made


def _loader(task: StepTask) -> Any:
    """The rows, one at a time: padding would count in the statistics of activations."""
    import torch
    from torch.utils.data import DataLoader

    rows = [torch.tensor(row.prompt + (row.answer or [])) for row in task.read_examples()]
    whole = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]
    return DataLoader(whole, batch_size=1)  # type: ignore[arg-type]


def _leave_memory_unpinned() -> None:
    """Pinning memory needs a device; without one AWQ fails on it (llm-compressor 0.14, pipelines/cache.py)."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda self, batch_index: None  # type: ignore[method-assign]
