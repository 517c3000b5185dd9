"""Models written as GGUF, once in a test run, in a process of their own: it imports torch."""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from edge_model import export, exported_by

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "demo": ("demo", "int8_blocks", {}),
    "llama": ("llama", "fp32", {}),
    "mistral": ("mistral", "fp32", {"sliding_window": None, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", "fp32", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", "fp32", {}),
    "llama_int4": ("llama", "int4", {}),
    "window": ("mistral", "fp32", {"sliding_window": 12}),
    "turned": ("llama", "fp32", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "odd": ("llama", "int4", {"intermediate_size": 100}),
}
"""By name: the demo's model or a model_type of transformers, the scheme, and fields of the configuration."""

NEEDS_GGUF = pytest.mark.skipif(
    find_spec("gguf") is None or find_spec("xllamacpp") is None, reason="GGUF is an extra: make gguf"
)


@cache
def gguf_exports() -> dict[str, tuple[Path, dict[str, Any]]]:
    """Returns for each case its folder and what the step measured; ``failed`` is what it said against it."""
    return exported_by(__file__, "gguf", CASES)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    found = {name: export(*case, Path(sys.argv[1]) / name / "gguf", "gguf") for name, case in CASES.items()}
    print("EXPORTED " + json.dumps(found), flush=True)
