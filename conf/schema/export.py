"""Another format, for machines without vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from conf.errors import UserError


class ExportFormat(Enum):
    """Whose file: ``onnx`` is onnxruntime's (engine=edge), ``gguf`` llama.cpp's (engine=gguf)."""

    onnx = "onnx"
    gguf = "gguf"


class ExportScheme(Enum):
    """How matrices lie in the file.

    ``int8`` has a scale for each output, and one for the activations of a whole step: the fastest. ``int8_blocks`` and
    ``int4`` have a scale for each block of weights, and activations go to 8 bits row by row: nearer to the model, and
    no answer depends on its neighbours. In a GGUF file these two are Q8_0 and Q4_0, and there is no ``int8``.
    """

    fp32 = "fp32"
    int8 = "int8"
    int8_blocks = "int8_blocks"
    int4 = "int4"

    @property
    def bits(self) -> int:
        """Of a weight."""
        return {"fp32": 32, "int4": 4}.get(self.value, 8)


@dataclass(kw_only=True, slots=True)
class ExportSpec:
    """A graph for onnxruntime, which engine=edge runs, or a file for llama.cpp."""

    format: ExportFormat = ExportFormat.onnx

    scheme: ExportScheme = ExportScheme.int8
    block_size: int = 32
    """Of blocks: weights that share a scale; a power of two."""
    context: int | None = None
    """Tokens that a sequence may have; the model's own where null."""

    def __post_init__(self) -> None:
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise UserError(f"export.block_size must be a power of two >= 16, got {self.block_size}")
        if self.format is ExportFormat.gguf and (self.scheme is ExportScheme.int8 or self.block_size != 32):
            raise UserError(
                "export.format=gguf has blocks of 32: take export.scheme=fp32|int8_blocks|int4, export.block_size=32;"
                f" got {self.scheme.value} and {self.block_size}"
            )
        if self.context is not None and self.context < 2:
            raise UserError(f"export.context must be >= 2 or null, got {self.context}")

    @property
    def needs_rows(self) -> bool:
        """Whether the user's rows are needed."""
        return False
