"""The process of the engine's core, forked from a server that imports vLLM while the replica does.

vLLM spawns it where its caller is an actor of Ray (vllm/utils/system_utils.py, _maybe_force_spawn): then all of vLLM is
imported a second time after the first, 15 of the 52 s that an engine took to start on an H200.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context
from multiprocessing import forkserver

PRELOADED = ("serve.engine.vllm.fork_server", "vllm.v1.engine.async_llm", "vllm.v1.engine.core")
"""What the server imports."""


def prepare_core_process() -> None:
    """Starts the server; what this process is to spawn from now on is forked from there.

    To be called with the environment as vLLM shall find it, from a thread that lives as long as the process: the server
    ends with the thread that started it.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(PRELOADED))
    forkserver.ensure_running()
    # vLLM asks for "spawn" by its name. A child of either kind begins with none of this process's memory, so one can
    # stand in for the other
    multiprocessing.context._concrete_contexts["spawn"] = server  # type: ignore[attr-defined]
