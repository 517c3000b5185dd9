"""What a service remembers of its answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit

from conf.errors import UserError
from conf.schema.semantic import SemanticSpec


class CacheKind(Enum):
    """Where answers are kept: nowhere, in each replica's memory, or in a Redis or Valkey that replicas share."""

    off = "off"
    memory = "memory"
    redis = "redis"


@dataclass(kw_only=True, slots=True)
class CacheSpec:
    """Answers to equal requests: given again from the cache, or computed once where they come at the same time."""

    kind: CacheKind = CacheKind.off
    ttl_s: float = 3600.0
    """How long an answer is given again."""
    max_bytes: int = 256 << 20
    """Memory that a replica's answers take, keys and bookkeeping included; the least recently used go first. A Redis
    has a limit of its own: ``maxmemory`` with ``maxmemory-policy allkeys-lru``."""
    max_entry_bytes: int = 1 << 20
    """A longer answer is not kept."""
    sampled: bool = False
    """Also keep answers that were drawn (temperature > 0) where the request has a seed."""
    per_key: bool = True
    """API keys share no answers. Without it, who holds one key can find out by the time of an answer whether somebody
    else has asked the same."""
    url: str = "redis://127.0.0.1:6379/0"
    """The Redis server: redis://, rediss:// (TLS) or unix://. The environment variable MANTA_REDIS_URL comes first, and
    is the place for a password."""
    timeout_s: float = 0.1
    """How long a request waits for Redis before it goes on without."""
    retry_after_s: float = 2.0
    """How long Redis, or the embedding model, is left alone after it failed three times in a row."""
    max_connections: int = 32
    """Connections of a replica to Redis, and to the embedding model."""
    semantic: SemanticSpec = field(default_factory=SemanticSpec)

    def __post_init__(self) -> None:
        for key in ("ttl_s", "timeout_s", "retry_after_s"):
            if not 0 < getattr(self, key) < float("inf"):
                raise UserError(f"cache.{key} must be > 0, got {getattr(self, key)}")
        for key in ("max_bytes", "max_entry_bytes", "max_connections"):
            if getattr(self, key) < 1:
                raise UserError(f"cache.{key} must be >= 1, got {getattr(self, key)}")
        if self.kind is CacheKind.memory and self.max_entry_bytes > self.max_bytes:
            raise UserError(
                f"cache.max_entry_bytes must be <= cache.max_bytes={self.max_bytes}, got {self.max_entry_bytes}"
            )
        if self.semantic.enabled and self.kind is CacheKind.off:
            raise UserError("cache.semantic.enabled needs cache.kind=memory or cache.kind=redis, got off")
        check_redis_url(self.url, "cache.url")
        if urlsplit(self.url).password:
            raise UserError("cache.url must hold no password: put the whole URL into the environment, MANTA_REDIS_URL")


def check_redis_url(url: str, name: str) -> None:
    """Checks the form of a Redis URL; the message does not repeat it, for it may hold a password.

    Args:
        url: what is checked.
        name: what the message calls it.

    Raises:
        UserError: when it is none.
    """
    try:
        parts = urlsplit(url)
        is_good = bool(parts.path if parts.scheme == "unix" else parts.hostname) and parts.port != 0
    except ValueError:  # no such port, or half an IPv6 address
        is_good = False
    else:
        is_good = is_good and parts.scheme in ("redis", "rediss", "unix")
    if not is_good:
        raise UserError(f"{name} must be redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix://PATH")
