"""How an engine's processes wait for each other on CPUs: in naps.

A process that waits for vLLM's message queue looks at it again and again for a second before it sleeps, and gives way
to others in between. The engine's core so looked all the while its worker computed, on a core that the replica, the
proxy and the clients need as well: four fifths of its CPU; see docs/decisions/0024.
"""

from __future__ import annotations

import time

NAP_S = 1e-4
"""Between two looks. A step of a small model takes a hundred times as long."""


def take_naps() -> None:
    """Has the processes that are forked from now on sleep between two looks.

    To let them sleep until a message wakes them, as they do after a second, loses messages: their socket holds one, and
    drops the next where the one before was read a moment ago (9 % of messages a few milliseconds apart).

    Source: vllm/distributed/device_communicators/shm_broadcast.py (0.26-0.32), whose SpinCondition and acquire_write
    call `sched_yield`.
    """
    from vllm.distributed.device_communicators import shm_broadcast

    shm_broadcast.sched_yield = nap


def nap() -> None:
    """Sleeps for a moment."""
    time.sleep(NAP_S)
