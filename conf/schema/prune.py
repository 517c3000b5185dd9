"""Fewer weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from conf.errors import UserError


class PruneMethod(Enum):
    """What decides which weights go.

    ``magnitude``, ``wanda`` and ``sparsegpt`` set single weights to zero: the smallest, those that the rows excite
    least, and these with what is left moved to make up for them. ``depth`` leaves out layers; ``width`` leaves out
    attention heads, channels of the feed-forward layers and channels of the hidden state.
    """

    magnitude = "magnitude"
    wanda = "wanda"
    sparsegpt = "sparsegpt"
    depth = "depth"
    width = "width"


class Pattern(Enum):
    """Where zeros may lie: anywhere, or two in each four neighbours of a row, which sparse tensor cores can skip."""

    unstructured = "unstructured"
    two_of_four = "two_of_four"


class LayerImportance(Enum):
    """What a layer is worth: how much it turns the hidden state, or how much the loss grows without it."""

    influence = "influence"
    loss = "loss"


STRUCTURED = (PruneMethod.depth, PruneMethod.width)
CALIBRATED = (PruneMethod.wanda, PruneMethod.sparsegpt)
"""Those that are llmcompressor's."""
_SHARES = {PruneMethod.depth: ("layers",), PruneMethod.width: ("heads", "ffn", "hidden")}


@dataclass(kw_only=True, slots=True)
class PruneSpec:
    """Weights set to zero, or layers, heads and channels left out."""

    method: PruneMethod = PruneMethod.magnitude
    sparsity: float = 0.5
    """Of magnitude, wanda and sparsegpt: share of zeros in each matrix."""
    pattern: Pattern = Pattern.unstructured
    """Of the same three."""
    ignore: list[str] = field(default_factory=lambda: ["lm_head"])
    """Of the same three: linear layers that stay as they are, by the end of their names."""
    layers: float = 1.0
    """Of depth: share of the layers kept."""
    importance: LayerImportance = LayerImportance.influence
    """Of depth: what a layer is worth."""
    heads: float = 1.0
    """Of width: share of the KV heads kept, each with the query heads that read it."""
    ffn: float = 1.0
    """Of width: share of the feed-forward channels kept."""
    hidden: float = 1.0
    """Of width: share of the hidden state's channels kept."""
    multiple: int = 32
    """Of width: numbers of channels are rounded to multiples of it, which kernels and quantizers want."""
    batch_size: int = 8
    """Rows that are calibrated on at once."""

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise UserError(f"prune.sparsity must be between 0 and 1, got {self.sparsity}")
        if self.pattern is Pattern.two_of_four and self.sparsity != 0.5:
            raise UserError(f"prune.sparsity must be 0.5 with prune.pattern=two_of_four, got {self.sparsity}")
        if self.pattern is Pattern.two_of_four and self.method in STRUCTURED:
            raise UserError(
                "prune.pattern=two_of_four goes with prune.method=magnitude|wanda|sparsegpt,"
                f" not with {self.method.value}"
            )
        for key in ("layers", "heads", "ffn", "hidden"):
            share = getattr(self, key)
            if not 0 < share <= 1:
                raise UserError(f"prune.{key} is the share that is kept and must be in (0, 1], got {share}")
            owner = next(method for method, keys in _SHARES.items() if key in keys)
            if share < 1 and self.method is not owner:
                raise UserError(f"prune.{key} goes with prune.method={owner.value}, not with {self.method.value}")
        keys = _SHARES.get(self.method, ())
        if keys and all(getattr(self, key) == 1 for key in keys):
            names = " or ".join(f"prune.{key}" for key in keys)
            raise UserError(f"{names} must be below 1 with prune.method={self.method.value}, or nothing is left out")
        for key in ("multiple", "batch_size"):
            if getattr(self, key) < 1:
                raise UserError(f"prune.{key} must be >= 1, got {getattr(self, key)}")

    @property
    def needs_rows(self) -> bool:
        """Whether what goes is chosen by the user's rows."""
        return self.method is not PruneMethod.magnitude
