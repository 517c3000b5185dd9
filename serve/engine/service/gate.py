"""Who may be at the service now: a semaphore whose size changes, and which can call back who is there."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class Gate:
    """Lets calls through, the first that came first. To be used in one event loop."""

    def __init__(self) -> None:
        """It is closed until `resize`."""
        self._size = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._passing = 0
        """Those that were let through and have not taken their place yet."""
        self._calls: dict[asyncio.Future[Any], bool] = {}
        """What is at the service, and whether it was called back."""

    @property
    def held(self) -> int:
        """Calls that are at the service."""
        return len(self._calls) + self._passing

    def resize(self, size: int) -> None:
        """Changes how many may be through at a time; those that are through stay."""
        self._size = size
        self._let_through()

    def call_back(self) -> int:
        """Ends all calls that are at the service, so that they are made again when they may.

        Returns:
            How many there were.
        """
        calls = [call for call, is_back in self._calls.items() if not is_back and not call.done()]
        for call in calls:
            self._calls[call] = True
            call.cancel()
        return len(calls)

    async def run(self, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Makes a call once there is room, again each time that it is called back, and returns what it does.

        Raises:
            Exception: what the call raises.
        """
        while True:
            await self._enter()
            task = asyncio.ensure_future(call())
            self._calls[task] = False
            try:
                await asyncio.wait((task,))
            finally:
                if not task.done():  # who asked has left
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                is_back = self._calls.pop(task)
                self._let_through()
            if not (is_back and task.cancelled()):
                return task.result()

    def _let_through(self) -> None:
        while self._waiting and self.held < self._size:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                self._passing += 1

    async def _enter(self) -> None:
        if self.held < self._size and not self._waiting:
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.cancelled():
                self._waiting.remove(place)
            else:  # let through, and gone
                self._passing -= 1
                self._let_through()
            raise
        self._passing -= 1
