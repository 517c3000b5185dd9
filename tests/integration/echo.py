"""A service without an engine (echo_service.py) in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from jobs import ENVIRONMENT
from services import free_port


@dataclass(kw_only=True)
class EchoService:
    process: subprocess.Popen[str]
    url: str

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def pids(self, deployment: str) -> list[int]:
        """Processes of the deployment's replicas that run."""
        self.tell(f"pids {deployment}")
        assert self.process.stdout is not None
        return json.loads(next(line for line in self.process.stdout if line.startswith("[")))

    def wait_for(self, deployment: str, count: int, without: set[int], timeout_s: float = 60) -> list[int]:
        """Returns the replicas once so many run, none of them in the processes to be rid of."""
        deadline = time.monotonic() + timeout_s
        while len(found := self.pids(deployment)) != count or without & set(found):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return found

    def wait_for_answers(self, replicas: int, timeout_s: float = 30) -> None:
        """Waits until so many replicas answer: the proxy hears of each a second or two after it runs."""
        found: set[int] = set()
        deadline = time.monotonic() + timeout_s
        with httpx.Client() as client:
            while len(found) < replicas:
                found.add(self.ask(client, str(time.monotonic())).json()["pid"])
                assert time.monotonic() < deadline, found

    def ask(self, client: httpx.Client, text: str = "x", **wants: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **wants}
        return client.post(f"{self.url}/v1/chat/completions", json=body)


@contextmanager
def echoing(folder: Path, form: str, replicas: int = 2, routers: int = 1, drain_s: float = 20) -> Iterator[EchoService]:
    port = free_port()
    script = Path(__file__).with_name("echo_service.py")
    words = [sys.executable, str(script), str(port), form, str(replicas), str(routers), str(drain_s)]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=ENVIRONMENT
        )
    service = EchoService(process=process, url=f"http://127.0.0.1:{port}")
    below: list[psutil.Process] = []
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        assert "ready\n" in process.stdout, (folder / "said").read_text()
        if form == "direct":
            service.wait_for("router", routers, set())
        service.wait_for_answers(replicas)
        below = psutil.Process(process.pid).children(recursive=True)
        yield service
    finally:
        below += psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.stdin.close()  # type: ignore[union-attr]
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        process.stdout.close()  # type: ignore[union-attr]
        for left in psutil.wait_procs(below, timeout=20)[1]:
            left.kill()
