"""What a model takes: bytes on disk, parameters, bits and zeros, as they really lie in its files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conf.errors import UserError
from pipelines.matrices import Matrix, sparsity, two_of_four
from pipelines.tensors import read_tensors, read_weights

WEIGHTS = ("*.safetensors", "*.onnx", "*.onnx.data", "*.onnx_data", "*.gguf", "*.bin")
"""Files that hold weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Of a model's folder. What its files do not say is null."""

    disk_bytes: int
    """Of the files that hold weights."""
    parameters: int | None
    """Of the model itself: a packed value is one, a scale is none."""
    bits_per_parameter: float | None
    """All bytes of weights, scales and zero points, spread over the parameters."""
    linear_parameters: int | None
    """In the matrices of layers, which is what is quantized and pruned."""
    linear_bits: float | None
    """Per parameter of these, scales included."""
    linear_sparsity: float | None
    """The share of these that stands for 0."""
    two_of_four: float | None
    """Of each four neighbours along a row of these matrices, the share with two zeros or more."""

    def plain(self) -> dict[str, Any]:
        """As what JSON can hold."""
        return asdict(self)


def weight_bytes(folder: Path) -> int:
    """Returns the bytes of a folder's files that hold weights; Mistral's own copy of the same weights is left out."""
    files = {path for pattern in WEIGHTS for path in folder.glob(pattern)}
    return sum(path.stat().st_size for path in files if not path.name.startswith("consolidated"))


def measure_size(folder: Path, config: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> Size:
    """Measures a model's folder.

    Args:
        folder: the model's.
        config: its config.json.
        known: what its artifact record says was measured; counts where the files themselves do not say.

    Raises:
        UserError: when a file cannot be read.
    """
    count = parameters_bytes = linear_bytes = 0
    matrices: list[Matrix] = []
    try:
        for weight in read_weights(read_tensors(folder), config):
            count, parameters_bytes = count + math.prod(weight.shape), parameters_bytes + weight.num_bytes
            if weight.is_linear:
                linear_bytes += weight.num_bytes
                matrices.append(Matrix.of(weight))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model.path={folder}: its weights cannot be read: {error}") from error
    linear = sum(matrix.size for matrix in matrices)
    told = (known or {}).get("parameters")
    return Size(
        disk_bytes=weight_bytes(folder),
        parameters=count or (told if isinstance(told, int) else None),
        bits_per_parameter=8 * parameters_bytes / count if count else None,
        linear_parameters=linear or None,
        linear_bits=8 * linear_bytes / linear if linear else None,
        linear_sparsity=sparsity(matrices) if matrices else None,
        two_of_four=two_of_four(matrices) if any(matrix.groups for matrix in matrices) else None,
    )
