"""Every engine keeps the one contract; partitioned ones give the answers of the whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from contract import CHECKS, GRAMMAR_CHECKS
from edge_model import NEEDS_ONNX, exports
from gguf_model import NEEDS_GGUF, gguf_exports

ENGINES = {
    "fake": {"kind": "fake"},
    "onnx": {"kind": "onnx"},
    "gguf": {"kind": "gguf"},
    "vllm_inline": {"kind": "vllm", "process": "inline"},
    "vllm_separate": {"kind": "vllm", "process": "separate"},
    "vllm_tp2": {"kind": "vllm", "tensor_parallel_size": 2},
    "vllm_pp2": {"kind": "vllm", "pipeline_parallel_size": 2},
}
WITHOUT_GRAMMARS = ("fake", "onnx", "gguf")
"""The fake knows nothing of them; those of the edge reject such a row, which tests of theirs show."""
# an engine's start is most of a minute; these two are what services start, in the tests of theirs
MARKS = {"onnx": NEEDS_ONNX, "gguf": NEEDS_GGUF, "vllm_separate": pytest.mark.slow, "vllm_tp2": pytest.mark.slow}


def contract(engine: str) -> dict:
    if engine == "gguf":
        return run_in_own_process({**ENGINES[engine], "model": str(gguf_exports()["demo"][0])})
    if engine != "onnx":
        return run_in_own_process(ENGINES[engine])
    return run_in_own_process({**ENGINES[engine], "model": str(exports()["demo_blocks"][0])})


def run_in_own_process(fields: dict) -> dict:
    return _run(json.dumps(fields))


@cache
def _run(fields: str) -> dict:
    script = Path(__file__).with_name("contract.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parent.parent.parent), *sys.path])}
    command = [sys.executable, str(script), fields]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, env=env, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("CONTRACT ")]
    assert lines, f"the engine did not start:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(lines[0].removeprefix("CONTRACT "))


@pytest.mark.timeout(580)  # the first check of an engine pays its start
@pytest.mark.parametrize(
    "engine, check",
    [
        pytest.param(engine, check, marks=MARKS.get(engine, ()))
        for engine in ENGINES
        for check in CHECKS
        if engine not in WITHOUT_GRAMMARS or check not in GRAMMAR_CHECKS
    ],
)
def test_engine_keeps_the_contract(engine: str, check: str) -> None:
    failure = contract(engine)["checks"][check]
    assert failure is None, failure


@pytest.mark.timeout(580)
@pytest.mark.parametrize(
    "engine",
    [pytest.param(engine, marks=MARKS.get(engine, ())) for engine in ("vllm_separate", "vllm_tp2", "vllm_pp2")],
)
def test_greedy_answers_equal_those_of_one_rank(engine: str) -> None:
    whole, other = contract("vllm_inline")["greedy"], contract(engine)["greedy"]
    assert whole.keys() == other.keys()
    same = sum(whole[name] == other[name] for name in whole)
    assert same >= len(whole) - 1, f"{same} of {len(whole)} are equal"  # one floating-point tie is allowed
