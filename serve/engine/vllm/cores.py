"""The cores of a process that computes on CPUs.

vLLM gives each worker its cores through the environment (vllm/utils/ompmultiprocessing.py), which OpenMP reads as it is
loaded. Here it was loaded long before, in the server that engines' processes are forked from: without what is done
here, each would compute with as many threads as the machine has cores, beside all others and its own engine.
"""

from __future__ import annotations

import os
import re
import sys

_PLACES = ("GOMP_CPU_AFFINITY", "OMP_PLACES")
"""Lists of cores, ``0 1`` and ``{0,1}``, of which vLLM sets the one that its OpenMP reads."""


def take_cores() -> None:
    """Does what OpenMP would have done with its variables."""
    threads, places = os.environ.get("OMP_NUM_THREADS", ""), [os.environ.get(name, "") for name in _PLACES]
    cores = {int(core) for core in re.findall(r"\d+", next(filter(None, places), ""))}
    if threads.isdigit() and cores:
        os.sched_setaffinity(0, cores)
        sys.modules["torch"].set_num_threads(int(threads))
