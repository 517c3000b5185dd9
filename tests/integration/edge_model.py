"""Models exported for the edge, once in a test run, in a process of their own: it imports torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from pipelines.optimize.environment import site

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 128, "head_dim": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "demo": ("demo", "int8", {}),
    "demo_blocks": ("demo", "int8_blocks", {}),
    "llama": ("llama", "fp32", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
    "mistral": ("mistral", "fp32", {"sliding_window": 12}),
    "qwen2": ("qwen2", "fp32", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", "fp32", {}),
    "qwen3_int8": ("qwen3", "int8", {}),
    "qwen2_blocks": ("qwen2", "int8_blocks", {}),
    "llama_int4": ("llama", "int4", {"intermediate_size": 100}),
    "gelu": ("llama", "fp32", {"hidden_act": "gelu"}),
    "odd": ("llama", "int4", {"hidden_size": 72}),
    "gpt2": ("gpt2", "fp32", {"n_embd": 32, "n_layer": 1, "n_head": 2}),
}
"""By name: the demo's model or a model_type of transformers, the scheme, and fields of the configuration."""

NEEDS_ONNX = pytest.mark.skipif(
    find_spec("onnxruntime") is None or (find_spec("onnx") is None and not (site() / "onnx").is_dir()),
    reason="exports need onnx: make optimize",
)


@cache
def exports() -> dict[str, tuple[Path, dict[str, Any]]]:
    """Returns for each case its folder and what the step measured; ``failed`` is what it said against it."""
    return exported_by(__file__, "edge", CASES, site())


def exported_by(script: str, name: str, cases: Iterable[str], *first: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Runs a script that exports its cases and prints what was measured.

    Args:
        script: a module with a ``__main__`` part; it is given the folder to write to.
        name: of the folder that each case's result has in its own.
        cases: their names.
        first: folders that come first in the script's path of Python.
    """
    folder = Path(mkdtemp(prefix=f"{name}-", dir=os.environ["MANTA_TESTS"]))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*first, ROOT, *sys.path]))}
    command = [sys.executable, script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("EXPORTED ")]
    assert lines, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    measured = json.loads(lines[0].removeprefix("EXPORTED "))
    return {case: (folder / case / name, measured[case]) for case in cases}


def export(kind: str, scheme: str, fields: dict[str, Any], target: Path, form: str = "onnx") -> dict[str, Any]:
    """Exports here; what is exported lies beside the target."""
    from conf.schema.export import ExportFormat, ExportScheme, ExportSpec
    from conf.schema.step import StepKind, StepSpec
    from pipelines.optimize.step.export import run
    from pipelines.optimize.step.task import StepFailed, StepTask

    target.mkdir(parents=True)
    source = ROOT / "demo" / "model" if kind == "demo" else make_small(kind, fields, target.parent / "source")
    part = ExportSpec(format=ExportFormat[form], scheme=ExportScheme[scheme])
    spec = StepSpec(kind=StepKind.export, export=part)
    try:
        return run(StepTask(spec=spec, source=source, teacher=source, target=target, examples=None, seed=0))
    except StepFailed as error:
        return {"failed": str(error)}


def make_small(kind: str, fields: dict[str, Any], folder: Path) -> Path:
    """Writes a small checkpoint of chance weights, with the demo's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **({**SMALL, **fields} if kind != "gpt2" else fields))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for weight in model.parameters():  # biases of zero and norms of one would hide what is left out
        weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ROOT / "demo" / "model" / name, folder / name)
    return folder


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    print(
        "EXPORTED "
        + json.dumps({name: export(*case, Path(sys.argv[1]) / name / "edge") for name, case in CASES.items()})
    )
