"""Weights that are trained where they will lie: each forward pass sees them rounded, gradients pass through as if not.

Source: torchao/quantization/qat (0.18); Jacob et al., https://arxiv.org/abs/1712.05877.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.optimize.decoder import pick_device
from pipelines.optimize.distill.course import Worker, train
from pipelines.optimize.step.task import StepTask

if TYPE_CHECKING:
    import torch


def train_rounded(
    model: Any, task: StepTask, group_size: int | None, layers: frozenset[str]
) -> dict[str, torch.Tensor]:
    """Trains a model in place, with some of its layers rounded as they will be saved.

    Args:
        model: A decoder in float32.
        task: The step.
        group_size: Weights that share a scale; None is a whole row.
        layers: The names of the linear layers.

    Returns:
        Each layer's weight as the training saw it last: float32, on the grid.
    """
    import torch
    from torchao.quantization import quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig, QATStep
    from torchao.quantization.quant_primitives import TorchAODType

    device = pick_device()
    shared = PerAxis(0) if group_size is None else PerGroup(group_size)
    rounded = IntxFakeQuantizeConfig(TorchAODType.INT4, granularity=shared, is_symmetric=True)
    quantize_(
        model.to(device),
        QATConfig(weight_config=rounded, step=QATStep.PREPARE),
        filter_fn=lambda module, name: isinstance(module, torch.nn.Linear) and name in layers,
    )
    found = train(model, task.spec.quantize.qat, task.taught(), Worker(device=device), None)
    task.say(f"trained {found['steps']} steps, loss {found['loss_last']:.4g}")
    with torch.no_grad():
        modules = dict(model.named_modules())
        seen = {name: modules[name].weight_fake_quantizer(modules[name].weight).cpu() for name in sorted(layers)}
    quantize_(model, QATConfig(step=QATStep.CONVERT))
    model.cpu()
    return seen


def share_elsewhere(folder: Path, seen: Mapping[str, torch.Tensor]) -> float:
    """Returns the share of saved weights that lie in another place of the grid than the training saw them.

    torchao and compressed-tensors put a group's scale at its largest weight over 7.5, so that weight lies half-way
    between two places; which of them it gets may differ.

    Args:
        folder: A checkpoint with packed weights.
        seen: Of `train_rounded`.
    """
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    elsewhere = total = 0
    for layer, weight in seen.items():
        packed, scale = tensors[f"{layer}.weight_packed"], tensors[f"{layer}.weight_scale"].float()
        places = unpack_from_int32(packed, 4, torch.Size(weight.shape)).float()
        wide = scale.repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
        elsewhere += int((torch.round(weight / wide) != places).sum())
        total += weight.numel()
    return elsewhere / total
