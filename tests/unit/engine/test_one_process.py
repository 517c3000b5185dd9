"""How many threads compute a step where an engine has one process. vLLM's own class, without an engine."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve.engine.vllm.one_process import OneProcess, UniProcExecutor


@pytest.fixture
def had() -> Iterator[int]:
    threads = torch.get_num_threads()
    yield threads
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "width, tokens, threads",
    [
        (256, [1, 32, 33, 1], [1, 1, 3, 1]),
        (512, [8, 9, 8], [1, 3, 1]),
        (2048, [1], [3]),
        (0, [1], [3]),  # a config.json that has another word for it
    ],
)
def test_a_step_of_little_work_has_one_thread(
    width: int, tokens: list[int], threads: list[int], had: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def init(executor: Any) -> None:
        # vLLM does so once it has bound its threads (vllm/v1/worker/cpu_worker.py, 0.32)
        monkeypatch.setattr(torch, "set_num_threads", lambda number: None)

    def compute(executor: Any, step: Any, non_block: bool) -> str:
        seen.append((torch.get_num_threads(), non_block))
        return "computed"

    torch.set_num_threads(3)
    monkeypatch.setattr(UniProcExecutor, "_init_executor", init)
    monkeypatch.setattr(UniProcExecutor, "execute_model", compute)
    monkeypatch.setattr("serve.engine.vllm.one_process.OMPProcessManager", lambda config: Cores())
    executor = OneProcess.__new__(OneProcess)
    executor.vllm_config = SimpleNamespace(model_config=Model(width), parallel_config=None)
    executor._init_executor()
    for number in tokens:
        step = SimpleNamespace(total_num_scheduled_tokens=number, scheduled_encoder_inputs={})
        assert executor.execute_model(step, True) == "computed"
    image = SimpleNamespace(total_num_scheduled_tokens=1, scheduled_encoder_inputs={"request": [0]})
    executor.execute_model(image, True)
    assert seen == [(number, True) for number in [*threads, 3]]


class Model:
    """Four layers and 2,048 words, as vLLM's config of a model says it."""

    def __init__(self, width: int) -> None:
        self._width = width

    def get_hidden_size(self) -> int:
        return self._width

    def get_num_layers(self, parallel_config: Any) -> int:
        return 4

    def get_vocab_size(self) -> int:
        return 2048


class Cores:
    """OpenMP's variables of a machine of which nothing is to be taken."""

    def configure_omp_envs(self, *rank: int) -> Any:
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass
