"""How long a service takes to end while its requests would go on, without an engine (scripts/paced_service.py)."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import ROOT
from jobs import ENVIRONMENT
from services import START_S, free_port

from serve.deployment import CLOSE_S

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]
DRAIN_S, END_S = 10.0, CLOSE_S + 7.0
"""The time that requests get, and what Ray Serve and Ray may take to end beyond it."""
PACE = {"start_s": 0.5, "step_s": 0.02, "answer_token_s": 0.0, "max_num_seqs": 2, "step_tokens": 64, "kv_tokens": 9000}


@pytest.mark.parametrize("form", ["plain", "direct"])
async def test_it_ends_in_time_though_requests_hold_it_and_others_wait(tmp_path: Path, form: str):
    port = free_port()
    words = (
        *("access.open=true", "cache=off", "cluster.object_store_bytes=100000000", f"deployment.proxy={form}"),
        *(f"deployment.drain_s={DRAIN_S:g}", "deployment.max_ongoing_requests=2", f"deployment.port={port}"),
        f"deployment.logs={tmp_path}/logs",
    )
    line = [sys.executable, str(ROOT / "scripts" / "paced_service.py"), json.dumps(PACE), *words]
    log = tmp_path / "said"
    with log.open("wb") as said:
        process = subprocess.Popen(line, stdout=said, stderr=said, env={**ENVIRONMENT, "MANTA_HOME": str(tmp_path)})
    below: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + START_S
        while "ready after" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            await asyncio.sleep(0.1)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            body = {"model": "demo", "prompt": "a b c", "max_tokens": 4000}  # 80 s
            asking = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(6)]
            await asyncio.sleep(3)
            assert not any(each.done() for each in asking)
            below = psutil.Process(process.pid).children(recursive=True)
            began = time.monotonic()
            process.terminate()
            assert await asyncio.to_thread(process.wait, 120) == 0, log.read_text()
            took_s = time.monotonic() - began
            await asyncio.gather(*asking, return_exceptions=True)
        assert DRAIN_S - 1 < took_s < DRAIN_S + END_S, log.read_text()
        assert psutil.wait_procs(below, timeout=20)[1] == []
    finally:
        if process.poll() is None:
            process.kill()  # what is below it ends too
            process.wait()
