"""Replicas that come and go with the load, without an engine: scripts/paced_service.py is `manta serve` around them."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import ROOT
from jobs import ENVIRONMENT
from services import START_S, free_port

from serve.state import Replicas, read_state, services_folder

pytestmark = pytest.mark.timeout(400)
PACE = {"start_s": 0.5, "step_s": 0.02, "answer_token_s": 0.0, "max_num_seqs": 4, "step_tokens": 64, "kv_tokens": 4000}
WORDS = (
    *("engine.num_replicas=0..3", "autoscale=tokens", "autoscale.interval_s=0.5", "autoscale.short_window_s=2"),
    *("autoscale.long_window_s=3", "autoscale.scale_down_window_s=4", "autoscale.scale_to_zero_s=2"),
    *("autoscale.hold_s=1", "access.open=true", "cache=off", "cluster.object_store_bytes=100000000"),
)


class Paced:
    def __init__(self, folder: Path, *more: str) -> None:
        self.port, self.folder, self.log = free_port(), folder, folder / "said"
        script = str(ROOT / "scripts" / "paced_service.py")
        self.words = (*WORDS, f"deployment.port={self.port}", f"deployment.logs={folder}/logs", *more)
        self.environment = {**ENVIRONMENT, "MANTA_HOME": str(folder)}
        with self.log.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, script, json.dumps(PACE), *self.words], stdout=said, stderr=said, env=self.environment
            )
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def replicas(self) -> Replicas | None:
        state = read_state(services_folder({"MANTA_HOME": str(self.folder)}), "manta")
        return state.replicas if state is not None else None

    @property
    def running(self) -> int:
        return self.replicas.running if self.replicas is not None else 0

    async def update(self, *words: str) -> tuple[int, str]:
        """Gives it another configuration, as people do; returns what that said."""
        own = ("model=demo", f"engine.max_num_seqs={PACE['max_num_seqs']}", "deployment.detach=true")
        line = [sys.executable, "-m", "conf.cli", "serve", *own, *self.words, *words]
        made = await asyncio.create_subprocess_exec(*line, env=self.environment, stderr=asyncio.subprocess.PIPE)
        _, said = await made.communicate()
        assert made.returncode is not None
        return made.returncode, said.decode()

    def end(self) -> None:
        """Whatever the test came to."""
        if self.process.poll() is None:
            below = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            self.process.wait()
            for left in psutil.wait_procs(below, timeout=20)[1]:
                left.kill()

    async def wait_until(self, is_so: Callable[[], bool], timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_so():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            await asyncio.sleep(0.1)


async def test_replicas_follow_the_load_to_zero_and_back_and_no_request_is_lost(tmp_path: Path):
    service = Paced(tmp_path)
    limits = httpx.Limits(max_connections=100)
    try:
        async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:
            is_over = asyncio.Event()

            async def ask() -> int:
                body = {"model": "demo", "prompt": "a b c", "max_tokens": 20}
                return (await client.post("/v1/completions", json=body)).status_code

            async def ask_on() -> list[int]:
                return [await ask() async for _ in until(is_over)]

            await service.wait_until(lambda: "ready after" in service.log.read_text(), START_S)
            asking = [asyncio.create_task(ask_on()) for _ in range(24)]
            await service.wait_until(lambda: service.running == 3)
            is_over.set()
            codes = Counter(code for each in await asyncio.gather(*asking) for code in each)
            assert set(codes) == {200}

            await service.wait_until(lambda: service.replicas == Replicas(running=0, wanted=0))
            # the last one may still be stopping
            await service.wait_until(lambda: service.log.read_text().endswith("replicas: none\n"))
            asleep = service.log.read_text()
            # who only looks wakes nobody
            for path in ("/ready", "/health", "/metrics"):
                assert (await client.get(path)).status_code == 200
            await asyncio.sleep(2)  # as long as it takes to be told of
            assert service.log.read_text() == asleep
            assert await asyncio.gather(*(ask() for _ in range(8))) == [200] * 8
        said = service.log.read_text()
        assert "replicas 1 -> 0: no request for" in said
        assert re.search(r"replicas [12] -> 3: [\d.]+ replicas are needed", said), said
        service.process.terminate()
        assert service.process.wait(60) == 0
    finally:
        service.end()


@pytest.mark.slow
async def test_an_update_keeps_as_many_replicas_as_the_load_wants_and_cuts_no_request(tmp_path: Path):
    service = Paced(tmp_path)
    codes: Counter[int] = Counter()
    is_over = asyncio.Event()
    limits = httpx.Limits(max_connections=100)
    try:
        async with httpx.AsyncClient(base_url=service.url, timeout=60, limits=limits) as client:

            async def ask_on() -> None:
                async for _ in until(is_over):
                    body = {"model": "demo", "prompt": "a b c", "max_tokens": 20}
                    codes[(await client.post("/v1/completions", json=body)).status_code] += 1

            await service.wait_until(lambda: "ready after" in service.log.read_text(), START_S)
            asking = [asyncio.create_task(ask_on()) for _ in range(24)]
            await service.wait_until(lambda: service.running == 3)

            code, said = await service.update("deployment.log_requests=false")
            assert code == 0, said
            assert "starting 3 replicas" in said
            assert "updated after" in said
            await service.wait_until(lambda: service.replicas == Replicas(running=3, wanted=3))
            # other bounds: fewer at once, and never more again
            code, said = await service.update("engine.num_replicas=0..2")
            assert code == 0, said
            await service.wait_until(lambda: service.replicas == Replicas(running=2, wanted=2))
            # a number, and bounds again
            code, said = await service.update("engine.num_replicas=2")
            assert code == 0, said
            code, said = await service.update("engine.num_replicas=1..3")
            assert code == 0, said
            await service.wait_until(lambda: service.running == 3)
            is_over.set()
            await asyncio.gather(*asking)
            assert set(codes) == {200}, codes

            await service.wait_until(lambda: service.replicas == Replicas(running=1, wanted=1))
            code, said = await service.update()  # down to zero, and an update of a service that sleeps
            assert code == 0, said
            await service.wait_until(lambda: service.replicas == Replicas(running=0, wanted=0))
            code, said = await service.update("deployment.log_requests=false")
            assert code == 0, said
            assert (await client.post("/v1/completions", json={"model": "demo", "prompt": "a"})).status_code == 200
            await service.wait_until(lambda: service.replicas == Replicas(running=0, wanted=0))
        service.process.terminate()
        assert service.process.wait(60) == 0
    finally:
        service.end()


async def until(event: asyncio.Event):
    while not event.is_set():
        yield
