from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conf.errors import UserError
from pipelines.evaluate.size import measure_size
from pipelines.tensors import read_tensors, read_weights, unpack

W4 = {"quantization_config": {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}}}


def save(folder: Path, tensors: dict[str, tuple[str, np.ndarray]], name: str = "model.safetensors") -> Path:
    """Writes a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for key, (dtype, values) in tensors.items():
        raw = np.ascontiguousarray(values).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[key] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    (folder / name).write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs signed codes as compressed-tensors does, written apart from what is tested."""
    each = 32 // bits
    rows, columns = codes.shape
    packed = np.zeros((rows, -(-columns // each)), np.uint32)
    for (row, column), code in np.ndenumerate(codes):
        packed[row, column // each] |= np.uint32((int(code) + (1 << (bits - 1))) << (bits * (column % each)))
    return packed.view(np.int32)


@pytest.mark.parametrize("bits,columns", [(4, 16), (4, 13), (8, 8), (8, 7), (3, 25), (2, 40)])
def test_packed_codes_come_out_as_they_went_in(bits: int, columns: int):
    random = np.random.default_rng(bits)
    codes = random.integers(-(1 << (bits - 1)), 1 << (bits - 1), (5, columns))
    assert (unpack(pack(codes, bits), bits, codes.shape) == codes).all()


def test_compressed_tensors_packs_as_we_unpack():
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = torch.randint(-8, 8, (6, 21), dtype=torch.int8)
    packed = helpers.pack_to_int32(codes, 4)
    assert (unpack(packed.numpy(), 4, (6, 21)) == codes.numpy()).all()


def test_zeros_of_every_kind_of_value(tmp_path: Path):
    half = np.array([[0x0000, 0x8000, 0x3F80, 0x0001]] * 2, np.uint16)  # bf16: 0, -0, 1, the least there is
    eight = np.array([[0x00, 0x80, 0x38, 0x01]] * 2, np.uint8)
    save(
        tmp_path,
        {
            "a.weight": ("BF16", half),
            "b.weight": ("F8_E4M3", eight),
            "b.weight_scale": ("BF16", np.ones((2, 1), np.uint16)),
            "c.weight": ("I8", np.array([[0, 1, -1, 0]], np.int8)),
            "d.weight": ("F32", np.array([[0.0, -0.0, 1e-40, 2.0]], np.float32)),
        },
    )
    found = {weight.name: weight for weight in read_weights(read_tensors(tmp_path), {})}
    assert {name: int(weight.zeros.sum()) for name, weight in found.items()} == {
        "a.weight": 4,
        "b.weight": 4,
        "c.weight": 2,
        "d.weight": 2,
    }
    assert found["b.weight"].num_bytes == 8 + 4


def test_a_packed_model_is_measured_by_its_own_parameters(tmp_path: Path):
    codes = np.array([[0, 0, 3, 4, 0, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7, -8]])
    save(
        tmp_path,
        {
            "model.layers.0.q.weight_packed": ("I32", pack(codes, 4)),
            "model.layers.0.q.weight_scale": ("BF16", np.ones((2, 1), np.uint16)),
            "model.layers.0.q.weight_shape": ("I64", np.array([2, 8])),
            "model.embed_tokens.weight": ("BF16", np.ones((4, 8), np.uint16)),
            "model.norm.weight": ("BF16", np.zeros(8, np.uint16)),
        },
    )
    size = measure_size(tmp_path, W4)
    assert (size.parameters, size.linear_parameters) == (16 + 32 + 8, 16)
    assert size.linear_sparsity == 3 / 16
    assert size.two_of_four == 1 / 4
    assert size.linear_bits == 8 * (8 + 4 + 16) / 16
    assert size.bits_per_parameter == 8 * (28 + 64 + 16) / 56
    assert size.disk_bytes == (tmp_path / "model.safetensors").stat().st_size


def test_a_zero_point_says_which_code_is_zero(tmp_path: Path):
    # two groups of four columns each; zero points are packed along the first axis
    codes = np.array([[2, 2, 0, 1, -3, 0, -3, 1], [1, 0, 0, 5, 4, 4, 4, 0]])
    points = np.array([[2, -3], [0, 4]])
    save(
        tmp_path,
        {
            "q.weight_packed": ("I32", pack(codes, 4)),
            "q.weight_scale": ("BF16", np.ones((2, 2), np.uint16)),
            "q.weight_shape": ("I64", np.array([2, 8])),
            "q.weight_zero_point": ("I32", pack(points.T, 4).T),
        },
    )
    (weight,) = read_weights(read_tensors(tmp_path), W4)
    assert (weight.zeros == (codes == np.repeat(points, 4, axis=1))).all()


def test_a_2_of_4_pattern_is_seen(tmp_path: Path):
    row = np.array([[0, 0, 1, 2], [1, 0, 0, 2], [3, 1, 2, 0], [0, 0, 0, 1]], np.float32).reshape(1, 16)
    size = measure_size(save(tmp_path, {"q.weight": ("F32", row)}), {})
    assert (size.linear_sparsity, size.two_of_four) == (8 / 16, 3 / 4)


def test_the_demo_model_is_dense(demo_model: Path):
    size = measure_size(demo_model, json.loads((demo_model / "config.json").read_text()))
    assert (size.parameters, size.bits_per_parameter) == (3_475_712, 16.0)
    assert size.linear_sparsity == pytest.approx(0, abs=1e-4)


def test_other_formats_have_bytes_and_what_their_record_says(tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(b"x" * 10)
    (tmp_path / "model.onnx.data").write_bytes(b"x" * 90)
    size = measure_size(tmp_path, {}, {"parameters": 25})
    assert (size.disk_bytes, size.parameters, size.bits_per_parameter) == (100, 25, None)


@pytest.mark.parametrize("data", [b"", b"\x08\0\0\0\0\0\0\0notjson!", b"\x02\0\0\0\0\0\0\0[]"])
def test_a_broken_file_is_one_line(tmp_path: Path, data: bytes):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"^model\.path=.*cannot be read") as caught:
        measure_size(tmp_path, {})
    assert "\n" not in str(caught.value)
