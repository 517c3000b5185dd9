"""How many connections a server of this process takes in a turn of its event loop."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import uvicorn

LISTENERS = 16
"""Listening sockets for each port. One to which nobody connects costs a call of the kernel at each connection."""


def take_bursts() -> None:
    """Makes servers that uvicorn starts from now on take up to `LISTENERS` connections in a turn of the loop.

    libuv, which uvloop stands on, accepts one in each turn since 1.45 (libuv/libuv#3696), whatever the backlog. HAProxy
    has a connection for each request: with 256 streams, whose turn takes 10 ms, a replica would take 100 requests a
    second. A socket's duplicate waits for the same connections, and is asked by itself.
    """
    if not hasattr(uvicorn.Server.startup, "__wrapped__"):
        uvicorn.Server.startup = _widened(uvicorn.Server.startup)


def _widened(startup: Callable[..., Awaitable[None]]) -> Any:
    @wraps(startup)
    async def widened(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
        more = [one.dup() for one in sockets or () for _ in range(LISTENERS - 1)]
        await startup(server, None if sockets is None else [*sockets, *more])

    return widened
