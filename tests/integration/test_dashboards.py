"""A real Prometheus, configured by `manta cluster dashboards`, scrapes a job and a service: each panel has data."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml
from conftest import ROOT
from jobs import ENVIRONMENT, questions, record, run, start
from prometheus_server import prometheus
from services import START_S, free_port

from cluster.monitoring.panel import RATE, Query
from cluster.monitoring.verb import build_boards
from conf.metrics import BATCH_ROWS, REQUESTS

pytestmark = pytest.mark.timeout(300)
SECRET = "secret-one"
HURRY = {"x-request-timeout": "0.001"}
PACE = {"start_s": 0.5, "step_s": 0.01, "answer_token_s": 0.0, "max_num_seqs": 4, "step_tokens": 64, "kv_tokens": 4000}
SERVICE = (
    *("engine.num_replicas=1..2", "autoscale=tokens", "autoscale.interval_s=0.5", "cluster.price_per_hour=2.5"),
    *("cluster.object_store_bytes=100000000", "cache=memory"),
)
JOB = (
    *("engine.max_num_seqs=8", "engine.fault.latency_ms=120", "output.rows_per_file=20"),
    *("cluster.price_per_hour=2.5", "engine.fault.reject_marker=have 7"),
)
ROWS = 4000
MAY_COME = "Ray tells of nodes once"
"""Of a node's CPUs there is data on a quiet machine, on a busy one the run is over before."""
NOT_HERE = {"vLLM's own", MAY_COME, "only an engine with a prefix cache", "only a job whose engines died"}
"""Beginnings of the reasons that hold in this run: engines that compute nothing, on clusters without a dashboard."""


def is_missing(query: Query) -> bool:
    return any(query.needs.startswith(reason) for reason in NOT_HERE)


def asked_now(expr: str) -> str:
    """A query as Grafana asks it once all values are chosen."""
    for variable in ("model", "run"):
        expr = expr.replace(f"${variable}", ".*")
    return expr.replace(RATE, "10s")


@contextmanager
def service(folder: Path, port: int) -> Iterator[None]:
    """`manta serve` around replicas that compute nothing; all else of it is real."""
    words = [sys.executable, str(ROOT / "scripts" / "paced_service.py"), json.dumps(PACE), *SERVICE]
    said = folder / "said"
    environment = {**ENVIRONMENT, "MANTA_HOME": str(folder), "MANTA_API_KEYS": SECRET}
    with said.open("wb") as log:
        process = subprocess.Popen(
            [*words, f"deployment.port={port}", f"deployment.logs={folder}/logs"],
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        deadline = time.monotonic() + START_S
        while "ready after" not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A batch job, which is killed where it has not ended by then."""
    process = start(*words)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


class Askers:
    """Threads that stream and ask, the same again now and then, and make mistakes, until they are told to stop."""

    def __init__(self, port: int) -> None:
        self.answered = 0
        self._port = port
        self._is_over = threading.Event()
        self._counting = threading.Lock()
        self._pool = ThreadPoolExecutor(3)
        self._asking = [self._pool.submit(self._ask) for _ in range(3)]

    def stop(self) -> None:
        self._is_over.set()
        for asking in self._asking:
            asking.result()
        self._pool.shutdown()

    def _ask(self) -> None:
        headers = {"authorization": f"Bearer {SECRET}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{self._port}", headers=headers, timeout=60) as client:
            while not self._is_over.is_set():
                for number in range(8):
                    body = {"model": "demo", "prompt": f"tell me {number % 3}", "max_tokens": 8, "temperature": 0}
                    client.post("/v1/completions", json={**body, "stream": number > 1}).raise_for_status()
                    with self._counting:
                        self.answered += 1
                hurried = client.post("/v1/completions", json=body | {"max_tokens": 100}, headers=HURRY)
                assert hurried.status_code == 504, hurried.text


def write_config(folder: Path, port: int) -> Path:
    """What the verb writes, with a shorter interval and a key."""
    # not the machine's own list: another Ray with a dashboard may be in it
    words = ("--out", str(folder / "made"), "--service", f"127.0.0.1:{port}", "--ray-file", str(folder / "none.json"))
    made = run("cluster", "dashboards", *words)
    assert made.returncode == 0, made.stderr
    config = Path(made.stdout.split()[0])
    settings = yaml.safe_load(config.read_text())
    settings["global"]["scrape_interval"] = "1s"
    config.write_text(yaml.safe_dump(settings))
    (config.parent / "manta.key").write_text(f"{SECRET}\n")
    return config


def test_each_panel_has_data_of_a_job_and_a_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, out = free_port(), tmp_path / "out"
    monkeypatch.setitem(ENVIRONMENT, "MANTA_HOME", str(tmp_path))
    monkeypatch.setitem(ENVIRONMENT, "RAY_metrics_report_interval_ms", "1000")
    rows = questions(tmp_path / "in.jsonl", ROWS)
    queries = {query for board in build_boards() for panel in board.panels for query in panel.queries}
    missing = {query for query in queries if not is_missing(query)}
    with (
        prometheus(write_config(tmp_path, port), tmp_path / "data") as server,
        running(f"data.input={rows}", f"output.path={out}", *JOB) as job,
        service(tmp_path, port),
    ):
        askers = Askers(port)
        try:
            while missing and job.poll() is None:
                missing -= {query for query in missing if server.query(asked_now(query.expr))}
                time.sleep(0.3)
        finally:
            askers.stop()
        assert not missing, ([query.expr for query in missing], job.poll())
        job.send_signal(signal.SIGINT)
        answered = f'sum({REQUESTS.series}{{route="/v1/completions",status="2xx"}})'
        deadline = time.monotonic() + 20
        while (told := [value for _, value in server.query(answered)]) != [askers.answered]:
            assert time.monotonic() < deadline, (told, askers.answered)
            time.sleep(0.2)
        assert job.wait(60) == 130
        written = server.query(f"max_over_time(sum({BATCH_ROWS.series})[5m:1s])")
        assert 0 < written[0][1] <= sum(record(out)[name] for name in ("answers", "failed"))
        never = {query for query in queries if is_missing(query) and not query.needs.startswith(MAY_COME)}
        present = {query for query in never if server.query(asked_now(query.expr))}
        assert not present, f"a run does have {present}"
