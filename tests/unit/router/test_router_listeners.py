"""serve/router/listeners.py."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send

from serve.router.listeners import LISTENERS, take_bursts

TURN_S = 0.02
CLIENTS = 3 * LISTENERS


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def burst_s(times: int) -> tuple[float, int]:
    """Returns how long a server with a busy loop takes for a burst of requests, and how many sockets are left open."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    address = listener.getsockname()
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, loop="uvloop"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    loop, is_busy = asyncio.get_running_loop(), True

    def be_busy() -> None:  # as one that has hundreds of streams to serve
        time.sleep(TURN_S)
        if is_busy:
            loop.call_soon(be_busy)

    def burst() -> list[bytes]:
        clients = [socket.create_connection(address) for _ in range(times)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        said = [client.recv(64) for client in clients]
        for client in clients:
            client.close()
        return said

    be_busy()
    began = time.monotonic()
    said = await asyncio.to_thread(burst)
    took_s = time.monotonic() - began
    assert all(one.startswith(b"HTTP/1.1 204") for one in said)
    is_busy, server.should_exit = False, True
    await serving
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(socket.create_connection, address)
    return took_s, len(server.servers)


def test_a_busy_server_takes_many_connections_in_a_turn_of_its_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn.Server, "startup", uvicorn.Server.startup)
    take_bursts()
    take_bursts()  # once is enough
    took_s, listeners = uvloop.run(burst_s(CLIENTS))
    assert listeners == LISTENERS
    assert took_s < CLIENTS / 2 * TURN_S  # one a turn: CLIENTS turns
