"""Which number format a model is computed in."""

from __future__ import annotations

import pytest

from conf.schema.engine import Device
from serve.engine import dtype as dtype_module
from serve.engine.dtype import lacks_16_bits, served_dtype


@pytest.mark.parametrize(
    "flags, lacks",
    [
        ({"sse2", "avx2"}, True),
        ({"sse2", "avx2", "avx512f", "avx512_bf16"}, False),
        ({"asimd", "bf16"}, False),
        (set(), False),
    ],
)
def test_x86_without_avx512_has_no_16_bits(flags: set[str], lacks: bool) -> None:
    assert lacks_16_bits(frozenset(flags)) is lacks


@pytest.mark.parametrize(
    "dtype, device, served",
    [
        ("auto", Device.cpu, "float32"),
        ("bfloat16", Device.cpu, "bfloat16"),  # who asks for it gets it
        ("auto", Device.cuda, "auto"),
    ],
)
def test_on_such_a_cpu_auto_is_float32(
    dtype: str, device: Device, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtype_module, "cpu_flags", lambda: frozenset({"sse2", "avx2"}))
    assert served_dtype(dtype, device) == served
    monkeypatch.setattr(dtype_module, "cpu_flags", lambda: frozenset({"sse2", "avx512f"}))
    assert served_dtype(dtype, device) == dtype
