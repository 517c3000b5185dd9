"""Distillation on several workers of a real Ray Train."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_two_workers_make_the_student_that_one_makes(tmp_path: Path) -> None:
    script = Path(__file__).with_name("distill_workers.py")
    folders = [str(ROOT), str(ROOT / "tests" / "unit" / "optimize"), *sys.path]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=270, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    result = json.loads(lines[0].removeprefix("FOUND "))
    one, two = result["found"]["1"], result["found"]["2"]
    assert two["loss_last"] < two["loss_first"]
    assert two["tokens"] < one["tokens"]  # the first worker's part
    assert two["sparsity"] == one["sparsity"] >= 0.5
    assert result["apart"] < 0.05 * result["moved"]
    assert result["left"] == ["by1", "by2", "examples.parquet", "pruned", "teacher"]
