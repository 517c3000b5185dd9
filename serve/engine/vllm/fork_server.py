"""Imported by the server that engines' processes are forked from, and by nothing else: it acts as it is imported.

When the replica ends, however it ends, the kernel ends the server, and with it the engine's process. Nothing else
would: an engine whose replica was killed keeps its GPU's memory for ever. See `core_process`.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""
_server = os.getpid()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _begin_child() -> None:
    if os.getppid() == _server:
        _end_with_parent()


_end_with_parent()
os.register_at_fork(after_in_child=_begin_child)
