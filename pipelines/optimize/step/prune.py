"""Prunes a checkpoint, and measures what was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conf.schema.prune import STRUCTURED, Pattern, PruneMethod, PruneSpec
from pipelines.matrices import Matrix, describe_sparsity, read_matrices
from pipelines.optimize.decoder import check_plain, check_shape, load_decoder, pick_device, read_config, save_decoder
from pipelines.optimize.prune.calibrated import prune_by_rows
from pipelines.optimize.prune.depth import choose_depth
from pipelines.optimize.prune.kept import build_smaller
from pipelines.optimize.prune.magnitude import prune_by_magnitude
from pipelines.optimize.prune.width import choose_width
from pipelines.optimize.step.task import StepFailed, StepTask
from pipelines.tensors import count_parameters, is_linear

TOLERANCE = 0.01
"""SparseGPT rounds in blocks of columns, so a matrix's sparsity may be off by less than this."""
SHAPE_KEYS = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "hidden_size")


def run(task: StepTask) -> dict[str, Any]:
    """Prunes.

    Returns:
        Parameters before and after, the sparsity of the saved file, its shape, and what layers were worth.

    Raises:
        StepFailed: when the model or the numbers do not allow it, or what was saved is not what was asked for.
    """
    spec = task.spec.prune
    config = read_config(task.source)
    check_plain(config, "prune")
    measured = _leave_out(task, spec, config) if spec.method in STRUCTURED else _set_to_zero(task, spec)
    after = read_config(task.target)
    return {
        "method": spec.method.value,
        "parameters_before": count_parameters(task.source),
        "parameters": count_parameters(task.target),
        **measured,
        **{key: after[key] for key in SHAPE_KEYS if key in after},
    }


def _set_to_zero(task: StepTask, spec: PruneSpec) -> dict[str, Any]:
    import torch

    before = {matrix.name: matrix for matrix in read_matrices(task.source)}
    model = load_decoder(task.source, torch.float32)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and is_linear(f"{name}.weight", 2)
        and not any(name.endswith(ignored) for ignored in spec.ignore)
    }
    check_layers({name: module.in_features for name, module in layers.items()}, spec)
    if spec.method is PruneMethod.magnitude:
        prune_by_magnitude(layers, spec.sparsity, spec.pattern)
    else:
        rows = task.read_examples()
        torch.manual_seed(task.seed)
        model.to(pick_device())
        prune_by_rows(model, list(layers), rows, spec.method, spec.sparsity, spec.pattern)
    save_decoder(model, task.source, task.target)
    pruned = {f"{name}.weight" for name in layers}
    matrices = [matrix for matrix in read_matrices(task.target) if matrix.name in pruned]
    check_zeros(before, matrices, spec)
    return describe_sparsity(matrices)


def _leave_out(task: StepTask, spec: PruneSpec, config: dict[str, Any]) -> dict[str, Any]:
    check_shape(config, f"prune.method={spec.method.value}")
    model = load_decoder(task.source).to(pick_device())
    rows = task.read_examples()
    measured: dict[str, Any] = {}
    if spec.method is PruneMethod.depth:
        kept, worth = choose_depth(model, rows, spec)
        measured = {
            "layers_kept": kept.layers,
            "layer_importance": [round(value, 6) for value in worth],
            "importance": spec.importance.value,
        }
    else:
        kept = choose_width(model, rows, spec)
    save_decoder(build_smaller(model.cpu(), kept), task.source, task.target)
    check_smaller(task.source, task.target)
    return {**measured, **describe_sparsity(read_matrices(task.target))}


def check_layers(inputs: dict[str, int], spec: PruneSpec) -> None:
    """Checks that there is something to prune, and that the pattern fits it.

    Args:
        inputs: Width of the input of each linear layer to prune.
        spec: What is asked for.

    Raises:
        StepFailed: when not.
    """
    if not inputs:
        raise StepFailed(f"prune.ignore={list(spec.ignore)} leaves no linear layer of the decoder to prune")
    if spec.pattern is Pattern.two_of_four:
        odd = {name: width for name, width in inputs.items() if width % 4}
        if odd:
            name, width = next(iter(odd.items()))
            raise StepFailed(
                f"prune.pattern=two_of_four needs inputs that are multiples of 4, got {width} in {name}"
                f" and {len(odd) - 1} more; put them into prune.ignore or take prune.pattern=unstructured"
            )


def check_zeros(before: dict[str, Matrix], after: list[Matrix], spec: PruneSpec) -> None:
    """Checks that each saved matrix has the zeros that were asked for, and that some are new.

    Args:
        before: The source's matrices, by name.
        after: The saved matrices that were to be pruned.
        spec: What was asked for.

    Raises:
        StepFailed: when not.
    """
    if not after:
        raise StepFailed("none of the matrices to prune is in what was saved")
    for matrix in after:
        if matrix.sparsity < spec.sparsity - TOLERANCE:
            raise StepFailed(
                f"prune.method={spec.method.value} left {matrix.name} at a sparsity of {matrix.sparsity:.4f},"
                f" asked for prune.sparsity={spec.sparsity}"
            )
        grown = matrix.zeros - before[matrix.name].zeros
        if grown > 0 and matrix.sparsity > spec.sparsity + TOLERANCE:
            raise StepFailed(
                f"prune.method={spec.method.value} brought {matrix.name} to a sparsity of {matrix.sparsity:.4f},"
                f" asked for prune.sparsity={spec.sparsity}"
            )
        if spec.pattern is Pattern.two_of_four and matrix.fours < matrix.groups:
            raise StepFailed(
                f"prune.method={spec.method.value} left {matrix.groups - matrix.fours} groups of four with fewer"
                f" than two zeros in {matrix.name}"
            )
    if not any(matrix.zeros > before[matrix.name].zeros for matrix in after):
        raise StepFailed(
            f"prune.method={spec.method.value} changed nothing: the source already has prune.sparsity={spec.sparsity}"
        )


def check_smaller(source: Path, target: Path) -> None:
    """Checks that a saved checkpoint is smaller than the one that it came from.

    Raises:
        StepFailed: when it is not.
    """
    before, after = count_parameters(source), count_parameters(target)
    if after >= before:
        raise StepFailed(f"prune changed nothing: {after:,} parameters after, {before:,} before")
