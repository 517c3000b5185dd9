"""Where answers are kept: in this process, or in a Redis that replicas share. A store never fails a request."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Protocol

from cachetools import TTLCache

from conf.schema.cache import CacheKind, CacheSpec, check_redis_url
from serve.cache.rest import Rest

_ENTRY_BYTES = 500
"""What an entry takes beside its key's and value's characters: 394 were measured with cachetools 8.0 on Python 3.11."""

_PREFIX = "manta:1:"


class Store(Protocol):
    """Entries by key. Both are bytes and text that any process can read: nothing is pickled."""

    async def get(self, key: str) -> bytes | None:
        """Returns the entry; null where there is none, or the store does not answer in time."""
        ...

    async def put(self, key: str, entry: bytes) -> None:
        """Keeps an entry, or not: it may be too long, or the store does not answer."""
        ...

    async def close(self) -> None:
        """Lets go of connections. Harmless when called twice."""
        ...


class MemoryStore:
    """The least recently used entry goes first, and each at its end of life."""

    def __init__(self, spec: CacheSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_entry_bytes = spec.max_entry_bytes
        self._entries: TTLCache[str, _Kept] = TTLCache(spec.max_bytes, spec.ttl_s, timer=clock, getsizeof=_size)

    @property
    def num_bytes(self) -> int:
        """Memory that entries take."""
        return int(self._entries.currsize)

    async def get(self, key: str) -> bytes | None:
        """See `Store`."""
        kept = self._entries.get(key)
        return None if kept is None else kept[1]

    async def put(self, key: str, entry: bytes) -> None:
        """See `Store`."""
        kept = (key, entry)
        if len(entry) <= self._max_entry_bytes and _size(kept) <= self._entries.maxsize:
            self._entries[key] = kept

    async def close(self) -> None:
        """Forgets everything."""
        self._entries.clear()


_Kept = tuple[str, bytes]


def _size(kept: _Kept) -> int:
    return len(kept[0]) + len(kept[1]) + _ENTRY_BYTES


class RedisStore:
    """Entries in Redis or Valkey, each with its end of life. Belongs to the event loop that first uses it.

    Every call is bounded by ``cache.timeout_s``. After three failures in a row the server is left alone for
    ``cache.retry_after_s``: calls return at once.
    """

    def __init__(self, spec: CacheSpec, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        # here, for most services run without: 60 ms
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        self._spec = spec
        self._rest = Rest("the cache's Redis", spec.retry_after_s, clock)
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=spec.max_connections,
            timeout=spec.timeout_s,
            socket_timeout=spec.timeout_s,
            socket_connect_timeout=spec.timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis = Redis.from_pool(pool)

    async def get(self, key: str) -> bytes | None:
        """See `Store`."""
        own = key.encode()
        limit = len(own) + self._spec.max_entry_bytes
        # a range: what another program has put there may be of any length
        found = await self._ask("GETRANGE", _PREFIX + key, 0, limit)
        # the key stands in the value too: an answer that belongs to another command can never be taken for this one's
        if isinstance(found, bytes) and len(own) < len(found) <= limit and found.startswith(own):
            return found[len(own) :]
        return None

    async def put(self, key: str, entry: bytes) -> None:
        """See `Store`."""
        if len(entry) <= self._spec.max_entry_bytes:
            await self._ask("SET", _PREFIX + key, key.encode() + entry, "PX", max(1, int(self._spec.ttl_s * 1000)))

    async def close(self) -> None:
        """See `Store`."""
        await self._redis.aclose()

    async def _ask(self, *command: str | bytes | int) -> object:
        if self._rest.is_on:
            return None
        try:
            async with asyncio.timeout(self._spec.timeout_s):
                answered = await self._redis.execute_command(*command)
        except Exception as error:  # whatever is wrong with it, requests go on
            self._rest.failed(error)
            return None
        self._rest.succeeded()
        return answered


def redis_url(spec: CacheSpec) -> str:
    """Returns where Redis is: the environment comes first."""
    return os.environ.get("MANTA_REDIS_URL") or spec.url


def build_store(spec: CacheSpec) -> Store | None:
    """Returns the store that a configuration asks for; null where there is none. Connects to nothing yet.

    Raises:
        UserError: when MANTA_REDIS_URL is no URL of a Redis.
    """
    if spec.kind is CacheKind.off:
        return None
    if spec.kind is CacheKind.memory:
        return MemoryStore(spec)
    url = redis_url(spec)
    check_redis_url(url, "the environment variable MANTA_REDIS_URL")  # cache.url was checked as it was read
    return RedisStore(spec, url)
