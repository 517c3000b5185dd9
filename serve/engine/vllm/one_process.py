"""An engine on few cores that computes where it decides: for a model in one piece no worker starts beside the core."""

from __future__ import annotations

from typing import Any

# by their names: once it has bound its threads vLLM puts what does nothing in torch's place of the second
from torch import get_num_threads, set_num_threads
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from serve.engine.vllm.cores import take_cores

ALONE_WORK = 32 * 256**3
"""Tokens of a step, times the third power of the model's width, up to which one thread computes it: 32 tokens of width
256, 4 of 512, none of 1024 (docs/decisions/0026-one-process-on-few-cores.md)."""


class OneProcess(UniProcExecutor):
    """vLLM's own executor for one process, on the cores that its worker would have had.

    vLLM takes a worker there because it says to OpenMP through the environment which cores it has, and the core has
    loaded OpenMP long before (vllm/platforms/cpu.py, 0.26-0.32); `take_cores` says it later. The two would take turns:
    vLLM does not schedule ahead on CPUs.
    """

    def _init_executor(self) -> None:
        with OMPProcessManager(self.vllm_config).configure_omp_envs(0, 0):
            take_cores()
        self._threads, width = get_num_threads(), self.vllm_config.model_config.get_hidden_size()
        self._alone_tokens = ALONE_WORK // width**3
        super()._init_executor()

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """Computes a step; one of little work with one thread, where others cost more to wake than they help."""
        is_alone = scheduler_output.total_num_scheduled_tokens <= self._alone_tokens
        set_num_threads(1 if is_alone else self._threads)
        return super().execute_model(scheduler_output, non_block)
