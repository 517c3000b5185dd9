"""An engine on few cores that computes where it decides: for a model in one piece no worker starts beside the core."""

from __future__ import annotations

from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from serve.engine.vllm.cores import take_cores


class OneProcess(UniProcExecutor):
    """vLLM's own executor for one process, on the cores that its worker would have had.

    vLLM takes a worker there because it says to OpenMP through the environment which cores it has, and the core has
    loaded OpenMP long before (vllm/platforms/cpu.py, 0.26-0.32); `take_cores` says it later. The two would take turns:
    vLLM does not schedule ahead on CPUs.
    """

    def _init_executor(self) -> None:
        with OMPProcessManager(self.vllm_config).configure_omp_envs(0, 0):
            take_cores()
        super()._init_executor()
