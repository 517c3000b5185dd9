"""Whole jobs on a fake engine, as people run them: a process of its own, a real Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from conftest import ROOT

PROMPT = "data.prompt={{ question }}"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "conf.cli", "batch", "model=demo", "engine=fake", PROMPT, *words]


def run(*words: str, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
    """Any verb."""
    line = [sys.executable, "-m", "conf.cli", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, env=ENVIRONMENT, check=False)


def manta(*words: str, timeout_s: float = 200) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), capture_output=True, text=True, timeout=timeout_s, env=ENVIRONMENT, check=False
    )


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def start_verb(*words: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Any verb, with more in its environment."""
    line = [sys.executable, "-m", "conf.cli", *words]
    env = {**ENVIRONMENT, **(environment or {})}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def questions(path: Path, rows: int, text: str = "How many legs have {} spiders?") -> Path:
    path.write_text("".join(json.dumps({"question": text.format(i), "n": i}) + "\n" for i in range(rows)))
    return path


def read_failed(output: Path) -> list[dict]:
    rows = [row for path in output.glob("failed/*.parquet") for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: (row["source"], row["position"]))


def record(output: Path) -> dict:
    return json.loads((output / "_manta" / "job.json").read_text())


def computed(path: Path) -> int:
    """Requests that the fake engine has answered so far (engine.fault.computed_file)."""
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def wait_for_computed(path: Path, requests: int, process: subprocess.Popen[str], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while computed(path) < requests:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{computed(path)} requests after {timeout_s} s"
        time.sleep(0.02)
