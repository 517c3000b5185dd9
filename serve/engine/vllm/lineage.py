"""An engine's processes end with the one that started them, however that ends."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
"""Source: linux/prctl.h."""


def end_with_parent() -> None:
    """Has the kernel kill this process when the thread that started it ends; a later fork's child must ask again."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
