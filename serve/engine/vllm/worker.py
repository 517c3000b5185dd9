"""Imported by vLLM's workers (``worker_extension_cls``), and by nothing else: it acts as it is imported.

A worker ends with its engine. vLLM tells it of the engine's end and lets it close NCCL first, where workers wait for
each other, and some for ever (0.32, two GPUs): the next engine then finds their weights in the GPUs' memory. On CPUs it
asks for the registers that its kernels take, see `tiles`.
"""

from __future__ import annotations

import multiprocessing
import os

from serve.engine.vllm.lineage import end_with_parent
from serve.engine.vllm.tiles import ask


class Worker:
    """What vLLM adds to its workers: nothing; its module is what is wanted."""


_parent = multiprocessing.parent_process()
if _parent is not None:  # else the engine computes in the replica's own process
    end_with_parent()
    if not _parent.is_alive():  # it ended before the kernel was told
        os._exit(1)
ask()
