"""200 mixed requests of the official client at 32 at a time, while a worker of one of two replicas is killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import openai
import pytest
from load import load, wrong
from services import serving

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]  # a smaller one is in test_serve_observe.py
TOOLS = ("deployment.vllm.enable_auto_tool_choice=true", "deployment.vllm.tool_call_parser=hermes")


@pytest.mark.parametrize("form", ["plain", "direct"])
@pytest.mark.parametrize(
    "engine, victim", [("cpu", "VLLM::EngineCore"), ("tp2_cpu", "VLLM::Worker"), ("pp2_cpu", "VLLM::Worker")]
)
async def test_a_killed_worker_costs_no_answer(
    tmp_path: Path, engine: str, victim: str, form: str, record_testsuite_property: Callable[[str, object], None]
):
    words = ("model=demo", f"engine={engine}", "engine.max_model_len=1024", "engine.max_num_seqs=16", *TOOLS)
    sizes = ("engine.num_replicas=2", "deployment.max_queued_requests=64", f"deployment.proxy={form}")
    with serving(tmp_path, *words, *sizes) as service:
        async with openai.AsyncOpenAI(
            base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=300
        ) as client:
            whole = await load(client, 200, 32)
            assert [outcome for outcome in whole if outcome.error is not None] == []

            def kill(number: int) -> None:
                if number == 100:
                    service.named(victim)[-1].kill()

            outcomes = await load(client, 200, 32, kill)
            broken = [(outcome.is_stream, type(outcome.error)) for outcome in outcomes if outcome.error is not None]
            assert set(broken) <= {(True, openai.APIError)}  # an event of the stream
            assert await wrong(client, [*whole, *outcomes]) == []
            record_testsuite_property(f"{engine} {form}", f"{len(broken)} streams ended with an error event")
