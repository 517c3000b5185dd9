"""Ports of this machine that are free."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress
from itertools import chain, repeat
from pathlib import Path

_HOST = "127.0.0.1"


def free_ports(count: int) -> list[int]:
    """Returns ports of this machine that nothing listens at.

    They are below those that the kernel gives to connections, so that none of these takes one before its node does.
    """
    lowest = 0
    with suppress(OSError, ValueError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    below = range(max(1024, lowest // 2), lowest)
    candidates = chain(random.sample(below, len(below)), repeat(0, count))
    with ExitStack() as held:
        ports: list[int] = []
        for port in candidates:
            if len(ports) == count:
                break
            listener = held.enter_context(socket.socket())
            with suppress(OSError):
                listener.bind((_HOST, port))
                ports.append(listener.getsockname()[1])
        return ports
