"""What a prune step writes is loaded by the engine that will serve it, and answers as transformers does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(280)  # the first test waits for both engines


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = Path(__file__).with_name("pruned_models.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parent.parent.parent), *sys.path])}
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("pruned"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=270, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("PRUNED ")]
    assert lines, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(lines[0].removeprefix("PRUNED "))


@pytest.mark.parametrize(
    "name, shape",
    [
        ("width", {"hidden_size": 192, "intermediate_size": 352, "num_attention_heads": 2, "num_key_value_heads": 1}),
        ("depth", {"num_hidden_layers": 3, "hidden_size": 256}),
    ],
)
def test_the_engine_answers_from_a_pruned_checkpoint(found: dict[str, Any], name: str, shape: dict[str, int]) -> None:
    for part in ("measured", "reference", "engine"):
        assert "raised" not in found[name][part], found[name][part]["raised"]
    measured = found[name]["measured"]["result"]
    assert {key: measured[key] for key in shape} == shape
    assert measured["parameters"] < measured["parameters_before"] == 3475712
    answers = found[name]["engine"]["result"]
    assert len(set(answers)) > 1
    assert answers == found[name]["reference"]["result"]
