"""The weights in a folder's safetensors files: their shapes and zeros, packed ones too. Needs no torch."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CODES = {"F64": "<u8", "F32": "<u4", "F16": "<u2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
"""How a dtype's values are read: floats as their bits. All others take one byte."""
FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}
"""All but their sign bit is 0 where they are."""
NOT_WEIGHTS = ("weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx", "input_scale", "global_scale")
"""Ends of the names of what stands beside a weight and is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A tensor in a file."""

    dtype: str
    """safetensors' own name."""
    shape: tuple[int, ...]
    data: memoryview

    @property
    def num_bytes(self) -> int:
        """Of its values."""
        return len(self.data)

    def values(self) -> np.ndarray:
        """Its values; of floats their bits, as unsigned integers."""
        code = CODES.get(self.dtype) or ("u1" if self.dtype in FLOATS or self.dtype == "U8" else "i1")
        return np.frombuffer(self.data, code).reshape(self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """A parameter of the model, as it is stored."""

    name: str
    """Without what compression adds to it."""
    shape: tuple[int, ...]
    """Of the parameter itself, however it is packed."""
    num_bytes: int
    """With its scales and zero points."""
    zeros: np.ndarray
    """bool, of its shape: which values stand for 0."""

    @property
    def is_linear(self) -> bool:
        """Whether it is the matrix of a layer."""
        return is_linear(self.name, len(self.shape))


def is_linear(name: str, dimensions: int) -> bool:
    """Whether a parameter is the matrix of a layer: no embedding, no output head, no norm."""
    is_table = any(part in name for part in ("embed", "lm_head", "wte", "wpe"))
    return dimensions == 2 and name.endswith("weight") and not is_table


def read_tensors(folder: Path) -> dict[str, Stored]:
    """Returns a folder's tensors; values are read when they are asked for.

    Source: https://huggingface.co/docs/safetensors: eight bytes of length, then JSON, then the values.

    Raises:
        OSError: when a file cannot be read.
        ValueError: when one is no safetensors file.
    """
    found: dict[str, Stored] = {}
    for path in sorted(folder.glob("*.safetensors")):
        if path.name.startswith("consolidated"):  # Mistral's own copy of the same weights
            continue
        with path.open("rb") as stream:
            view = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        begin = 8 + int.from_bytes(view[:8], "little")
        try:
            header = json.loads(bytes(view[8:begin]))
            for name, tensor in header.items():
                if name != "__metadata__":
                    low, high = tensor["data_offsets"]
                    data = view[begin + low : begin + high]
                    found[name] = Stored(dtype=tensor["dtype"], shape=tuple(tensor["shape"]), data=data)
        except (AttributeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: no safetensors file: {error}") from error
    return found


def read_weights(tensors: Mapping[str, Stored], config: Mapping[str, Any]) -> Iterator[Weight]:
    """Yields the parameters among a checkpoint's tensors.

    Args:
        tensors: of `read_tensors`.
        config: its config.json; compressed-tensors' groups say how many bits a packed weight has.
    """
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        if name.endswith(NOT_WEIGHTS):
            continue
        beside = [other for other in (f"{stem}.{end}" for end in NOT_WEIGHTS) if other in tensors]
        num_bytes = tensor.num_bytes + (sum(tensors[other].num_bytes for other in beside) if "weight" in last else 0)
        if last == "weight_packed":
            shape = tuple(int(size) for size in tensors[f"{stem}.weight_shape"].values())
            bits = _packed_bits(config, tensor, shape)
            codes = unpack(tensor.values(), bits, shape)
            zeros = codes == _packed_zero(tensors.get(f"{stem}.weight_zero_point"), bits, shape)
            yield Weight(name=f"{stem}.weight", shape=shape, num_bytes=num_bytes, zeros=zeros)
            continue
        points = tensors.get(f"{stem}.weight_zero_point") if last == "weight" else None
        yield Weight(name=name, shape=tensor.shape, num_bytes=num_bytes, zeros=_zeros(tensor, points))


def count_parameters(folder: Path) -> int:
    """Returns how many values a checkpoint of plain weights holds; tied ones are stored, and count, once."""
    return sum(math.prod(tensor.shape) for tensor in read_tensors(folder).values())


def _zeros(tensor: Stored, points: Stored | None) -> np.ndarray:
    values = tensor.values()
    if tensor.dtype in FLOATS:
        bits = 8 * values.itemsize
        return (values & ((1 << (bits - 1)) - 1)) == 0
    if points is None or points.dtype != "I8":
        return values == 0
    return values == _spread(points.values(), tensor.shape)


def unpack(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the codes that int32s hold.

    Source: compressed-tensors 0.17, compressors/pack_quantized/helpers.py: 32 // bits codes each along the last axis,
    the first in the lowest bits, each increased by 2 ** (bits - 1).

    Args:
        packed: int32, shape (..., rows, ceil(columns / (32 // bits))).
        bits: of a code.
        shape: (..., rows, columns).

    Returns:
        int16 of ``shape``, from -2 ** (bits - 1).
    """
    each = 32 // bits
    shifts = np.arange(each, dtype=np.uint32) * np.uint32(bits)
    codes = (packed.view("<u4")[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    flat = codes.reshape(*packed.shape[:-1], packed.shape[-1] * each)[..., : shape[-1]]
    return flat.astype(np.int16) - np.int16(1 << (bits - 1))


def _packed_bits(config: Mapping[str, Any], tensor: Stored, shape: tuple[int, ...]) -> int:
    """Bits of a code: the one of the groups' that makes the packed shape; where several do, they are the same."""
    groups = dict((config.get("quantization_config") or {}).get("config_groups") or {}).values()
    named = [int((group.get("weights") or {}).get("num_bits") or 0) for group in groups]
    for bits in (*(bits for bits in named if bits), 4, 8, 2, 3, 5, 6, 7, 1):
        if tensor.shape[-1] == -(-shape[-1] // (32 // bits)):
            return bits
    raise ValueError(f"a weight of shape {shape} is packed as {tensor.shape}, which no number of bits makes")


def _packed_zero(points: Stored | None, bits: int, shape: tuple[int, ...]) -> np.ndarray | int:
    """The codes that stand for 0: of a symmetric grid 0, else the zero points, packed along the first axis."""
    if points is None:
        return 0
    if points.dtype != "I32":
        return _spread(points.values(), shape)
    across = np.ascontiguousarray(np.swapaxes(points.values(), -1, -2))
    codes = unpack(across, bits, (*across.shape[:-1], shape[-2]))
    return _spread(np.swapaxes(codes, -1, -2), shape)


def _spread(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Zero points of channels or groups, one for each value."""
    if points.ndim < 2:
        points = points.reshape(-1, 1) if points.size in (1, shape[0]) else points.reshape(1, -1)
    groups = points.shape[-1]
    return np.repeat(points, -(-shape[-1] // groups), axis=-1)[..., : shape[-1]]
