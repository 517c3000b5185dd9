"""Weights for an ONNX graph: as they are, or in blocks of few bits with a scale each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """A matrix in blocks along its rows: ``w = (q - zero) * scale``, with the zero in the middle of the range."""

    quanta: np.ndarray
    """uint8 [rows, blocks, bytes]; of 4 bits the first of a pair lies in the low half of a byte."""
    scales: np.ndarray
    """float32 [rows, blocks]."""
    bits: int
    size: int
    """Weights of a block; the last one of a row is filled up."""


def to_blocks(weight: np.ndarray, bits: int, size: int) -> Blocks:
    """Rounds a matrix to the nearest values of each block's grid.

    Args:
        weight: float32 [rows, columns]; a row makes one output.
        bits: 4 or 8.
        size: weights that share a scale.

    Source: com.microsoft.MatMulNBits, whose zero point is 2^(bits-1) where none is given.
    """
    rows, columns = weight.shape
    count = -(-columns // size)
    padded = np.zeros((rows, count * size), np.float32)
    padded[:, :columns] = weight
    blocks = padded.reshape(rows, count, size)
    zero = 1 << (bits - 1)
    # the value that is furthest from zero gets the end of the range that has one step more
    low, high = blocks.min(-1), blocks.max(-1)
    furthest = np.where(-low >= high, low, high)
    scales = (furthest / -zero).astype(np.float32)
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    quanta = np.clip(np.rint(blocks * inverse[..., None]) + zero, 0, 2 * zero - 1).astype(np.uint8)
    if bits == 4:
        quanta = quanta[..., 0::2] | (quanta[..., 1::2] << 4)
    return Blocks(quanta=quanta, scales=scales, bits=bits, size=size)
