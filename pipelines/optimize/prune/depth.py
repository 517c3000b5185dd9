"""Layers that matter least on the rows go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from conf.schema.prune import LayerImportance, PruneSpec
from pipelines.optimize.padded import Padded, pad_all
from pipelines.optimize.prune.count import count_kept
from pipelines.optimize.prune.kept import Kept
from pipelines.optimize.step.task import Example

if TYPE_CHECKING:
    import torch


def measure_influence(model: Any, rows: Sequence[Example], batch_size: int) -> list[float]:
    """Returns how much each layer turns the hidden state: 1 - cosine of its input and output, mean over tokens.

    Source: ShortGPT, https://arxiv.org/abs/2403.03853, block influence.

    Args:
        model: A decoder with Llama's parts, on the device that calibrates.
        rows: What it is shown, prompts and answers.
        batch_size: Rows at once.
    """
    import torch

    sums, tokens = [0.0] * len(model.model.layers), 0
    real: list[torch.Tensor] = []

    def turned(number: int) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.cosine_similarity(inputs[0][real[0]].float(), after[real[0]].float(), dim=-1)
            sums[number] += (1 - cosine.double()).sum().item()

        return hook

    handles = [layer.register_forward_hook(turned(number)) for number, layer in enumerate(model.model.layers)]
    try:
        with torch.inference_mode():
            for batch in pad_all(rows, batch_size):
                batch = batch.to(model.device)
                real[:] = [batch.real]
                model.model(input_ids=batch.ids, use_cache=False)
                tokens += int(batch.real.sum())
    finally:
        for handle in handles:
            handle.remove()
    return [total / tokens for total in sums]


def measure_loss_without(model: Any, rows: Sequence[Example], batch_size: int) -> list[float]:
    """Returns the loss of the model without each layer: of the answers' tokens, or of all where no row has an answer.

    Args:
        model: A decoder with Llama's parts, on the device that calibrates.
        rows: What it is shown.
        batch_size: Rows at once.
    """
    layers = model.model.layers
    losses = []
    for left_out in range(len(layers)):
        model.model.layers = type(layers)(layer for at, layer in enumerate(layers) if at != left_out)
        # The loop over the layers is bounded by the configuration's number.
        model.model.config.num_hidden_layers -= 1
        try:
            losses.append(_mean_loss(model, rows, batch_size))
        finally:
            model.model.layers = layers
            model.model.config.num_hidden_layers += 1
    return losses


def _mean_loss(model: Any, rows: Sequence[Example], batch_size: int) -> float:
    import torch

    has_answers = any(row.answer for row in rows)
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for batch in pad_all(rows, batch_size):
            batch = _ask_everywhere(batch) if not has_answers else batch
            batch = batch.to(model.device)
            hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[batch.asks]).float()
            total += torch.nn.functional.cross_entropy(logits, batch.next_ids, reduction="sum").item()
            tokens += len(logits)
    return total / max(1, tokens)


def _ask_everywhere(batch: Padded) -> Padded:
    """Every token but a row's first is to be predicted."""
    asks = batch.real.roll(-1, dims=1)
    asks[:, -1] = False
    return Padded(ids=batch.ids, real=batch.real, asks=asks)


def choose_depth(model: Any, rows: Sequence[Example], spec: PruneSpec) -> tuple[Kept, list[float]]:
    """Returns the layers that stay, and what each layer was worth.

    Raises:
        StepFailed: when the share leaves nothing out.
    """
    count = count_kept("prune.layers", spec.layers, len(model.model.layers))
    measure = measure_influence if spec.importance is LayerImportance.influence else measure_loss_without
    worth = measure(model, rows, spec.batch_size)
    best = sorted(range(len(worth)), key=lambda layer: worth[layer], reverse=True)[:count]
    return Kept(layers=sorted(best)), worth
