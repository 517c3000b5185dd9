"""Calls of replicas past Ray Serve's queue: for what needs no engine, however many requests a replica has.

A call through a handle of Ray Serve, and a request in the plain form, wait for a place among those that a replica takes
(`max_ongoing_requests`). Ray's own call of an actor does not. But it runs no coroutine, and while it waited the actor
would begin no request: so it begins what is wanted, in the loop of the app, and another asks whether that has ended.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from serve.router.proxy import watch_addresses, watch_replicas

REPLICA = "replica"
"""What the deployment with the engines is called, in each application."""
POLL_S, MAX_POLL_S = 0.005, 0.1
"""How soon it is asked again whether a call has ended; twice as late each time."""
KEPT_S = 30.0
"""For so long what has ended is kept for whoever began it."""
KNOWN_S = 3.0
"""Within this Ray Serve says for the first time which replicas run."""
_begun: dict[int, Future[Any]] = {}
_number = itertools.count()


class _Told:
    """What Ray Serve tells, and tells again where it changes."""

    def __init__(self, watch: Callable[[Callable[[Any], None]], object]) -> None:
        """Args: what begins to watch, given who is called back."""
        self._value: Any = None
        self._has_come, self._until_s = asyncio.Event(), time.monotonic() + KNOWN_S
        self._watch = watch(self._set)

    def _set(self, value: Any) -> None:
        self._value = value
        self._has_come.set()

    async def get(self) -> Any:
        """Returns what was told last; null where nothing was. Only at the beginning it is waited for."""
        left_s = self._until_s - time.monotonic()
        if not self._has_come.is_set() and left_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_come.wait(), left_s)
        return self._value


class Running:
    """The replicas that run, by application. For one event loop."""

    def __init__(self) -> None:
        """Begins to watch an application once it is asked for."""
        self._replicas: dict[str, _Told] = {}
        self._addresses: _Told | None = None

    async def actors(self, app: str) -> dict[str, str]:
        """Returns the names of their actors by the replicas' own."""
        if app not in self._replicas:
            self._replicas[app] = _Told(lambda set_target: watch_replicas(REPLICA, set_target, app))
        target = await self._replicas[app].get()
        replicas = [] if target is None else target.running_replicas
        return {info.replica_id.unique_id: info.actor_name for info in replicas}

    async def are_reached(self, app: str) -> bool:
        """Returns whether Ray Serve's proxy gives requests to them; while they start or end it may be to the gate."""
        if self._addresses is None:
            self._addresses = _Told(watch_addresses)
        deployments: dict[str, str] | None = await self._addresses.get()
        return deployments is not None and deployments.get(app) == REPLICA


async def call(actor: str, method: str, *arguments: Any) -> Any:
    """Calls a coroutine of a replica, which runs in the loop of its app.

    Args:
        actor: the replica's.
        method: of the deployment's class, whose ``loop`` is the app's.
        arguments: its own.

    Raises:
        Exception: what the method raises, and Ray for a replica that is gone.
    """
    import ray
    from ray.serve._private.constants import SERVE_NAMESPACE

    replica: Any = await asyncio.to_thread(ray.get_actor, actor, SERVE_NAMESPACE)
    number, pause_s = await replica.__ray_call__.remote(_begin, method, arguments), POLL_S
    while not (ended := await replica.__ray_call__.remote(_end, number)):
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_POLL_S)
    return ended[0]


def _begin(_: object, method: str, arguments: tuple[Any, ...]) -> int:
    """Runs in the replica, in a thread of Ray's without a loop; Ray gives it the actor, which is Ray Serve's."""
    import ray.serve as rayserve

    replica: Any = rayserve.get_replica_context().servable_object
    loop: asyncio.AbstractEventLoop = replica.loop
    number = next(_number)
    _begun[number] = future = asyncio.run_coroutine_threadsafe(getattr(replica, method)(*arguments), loop)

    def forget_soon() -> None:  # whoever began it may be gone
        loop.call_later(KEPT_S, lambda: _begun.pop(number, None))

    future.add_done_callback(lambda _: loop.call_soon_threadsafe(forget_soon))
    return number


def _end(_: object, number: int) -> tuple[Any] | None:
    """Runs in the replica: what was begun there has given, once it has ended."""
    if not _begun[number].done():
        return None
    return (_begun.pop(number).result(),)
