"""A service in the background, from its start to its end, as a person sees it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import openai
import psutil
import pytest
from jobs import ENVIRONMENT
from services import free_port

from serve.state import read_state, services_folder

pytestmark = pytest.mark.timeout(400)
VECTORS = "deployment.models.vectors"
MODELS = (f"{VECTORS}.model=demo", f"{VECTORS}.model.name=org/vectors", f"{VECTORS}.task=embed")
WORDS = ("model=demo", "access.open=true", "engine.max_model_len=512", *MODELS, f"{VECTORS}.engine.max_model_len=256")


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


def ask_both(url: str) -> None:
    """Asks a service of two models for what each of them has an answer to, as OpenAI's client does."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        chat = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Order 4711."}], max_tokens=4, temperature=0
        )
        assert chat.usage is not None
        assert chat.usage.completion_tokens == 4
        assert len(client.embeddings.create(model="org/vectors", input=["a", "b"]).data) == 2
        listed = {model.id: model.model_dump() for model in client.models.list()}
        assert {name: card["max_model_len"] for name, card in listed.items()} == {"demo": 512, "org/vectors": 256}
        assert client.models.retrieve("org/vectors").id == "org/vectors"
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nobody", messages=[])
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nobody")
    packed = httpx.post(
        f"{url}/v1/embeddings",
        content=msgspec.msgpack.encode({"model": "org/vectors", "input": "a"}),
        headers={"content-type": "application/msgpack", "accept": "application/msgpack"},
        timeout=120,
    )
    assert msgspec.msgpack.decode(packed.content)["model"] == "org/vectors"
    assert httpx.post(f"{url}/tokenize", json={"model": "org/vectors", "prompt": "a"}).json()["max_model_len"] == 256
    page = httpx.get(f"{url}/metrics", timeout=60).text
    for name in ("demo", "org/vectors"):
        assert f'manta_prompt_tokens_total{{key="open",model="{name}"' in page
        assert f'model_name="{name}"' in page
    assert httpx.get(f"{url}/_model/vectors/v1/models").status_code == 404


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
    assert "models    demo, org/vectors" in shown.stdout
    assert "1 x TP 1 PP 1 of org/vectors" in shown.stdout
    ask_both(f"http://127.0.0.1:{port}")

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
    assert "engine.num_replicas of all 2 models together need 91 CPU" in too_many.stderr
    assert httpx.get(f"http://127.0.0.1:{port}/ready", timeout=60).status_code == 200

    ended = manta(home, "stop")
    assert (ended.returncode, "manta has stopped" in ended.stderr) == (0, True)
    assert psutil.wait_procs(below, timeout=20)[1] == []
    assert manta(home, "status", "manta").returncode == 1
    assert manta(home, "stop").returncode == 1
