"""Whether what a cache needs elsewhere is there: nothing fails without it, and so nobody would see that it is not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from conf.schema.cache import CacheKind, CacheSpec
from serve.cache.store import redis_url

PATIENCE_S = 1.0
_PORTS = {"http": 80, "https": 443}


def unreached(spec: CacheSpec) -> Iterator[str]:
    """Yields a sentence for each server that does not answer from this machine; replicas may have another way to it."""
    if spec.kind is CacheKind.redis and (why := _redis_fault(redis_url(spec))):
        yield f"cache=redis: Redis does not answer here ({why}); where replicas do not reach it either, nothing is kept"
    if spec.semantic.enabled and (why := _endpoint_fault(spec.semantic.url)):
        parts = urlsplit(spec.semantic.url)  # its query may hold a key
        yield (
            f"cache.semantic.url={parts.scheme}://{parts.netloc} does not answer here ({why}); where replicas do not"
            " reach it either, similar requests are not found"
        )


def _redis_fault(url: str) -> str | None:
    from redis import Redis

    try:
        with Redis.from_url(url, socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S, retry=None) as client:
            client.ping()
    except Exception as error:  # of any kind: the line is only a warning. Never with the URL, which may hold a password
        return type(error).__name__
    return None


def _endpoint_fault(url: str) -> str | None:
    parts = urlsplit(url)
    try:
        port = parts.port or _PORTS.get(parts.scheme, 80)
        with socket.create_connection((parts.hostname or "", port), PATIENCE_S):
            return None
    except (OSError, ValueError) as error:
        return type(error).__name__
