"""What a saved checkpoint really holds: read from its safetensors files, not from the model that was saved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOLERANCE = 0.01
"""SparseGPT rounds in blocks of columns, so a matrix's sparsity may be off by less than this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """The weight of a linear layer inside a decoder layer."""

    name: str
    shape: tuple[int, int]
    zeros: int
    fours: int
    """Groups of four neighbours of a row with two zeros at least."""

    @property
    def size(self) -> int:
        """Number of values."""
        return self.shape[0] * self.shape[1]

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.size


def is_linear(name: str, dimensions: int) -> bool:
    """Whether a tensor is the weight of a linear layer inside a decoder layer."""
    return ".layers." in name and name.endswith(".weight") and dimensions == 2


def read_matrices(folder: Path) -> list[Matrix]:
    """Reads each linear layer's weight, one at a time."""
    found = []
    for name, tensor in _read(folder):
        if is_linear(name, tensor.ndim):
            zero = tensor == 0
            width = tensor.shape[1] // 4 * 4
            fours = zero[:, :width].reshape(-1, 4).sum(1) >= 2
            shape = (tensor.shape[0], tensor.shape[1])
            found.append(Matrix(name=name, shape=shape, zeros=int(zero.sum()), fours=int(fours.sum())))
    return found


def count_parameters(folder: Path) -> int:
    """Returns how many values the files hold; tied ones are stored, and count, once."""
    return sum(tensor.numel() for _, tensor in _read(folder))


def sparsity(matrices: list[Matrix]) -> float:
    """Returns the share of zeros in all of these."""
    return sum(matrix.zeros for matrix in matrices) / max(1, sum(matrix.size for matrix in matrices))


def describe_sparsity(matrices: list[Matrix]) -> dict[str, Any]:
    """Returns what a record says of zeros: over all linear layers, of one alone, and of the 2:4 pattern."""
    shares = [matrix.sparsity for matrix in matrices]
    fours = sum(matrix.fours for matrix in matrices) / max(1, sum(matrix.size for matrix in matrices) / 4)
    return {
        "sparsity": round(sparsity(matrices), 6),
        "sparsity_min": round(min(shares, default=0.0), 6),
        "sparsity_max": round(max(shares, default=0.0), 6),
        "two_of_four": round(fours, 6),
    }


def _read(folder: Path) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                yield name, file.get_tensor(name)
