"""A Redis of a test's own: a private folder, no port, nothing on disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class RedisServer:
    """Start it, stop it, hold it still."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    def start(self, *words: str) -> None:
        command = [self._program, "--port", "0", "--unixsocket", str(self._socket), "--save", "", *words]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=self._socket.parent)
        assert self._process.stdout is not None
        for line in self._process.stdout:  # pytest's timeout ends it where no such line comes
            if b"ready to accept connections" in line.lower() or b"server is now ready" in line.lower():
                return
        raise RuntimeError(f"{self._program} has ended")

    def hold(self) -> None:
        """It answers no more, and its connections stay."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """Starts one; skips the test where there is no such program, and fails it in CI."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        reason = "redis-server or valkey-server is not on the PATH (Debian: apt-get install redis-server)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    server = RedisServer(program, folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
