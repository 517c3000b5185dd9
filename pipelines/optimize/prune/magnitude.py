"""The smallest weights of each matrix go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conf.schema.prune import Pattern

if TYPE_CHECKING:
    import torch


def prune_by_magnitude(layers: dict[str, torch.nn.Linear], sparsity: float, pattern: Pattern) -> None:
    """Sets weights to zero, in place.

    Args:
        layers: Linear layers, by name.
        sparsity: Share of each matrix.
        pattern: Where zeros may lie; of two_of_four the sparsity is one half.
    """
    from torch.nn.utils import prune

    for layer in layers.values():
        if pattern is Pattern.two_of_four:
            prune.custom_from_mask(layer, "weight", _larger_two_of_four(layer.weight))
        else:
            prune.l1_unstructured(layer, "weight", amount=sparsity)
        prune.remove(layer, "weight")


def _larger_two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """Returns a mask of a matrix [out, in], in a multiple of four: of each four neighbours the two larger stay."""
    import torch

    larger = weight.detach().abs().float().reshape(-1, 4).topk(2, dim=1).indices
    mask = torch.zeros(weight.numel() // 4, 4, dtype=torch.bool, device=weight.device)
    return mask.scatter_(1, larger, True).view_as(weight)
