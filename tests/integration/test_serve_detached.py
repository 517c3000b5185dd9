"""A service in the background, from its start to its end, as a person sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from jobs import ENVIRONMENT
from services import free_port

from serve.state import read_state, services_folder

pytestmark = pytest.mark.timeout(400)
WORDS = ("model=demo", "access.open=true", "engine.max_model_len=512")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A user's folder for state; what was started in it ends with the test."""
    yield tmp_path
    state = read_state(services_folder({"MANTA_HOME": str(tmp_path)}), "manta")
    if state is not None and state.process.is_alive:
        below = psutil.Process(state.process.pid).children(recursive=True)
        state.process.send(signal.SIGKILL)
        for left in psutil.wait_procs(below, timeout=20)[1]:
            left.kill()


def manta(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "conf.cli", "serve", *words],
        cwd=home,
        env={**ENVIRONMENT, "MANTA_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_service_in_the_background_is_shown_kept_and_stopped(home: Path):
    port = free_port()
    words = (*WORDS, f"deployment.port={port}")
    detached = (*words, "deployment.detach=true")
    started = manta(home, *detached)
    assert started.returncode == 0, started.stderr
    assert f"http://127.0.0.1:{port}/v1" in started.stderr
    assert "try     curl" in started.stderr
    assert "manta serve stop manta" in started.stderr

    state = read_state(services_folder({"MANTA_HOME": str(home)}), "manta")
    assert state is not None
    assert os.getsid(state.process.pid) == state.process.pid  # a terminal that ends takes it not along
    below = psutil.Process(state.process.pid).children(recursive=True)

    shown = manta(home, "status", "manta")
    assert (shown.returncode, shown.stdout.splitlines()[0]) == (0, "manta: ready")
    ask = {"model": "demo", "prompt": "x", "max_tokens": 4, "ignore_eos": True}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=ask, timeout=120).json()
    assert answer["usage"]["completion_tokens"] == 4

    again = manta(home, *words)
    assert again.returncode == 2
    assert "a service of this name runs" in again.stderr
    same = manta(home, *detached)
    assert (same.returncode, "runs so already" in same.stderr) == (0, True)
    moved = manta(home, *words[:-1], f"deployment.port={free_port()}", "deployment.detach=true")
    assert (moved.returncode, "deployment.port cannot change" in moved.stderr) == (2, True)
    too_many = manta(home, *detached, "engine.num_replicas=90")
    assert too_many.returncode == 2
    assert "engine.num_replicas: 1 -> 90" in too_many.stderr
    assert "engine.num_replicas=90 of 1 CPU each need 90 CPU" in too_many.stderr
    assert httpx.get(f"http://127.0.0.1:{port}/ready", timeout=60).status_code == 200

    ended = manta(home, "stop")
    assert (ended.returncode, "manta has stopped" in ended.stderr) == (0, True)
    assert psutil.wait_procs(below, timeout=20)[1] == []
    assert manta(home, "status", "manta").returncode == 1
    assert manta(home, "stop").returncode == 1
