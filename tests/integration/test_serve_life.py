"""How a service starts, breaks and ends."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

import httpx
import psutil
import pytest
from jobs import run
from services import free_port, serving

pytestmark = pytest.mark.timeout(400)
ASK = {"model": "demo", "prompt": "x", "max_tokens": 8, "ignore_eos": True, "temperature": 0}


class Crowd:
    """Clients that ask for long answers, whole and streamed, on connections that they keep or open anew."""

    def __init__(self, url: str, who: dict[str, str]) -> None:
        self._url, self._who, self._is_over = url, who, threading.Event()
        self._clients = ThreadPoolExecutor(12)
        self._asked: list[Future[list[httpx.Response]]] = []
        self.answers: list[httpx.Response] = []

    def __enter__(self) -> Self:
        self._asked = [self._clients.submit(self._ask, at % 2 == 0, at % 3 == 0) for at in range(12)]
        time.sleep(3)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._clients.shutdown()
        self.answers = [answer for asked in self._asked for answer in asked.result()]

    def _ask(self, is_stream: bool, is_anew: bool) -> list[httpx.Response]:
        long = {**ASK, "max_tokens": 200, "stream": is_stream}
        headers = {**self._who, "cache-control": "no-store", **({"connection": "close"} if is_anew else {})}
        with httpx.Client(headers=headers, timeout=150) as client:
            answers = []
            while not self._is_over.is_set():
                answers.append(client.post(self._url, json=long))
                if answers[-1].is_error:
                    time.sleep(0.5)
        return answers


def test_a_partitioned_model_answers_survives_its_worker_and_drains(tmp_path: Path):
    who = {"authorization": "Bearer secret-1"}
    words = ("model=demo", "engine=tp2_cpu", "engine.max_model_len=512")
    with serving(tmp_path, *words, keys="secret-1,secret-2") as service:
        assert httpx.post(f"{service.url}/v1/completions", json=ASK).status_code == 401
        whole = httpx.post(f"{service.url}/v1/completions", json=ASK, headers=who, timeout=120).json()
        assert whole["usage"]["completion_tokens"] == 8

        ranks = service.named("VLLM::Worker")
        assert len(ranks) == 2
        with Crowd(f"{service.url}/v1/completions", who) as crowd:
            ranks[1].kill()
            assert (service.ready(503) | service.ready(200)) <= {200, 503, 502}
        assert {answer.status_code for answer in crowd.answers} <= {200, 503, 502}
        for answer in crowd.answers:
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]
                assert int(answer.headers["retry-after"]) > 0
            elif "event-stream" in answer.headers["content-type"]:
                last = answer.text.rstrip().rsplit("\n\n", 1)[-1]
                assert last == "data: [DONE]" or json.loads(last.removeprefix("data: "))["error"]["message"]
        assert any(answer.is_error or '"error"' in answer.text for answer in crowd.answers)
        again = httpx.post(f"{service.url}/v1/completions", json=ASK, headers=who, timeout=120).json()
        assert again["choices"][0]["text"] == whole["choices"][0]["text"]

        long = {**ASK, "max_tokens": 150, "stream": True, "stream_options": {"include_usage": True}}
        with httpx.stream("POST", f"{service.url}/v1/completions", json=long, headers=who, timeout=120) as asked:
            lines = asked.iter_lines()
            assert next(lines)
            below = service.below()
            service.interrupt()
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        # of an engine that a busy machine holds up, two tokens come in one event: events are not counted
        assert json.loads(rest[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 150
        assert service.process.wait(60) == 0
        assert "stopped" in service.said()
        assert "is dead, another one takes its place: Worker proc VllmWorker-1 died unexpectedly" in service.said()
        assert psutil.wait_procs(below, timeout=20)[1] == []


@pytest.mark.slow
def test_a_broken_checkpoint_ends_it_with_the_cause_in_one_line(tmp_path: Path, demo_model: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in demo_model.iterdir():
        (broken / path.name).write_bytes(path.read_bytes() if path.suffix != ".safetensors" else b"none")
    with serving(tmp_path, f"model.path={broken}", is_ready=False) as service:
        assert service.process.wait(200) == 1
        said = service.said()
    assert "error: unpack requires a buffer" in said  # what safetensors' reader says
    assert "Traceback" not in said
    assert f"logs: {tmp_path}/logs" in said


def test_a_port_in_use_is_the_user_s_mistake():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        done = run("serve", "model=demo", "deployment.name=taken", f"deployment.port={taken.getsockname()[1]}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "deployment.port" in done.stderr
