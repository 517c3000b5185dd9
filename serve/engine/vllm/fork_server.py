"""Imported by the server that engines' processes are forked from, and by nothing else: it acts as it is imported.

When the replica ends, however it ends, the kernel ends the server, and with it the engine's process. Nothing else
would: an engine whose replica was killed keeps its GPU's memory for ever. See `core_process`.

On CPUs processes that wait for each other nap, see `waiting`, and each takes the cores that vLLM gives it, see `cores`.
"""

from __future__ import annotations

import os

from serve.engine.vllm.cores import take_cores
from serve.engine.vllm.lineage import end_with_parent
from serve.engine.vllm.waiting import take_naps

_server = os.getpid()


def _begin_child() -> None:
    if os.getppid() == _server:
        end_with_parent()
    take_cores()


def _is_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


end_with_parent()
os.register_at_fork(after_in_child=_begin_child)
if _is_cpu():
    take_naps()
