"""Wanda and SparseGPT, of llmcompressor: weights go that matter little on the user's rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conf.schema.prune import Pattern, PruneMethod
from pipelines.optimize.padded import pad_rows
from pipelines.optimize.step.task import Example, StepFailed


def prune_by_rows(
    model: Any, names: list[str], rows: Sequence[Example], method: PruneMethod, sparsity: float, pattern: Pattern
) -> None:
    """Sets weights to zero, in place; SparseGPT also moves the others.

    Source: Wanda, https://arxiv.org/abs/2306.11695; SparseGPT, https://arxiv.org/abs/2301.00774.

    Args:
        model: A causal language model on the device that calibrates.
        names: Of its linear layers to prune.
        rows: What it is shown, prompts and answers.
        method: wanda or sparsegpt.
        sparsity: Share of each matrix.
        pattern: Where zeros may lie.

    Raises:
        StepFailed: when llmcompressor is missing.
    """
    try:
        from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
        from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier  # pyright: ignore[reportMissingImports]
        from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise StepFailed(
            f"prune.method={method.value} needs llmcompressor ({error}): `make optimize` installs it;"
            " prune.method=magnitude|depth|width need nothing"
        ) from error
    from loguru import logger
    from torch.utils.data import DataLoader

    logger.disable("llmcompressor")
    structure = "2:4" if pattern is Pattern.two_of_four else "0:0"
    kind = WandaPruningModifier if method is PruneMethod.wanda else SparseGPTModifier
    modifier = kind(sparsity=sparsity, mask_structure=structure, targets=names)
    # One row at a time: both methods would count padding as tokens.
    shown: Any = [pad_rows([row]) for row in rows]
    loader = DataLoader(shown, batch_size=1, collate_fn=_to_inputs)
    oneshot(model=model, dataset=loader, recipe=modifier, num_calibration_samples=len(rows))


def _to_inputs(batch: list[Any]) -> dict[str, Any]:
    return {"input_ids": batch[0].ids, "attention_mask": batch[0].real.long()}
