"""The zeros of a pruned student, which training must not fill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.tensors import is_linear

if TYPE_CHECKING:
    import torch

_PRUNED = 0.01
"""A matrix with a smaller share of zeros was not pruned: a few weights are zero by chance."""


@dataclass(frozen=True, slots=True)
class Zeros:
    """Where weights are zero."""

    masks: list[tuple[torch.nn.Parameter, torch.Tensor]]
    """Each pruned matrix, and true where it is not zero."""

    def restore(self) -> None:
        """Sets them to zero again: an optimizer's momentum and rounding move them whatever their gradients."""
        import torch

        with torch.no_grad():
            for weight, mask in self.masks:
                weight.mul_(mask)


def find_zeros(model: Any, wanted: bool) -> Zeros:
    """Returns the zeros of a decoder's pruned linear layers; none where none are wanted."""
    if not wanted:
        return Zeros([])
    found = []
    for name, weight in model.named_parameters():
        if is_linear(name, weight.ndim):
            mask = weight.detach() != 0
            if (~mask).sum().item() > _PRUNED * mask.numel():
                found.append((weight, mask))
    return Zeros(found)
