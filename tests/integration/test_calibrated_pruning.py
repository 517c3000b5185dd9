"""Wanda and SparseGPT through llmcompressor, in the environment that has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent.parent
OVERLAY = Path(os.environ.get("MANTA_TEST_OVERLAY", ROOT / ".venv" / "optimize"))
"""What `make optimize` installs."""


@pytest.mark.slow
@pytest.mark.timeout(280)
@pytest.mark.skipif(not (OVERLAY / "llmcompressor").is_dir(), reason="llmcompressor is absent: make optimize")
def test_the_zeros_of_both_methods_are_in_the_file_and_only_sparsegpt_moves_the_others(tmp_path: Path) -> None:
    script = Path(__file__).with_name("calibrated_pruning.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(OVERLAY), str(ROOT), *sys.path])}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=270, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("PRUNED ")]
    assert lines, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    found = json.loads(lines[0].removeprefix("PRUNED "))
    assert found["wanda"]["sparsity"] == pytest.approx(0.6, abs=0.01)
    assert found["sparsegpt_free"]["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert (found["sparsegpt"]["two_of_four"], found["sparsegpt"]["sparsity"]) == (1.0, pytest.approx(0.5, abs=0.01))
    name = "model.layers.1.self_attn.q_proj.weight"
    whole = load_file(ROOT / "demo" / "model" / "model.safetensors")[name]
    for method, moves in (("wanda", False), ("sparsegpt", True)):
        pruned = load_file(tmp_path / method / "model.safetensors")[name]
        kept = pruned != 0
        assert torch.equal(pruned[kept], whole[kept]) is not moves
