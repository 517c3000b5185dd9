"""The engine's contract on a CUDA device. Run with: pytest -m gpu tests/gpu"""

from __future__ import annotations

import pytest
from contract import CHECKS
from test_engine_contract import run_in_own_process

ENGINES = {
    "separate": {"kind": "vllm", "device": "cuda", "process": "separate"},
    "inline": {"kind": "vllm", "device": "cuda", "process": "inline"},
}

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("engine", ENGINES)
def test_engine_keeps_the_contract_on_a_gpu(engine: str, check: str) -> None:
    failure = run_in_own_process(ENGINES[engine])["checks"][check]
    assert failure is None, failure
