"""What the linear layers of a saved checkpoint hold: read from its files, not from the model that was saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.tensors import Weight, read_tensors, read_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """The weight of a linear layer inside a decoder layer."""

    name: str
    shape: tuple[int, int]
    zeros: int
    fours: int
    """Groups of four neighbours of a row with two zeros at least."""

    @classmethod
    def of(cls, weight: Weight) -> Matrix:
        """Counts a weight's zeros."""
        rows, columns = weight.shape
        whole = weight.zeros[:, : columns // 4 * 4].reshape(-1, 4)
        fours = int((whole.sum(axis=1) >= 2).sum())
        return cls(name=weight.name, shape=(rows, columns), zeros=int(weight.zeros.sum()), fours=fours)

    @property
    def size(self) -> int:
        """Number of values."""
        return self.shape[0] * self.shape[1]

    @property
    def groups(self) -> int:
        """Groups of four neighbours; what is left over at the end of a row is in none."""
        return self.shape[0] * (self.shape[1] // 4)

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.size


def read_matrices(folder: Path, config: Mapping[str, Any] | None = None) -> list[Matrix]:
    """Reads each linear layer's weight, one at a time.

    Args:
        folder: a checkpoint.
        config: its config.json; needed where weights are packed.
    """
    return [Matrix.of(weight) for weight in read_weights(read_tensors(folder), config or {}) if weight.is_linear]


def sparsity(matrices: list[Matrix]) -> float:
    """Returns the share of zeros in all of these."""
    return sum(matrix.zeros for matrix in matrices) / max(1, sum(matrix.size for matrix in matrices))


def two_of_four(matrices: list[Matrix]) -> float:
    """Returns the share of groups of four neighbours with two zeros at least."""
    return sum(matrix.fours for matrix in matrices) / max(1, sum(matrix.groups for matrix in matrices))


def describe_sparsity(matrices: list[Matrix]) -> dict[str, Any]:
    """Returns what a record says of zeros: over all linear layers, of one alone, and of the 2:4 pattern."""
    shares = [matrix.sparsity for matrix in matrices]
    return {
        "sparsity": round(sparsity(matrices), 6),
        "sparsity_min": round(min(shares, default=0.0), 6),
        "sparsity_max": round(max(shares, default=0.0), 6),
        "two_of_four": round(two_of_four(matrices), 6),
    }
