"""The README's way over a cluster, command by command: real nodes, the real engine, a real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import ROOT, read_answers
from services import free_port

from cluster import known
from cluster.ending import MARK, end

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
QUESTIONS = ROOT.parent / "shared" / "data" / "gsm8k_test.jsonl"
"""Where this public file lies beside the repository, it is what is asked; else the demo's tickets are."""
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    own = {"MANTA_CLUSTERS": str(tmp_path / "clusters"), "MANTA_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    monkeypatch.setenv("MANTA_CLUSTERS", own["MANTA_CLUSTERS"])
    yield {**{key: value for key, value in os.environ.items() if key not in AUTH}, **own}
    for name in known.names():
        if (cluster := known.read(name)) is not None:
            end(cluster, grace_s=0.0)


def marked(scratch: str) -> list[int]:
    """Processes that belong to a cluster by their environment or command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == scratch or scratch in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_up_batch_serve_report_down(tmp_path: Path, environment: dict[str, str]) -> None:
    def manta(*words: str) -> str:
        line = [sys.executable, "-m", "conf.cli", *words]
        done = subprocess.run(line, capture_output=True, text=True, timeout=280, env=environment, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout + done.stderr

    manta("cluster", "up", "cluster=local", "cluster.nodes=3")
    cluster = known.find(None)
    assert len(json.loads(manta("cluster", "status", "local", "--json"))["nodes"]) == 3

    table = ["data=tickets"]
    if QUESTIONS.exists():
        lines = QUESTIONS.read_text().splitlines()[:300]
        (tmp_path / "questions.jsonl").write_text("\n".join(lines) + "\n")
        table = ["data.input=questions.jsonl", "data.prompt={{ question }}"]
    words = ["model=demo", "engine=cpu", *table, "sampling.max_tokens=16", "engine.num_replicas=3"]
    manta("submit", "batch", *words, "output.path=out/answers")
    answers = read_answers(tmp_path / "out" / "answers")
    assert len(answers) == (300 if QUESTIONS.exists() else 1200)
    assert "Where the time went" in (tmp_path / "out" / "answers" / "_manta" / "report.html").read_text()
    assert "has run already" in manta("submit", "batch", *words, "output.path=out/answers")

    port = free_port()
    manta("submit", "serve", "model=demo", "engine=cpu", "access.open=true", f"deployment.port={port}")
    models = httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=30).json()
    assert [model["id"] for model in models["data"]] == ["demo"]
    ask = {"model": "demo", "messages": [{"role": "user", "content": "My card was charged twice"}], "max_tokens": 8}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=ask, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] > 0
    assert "serve" in manta("jobs", "list")

    manta("cluster", "down")
    assert cluster.scratch is not None
    assert not cluster.scratch.exists()
    assert marked(str(cluster.scratch)) == []
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
