"""Fewer bits."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from conf.errors import UserError
from conf.schema.distill import Answers, DistillSpec


class Scheme(Enum):
    """Bits of weights and activations.

    ``fp8`` and ``w8a8`` quantize activations as they come (dynamic), ``*_static`` by scales found on the user's rows;
    ``w4a16`` quantizes weights alone.
    """

    fp8 = "fp8"
    fp8_static = "fp8_static"
    w8a8 = "w8a8"
    w8a8_static = "w8a8_static"
    w4a16 = "w4a16"


WHOLE_ROW = -1
"""The group size of one scale a row, as vLLM's kernels and GPTQ's files say it."""


class Rounding(Enum):
    """How weights reach the grid: to the nearest (rtn), or by what the rows excite (gptq, awq), or trained (qat)."""

    rtn = "rtn"
    gptq = "gptq"
    awq = "awq"
    qat = "qat"


@dataclass(kw_only=True, slots=True)
class QuantizeSpec:
    """Linear layers with fewer bits, written as compressed-tensors."""

    scheme: Scheme = Scheme.w8a8
    rounding: Rounding = Rounding.rtn
    smooth: float | None = None
    """SmoothQuant's strength in 0..1, which moves outliers of activations into weights; null leaves it out."""
    group_size: int | None = None
    """Weights that share a scale; null is the scheme's own (of w4a16 the first of 128, 64 and 32 that divides the
    layers, a whole row of the others). -1 is a whole row in 4 bits, with which vLLM on a CPU did not start."""
    kv_cache: bool = False
    """Quantize the KV cache to FP8 too, by scales found on the user's rows. Needs a GPU to run."""
    ignore: list[str] = field(default_factory=lambda: ["lm_head"])
    """Layers that stay as they are, by name."""
    qat: DistillSpec = field(default_factory=lambda: DistillSpec(steps=200, learning_rate=3e-5, checkpoint_steps=0))
    """Of rounding=qat: how the weights are trained to lie on the grid, with the recipe's first model as the teacher, or
    that of ``qat.teacher``. A rate of 1e-4 left the demo's model worse than rounding to nearest does
    (docs/benchmarks/optimization.md)."""

    def __post_init__(self) -> None:
        if self.smooth is not None and not 0 <= self.smooth <= 1:
            raise UserError(f"quantize.smooth must be in 0..1 or null, got {self.smooth}")
        if self.group_size is not None and self.group_size < 1 and self.group_size != WHOLE_ROW:
            raise UserError(
                f"quantize.group_size must be >= 1, {WHOLE_ROW} (a whole row) or null, got {self.group_size}"
            )
        if self.group_size is not None and self.scheme is not Scheme.w4a16:
            raise UserError(f"quantize.group_size goes with scheme=w4a16, not with scheme={self.scheme.value}")
        if self.rounding in (Rounding.awq, Rounding.qat) and self.scheme is not Scheme.w4a16:
            raise UserError(
                f"quantize.rounding={self.rounding.value} goes with scheme=w4a16, not with scheme={self.scheme.value}"
            )
        if self.qat.num_workers > 1 or self.qat.top_k is not None or self.qat.answers is not Answers.rows:
            raise UserError(
                "quantize.qat trains in one process on the rows' answers and runs its teacher: leave num_workers, top_k"
                " and answers alone"
            )

    @property
    def needs_rows(self) -> bool:
        """Whether scales or roundings come from the user's rows."""
        is_static = self.scheme in (Scheme.fp8_static, Scheme.w8a8_static)
        return is_static or self.rounding is not Rounding.rtn or self.smooth is not None or self.kv_cache
