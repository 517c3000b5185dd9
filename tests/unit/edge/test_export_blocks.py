"""Weights in blocks are the nearest values of their block's grid."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.optimize.export.blocks import to_blocks


def restored(weight: np.ndarray, bits: int, size: int) -> np.ndarray:
    blocks = to_blocks(weight, bits, size)
    quanta = blocks.quanta
    if bits == 4:
        quanta = np.stack([quanta & 15, quanta >> 4], -1).reshape(*quanta.shape[:2], -1)
    values = (quanta.astype(np.float32) - (1 << bits - 1)) * blocks.scales[..., None]
    return values.reshape(len(weight), -1)[:, : weight.shape[1]]


@pytest.mark.parametrize("bits, columns", [(8, 64), (4, 64), (8, 72), (4, 72)])
def test_no_weight_is_further_off_than_half_a_step(bits: int, columns: int) -> None:
    weight = np.random.default_rng(0).normal(size=(10, columns)).astype(np.float32)
    steps = np.abs(to_blocks(weight, bits, 32).scales).repeat(32, 1)[:, :columns]
    error = np.abs(restored(weight, bits, 32) - weight)
    # the end of the range with a step less may be cut by half a step more
    assert (error <= 1.001 * steps).all()
    assert (error <= 0.501 * steps).mean() > 0.98


def test_zeros_stay_zeros_and_the_furthest_weight_stays_itself() -> None:
    weight = np.zeros((2, 64), np.float32)
    weight[0, :32] = np.linspace(-1, 0.5, 32)
    values = restored(weight, 8, 32)
    assert not values[1].any()
    assert not values[0, 32:].any()
    assert values[0, 0] == pytest.approx(-1)


def test_blocks_have_the_shape_that_onnxruntime_reads() -> None:
    blocks = to_blocks(np.ones((3, 100), np.float32), 4, 32)
    assert blocks.quanta.shape == (3, 4, 16)
    assert blocks.scales.shape == (3, 4)
    assert (blocks.quanta.dtype, blocks.scales.dtype) == (np.uint8, np.float32)
