"""Models written as GGUF, once in a test run, in a process of their own: it imports torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from edge_model import ROOT, make_small

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
    folder = Path(mkdtemp(prefix="manta-gguf-"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("EXPORTED ")]
    assert lines, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    measured = json.loads(lines[0].removeprefix("EXPORTED "))
    return {name: (folder / name / "gguf", measured[name]) for name in CASES}


def export(kind: str, scheme: str, fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Exports here."""
    from conf.schema.export import ExportFormat, ExportScheme, ExportSpec
    from conf.schema.step import StepKind, StepSpec
    from pipelines.optimize.step.export import run
    from pipelines.optimize.step.task import StepFailed, StepTask

    target = folder / "gguf"
    target.mkdir(parents=True)
    source = ROOT / "demo" / "model" if kind == "demo" else make_small(kind, fields, folder / "source")
    part = ExportSpec(format=ExportFormat.gguf, scheme=ExportScheme[scheme])
    task = StepTask(
        spec=StepSpec(kind=StepKind.export, export=part),
        source=source,
        teacher=source,
        target=target,
        examples=None,
        seed=0,
    )
    try:
        return run(task)
    except StepFailed as error:
        return {"failed": str(error)}


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    found = {name: export(*case, Path(sys.argv[1]) / name) for name, case in CASES.items()}
    print("EXPORTED " + json.dumps(found), flush=True)
