"""A service as people start it: `manta serve` in a process of its own, on a free port."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from jobs import ENVIRONMENT

from cluster.ports import free_ports

START_S = 240.0
"""A slow machine's; it takes 40 to 70 s on two cores."""


@dataclass(kw_only=True)
class Service:
    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def said(self) -> str:
        return self.log.read_text()

    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def named(self, name: str) -> list[psutil.Process]:
        """Processes of the service whose command line has this in it."""
        found = []
        for process in self.below():
            with suppress(psutil.NoSuchProcess):  # some come and go
                found += [process] * (name in " ".join(process.cmdline()))
        return found

    def ready(self, status: int, timeout_s: float = 200) -> set[int]:
        """Waits until /ready answers so; returns what it answered before."""
        before: set[int] = set()
        deadline = time.monotonic() + timeout_s
        while (code := httpx.get(f"{self.url}/ready", timeout=timeout_s).status_code) != status:
            before.add(code)
            assert time.monotonic() < deadline, (before, self.said())
            time.sleep(0.2)
        return before

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)


def free_port() -> int:
    return free_ports(1)[0]


@contextmanager
def serving(folder: Path, *words: str, is_ready: bool = True, keys: str | None = None) -> Iterator[Service]:
    """Starts a service, open to all or with keys, and ends it, with every process below it."""
    port, log = free_port(), folder / "said"
    line = [sys.executable, "-m", "conf.cli", "serve", f"deployment.port={port}", f"deployment.logs={folder}/logs"]
    with log.open("wb") as said:
        environment = {**ENVIRONMENT, "MANTA_HOME": str(folder), **({"MANTA_API_KEYS": keys} if keys else {})}
        who = [] if keys else ["access.open=true"]
        process = subprocess.Popen([*line, *who, *words], stdout=said, stderr=said, env=environment)
    service = Service(process=process, url=f"http://127.0.0.1:{port}", log=log)
    below: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + START_S
        while is_ready and "ready after" not in service.said():
            assert process.poll() is None, service.said()
            assert time.monotonic() < deadline, service.said()
            time.sleep(0.1)
        below = service.below() if process.poll() is None else []
        yield service
    finally:
        if process.poll() is None:
            below = service.below()
            service.interrupt()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        for left in psutil.wait_procs(below, timeout=20)[1]:
            left.kill()
