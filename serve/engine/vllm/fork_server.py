"""Imported by the server that engines' processes are forked from, and by nothing else: it acts as it is imported.

When the replica ends, however it ends, the kernel ends the server, and with it the engine's process. Nothing else
would: an engine whose replica was killed keeps its GPU's memory for ever. See `core_process`.

On CPUs processes that wait for each other nap, see `waiting`. There vLLM gives each worker its cores through the
environment (vllm/utils/ompmultiprocessing.py), which OpenMP reads as it is loaded. Here it was loaded long before:
without what is done below, each worker would compute with as many threads as the machine has cores, beside all others'
and its own engine's.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys

from serve.engine.vllm.waiting import take_naps

_PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""
_PLACES = ("GOMP_CPU_AFFINITY", "OMP_PLACES")
"""Lists of cores, ``0 1`` and ``{0,1}``, of which vLLM sets the one that its OpenMP reads."""
_server = os.getpid()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _take_cores() -> None:
    """Does what OpenMP would have done with its variables."""
    threads, places = os.environ.get("OMP_NUM_THREADS", ""), [os.environ.get(name, "") for name in _PLACES]
    cores = {int(core) for core in re.findall(r"\d+", next(filter(None, places), ""))}
    if threads.isdigit() and cores:
        os.sched_setaffinity(0, cores)
        sys.modules["torch"].set_num_threads(int(threads))


def _begin_child() -> None:
    if os.getppid() == _server:
        _end_with_parent()
    _take_cores()


def _is_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


_end_with_parent()
os.register_at_fork(after_in_child=_begin_child)
if _is_cpu():
    take_naps()
