"""A Prometheus of a test's own: a free port, a private folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from services import free_port

START_S = 30.0
Found = list[tuple[dict[str, str], float]]
"""Labels and values."""


class PrometheusServer:
    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)

    def ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.HTTPError:
            return False

    def up(self, job: str) -> int:
        """Targets of a job that answer."""
        return sum(value == 1 for _, value in self.query(f'up{{job="{job}"}}'))

    def query(self, expr: str) -> Found:
        """The series of a query that have a number now; fails where the query is none."""
        answer = self._client.get("/api/v1/query", params={"query": expr}).json()
        assert answer["status"] == "success", (expr, answer)
        found = [(series["metric"], float(series["value"][1])) for series in answer["data"]["result"]]
        return [(labels, value) for labels, value in found if value == value]


@contextmanager
def prometheus(config: Path, data: Path) -> Iterator[PrometheusServer]:
    """Starts one; skips the test where there is no such program, and fails it in CI."""
    program = shutil.which("prometheus")
    if program is None:
        reason = "prometheus is not on the PATH (Debian: apt-get install prometheus)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    port = free_port()
    words = (f"--config.file={config}", f"--storage.tsdb.path={data}", f"--web.listen-address=127.0.0.1:{port}")
    with (data.parent / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([program, *words], stdout=log, stderr=log)
    try:
        server = PrometheusServer(port)
        deadline = time.monotonic() + START_S
        while not server.ready():
            assert process.poll() is None, (data.parent / "prometheus.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(20)
