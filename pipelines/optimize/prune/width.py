"""Heads, feed-forward channels and hidden channels that the rows excite least go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from conf.schema.prune import PruneSpec
from pipelines.optimize.padded import pad_all
from pipelines.optimize.prune.count import count_width
from pipelines.optimize.prune.kept import Kept
from pipelines.optimize.step.task import Example

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True, slots=True)
class Excitement:
    """Sums over the rows' tokens."""

    heads: dict[int, torch.Tensor] = field(default_factory=dict)
    """Of each layer: squares of what comes out of attention, float64 [heads x head_dim]."""
    ffn: dict[int, torch.Tensor] = field(default_factory=dict)
    """Of each layer: squares of what goes into down_proj, float64 [channels]."""
    hidden: torch.Tensor | None = None
    """Magnitudes of what the norms put out, over all layers, float64 [hidden]."""


def measure_excitement(model: Any, rows: Sequence[Example], batch_size: int) -> Excitement:
    """Runs rows through a decoder and adds up what they excite.

    Source: Minitron, https://arxiv.org/abs/2407.14679, section 2.2 (importance by activations).

    Args:
        model: A decoder with Llama's parts, on the device that calibrates.
        rows: What it is shown, prompts and answers.
        batch_size: Rows at once.
    """
    import torch

    found = Excitement()
    real: list[torch.Tensor] = []

    def squares(sums: dict[int, torch.Tensor], layer: int) -> Callable[..., None]:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            here = inputs[0][real[0]].double().square().sum(0)
            sums[layer] = sums[layer] + here if layer in sums else here

        return hook

    def magnitudes(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        here = output[real[0]].double().abs().sum(0)
        found.hidden = here if found.hidden is None else found.hidden + here

    handles = []
    for number, layer in enumerate(model.model.layers):
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(squares(found.heads, number)))
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(squares(found.ffn, number)))
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            handles.append(norm.register_forward_hook(magnitudes))
    try:
        with torch.inference_mode():
            for batch in pad_all(rows, batch_size):
                batch = batch.to(model.device)
                real[:] = [batch.real]
                model.model(input_ids=batch.ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def choose_width(model: Any, rows: Sequence[Example], spec: PruneSpec) -> Kept:
    """Returns what stays: of each kind as many as asked for, those that excite most.

    A channel and a head count with the weights that read them, so one that is loud but not listened to goes.

    Raises:
        StepFailed: when the shares cannot be met.
    """
    heads, ffn, hidden = count_width(spec, model.config)
    found = measure_excitement(model, rows, spec.batch_size)
    kept_heads, kept_ffn = {}, {}
    for number, layer in enumerate(model.model.layers):
        read = found.heads[number] * _column_norms(layer.self_attn.o_proj.weight)
        groups = read.reshape(model.config.num_key_value_heads, -1).sum(1)
        kept_heads[number] = _top(groups, heads)
        kept_ffn[number] = _top(found.ffn[number] * _column_norms(layer.mlp.down_proj.weight), ffn)
    assert found.hidden is not None
    return Kept(
        layers=list(range(len(model.model.layers))),
        heads=kept_heads if spec.heads < 1 else None,
        ffn=kept_ffn if spec.ffn < 1 else None,
        hidden=_top(found.hidden, hidden) if spec.hidden < 1 else None,
    )


def _column_norms(weight: torch.Tensor) -> torch.Tensor:
    """Returns the squared norm of what reads each input, float64 [in]."""
    return weight.detach().double().square().sum(0)


def _top(importance: torch.Tensor, count: int) -> list[int]:
    """Returns the indices of the largest, in ascending order; of equals the first."""
    order = importance.cpu().argsort(descending=True, stable=True)
    return sorted(order[:count].tolist())
