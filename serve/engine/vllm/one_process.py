"""An engine on few cores that computes where it decides: for a model in one piece no worker starts beside the core."""

from __future__ import annotations

from typing import Any

# by their names: once it has bound its threads vLLM puts what does nothing in torch's place of the second
from torch import get_num_threads, set_num_threads
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from serve.engine.vllm.cores import take_cores

ALONE_WORK = 32 * 3_700_000
"""Tokens of a step, times what a token is multiplied with, up to which one thread computes it: 32 tokens of the demo's
model (docs/decisions/0026-one-process-on-few-cores.md)."""


class OneProcess(UniProcExecutor):
    """vLLM's own executor for one process, on the cores that its worker would have had.

    vLLM takes a worker there because it says to OpenMP through the environment which cores it has, and the core has
    loaded OpenMP long before (vllm/platforms/cpu.py, 0.26-0.32); `take_cores` says it later. The two would take turns:
    vLLM does not schedule ahead on CPUs.
    """

    def _init_executor(self) -> None:
        with OMPProcessManager(self.vllm_config).configure_omp_envs(0, 0):
            take_cores()
        self._threads = get_num_threads()
        self._alone_tokens = _alone_tokens(self.vllm_config)
        super()._init_executor()

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """Computes a step; one of little work with one thread, where others cost more to wake than they help."""
        tokens, inputs = scheduler_output.total_num_scheduled_tokens, scheduler_output.scheduled_encoder_inputs
        is_alone = tokens <= self._alone_tokens and not inputs
        set_num_threads(1 if is_alone else self._threads)
        return super().execute_model(scheduler_output, non_block)


def _alone_tokens(config: Any) -> int:
    """Returns the tokens of a step of little work; a layer's weights are some twelve squares of the model's width."""
    model = config.model_config
    width = model.get_hidden_size()  # 0 where the config.json has another word for it
    layers = model.get_num_layers(config.parallel_config)
    weights = 12 * layers * width**2 + width * model.get_vocab_size()
    return ALONE_WORK // weights if weights else 0
