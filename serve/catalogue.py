"""Which models a service has, and at which path of Ray Serve's proxy each stands; every process of it can read this.

Ray's own key-value store holds it: the service's process writes, Ray Serve's proxy and the replicas read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import msgspec

PREFIX = "/_model"
"""Below it stand the further models, for Ray Serve's proxy only."""
HEAR_S = 1.0
"""For so long a process may not know of a change."""
FETCH_S = 5.0
_KEY, _NAMESPACE = b"catalogue", b"manta"

_log = logging.getLogger(__name__)


def prefix_of(key: str) -> str:
    """Returns the path below which a model stands: the first one, whose key is empty, at the root."""
    return f"{PREFIX}/{key}" if key else ""


def app_of(service: str, key: str) -> str:
    """Returns what Ray Serve calls a model's application: for the first one it is the service's name."""
    return f"{service}.{key}" if key else service


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A name that requests may use."""

    name: str
    parent: str | None
    """The model's name, of an adapter."""
    key: str
    """Below `deployment.models`; empty for the first model."""
    max_model_len: int
    """Context in tokens."""


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All models and adapters of a service, and what holds for a request whose model is not known yet."""

    entries: list[Entry]
    created: int
    """Unix time, in seconds."""
    is_open: bool
    max_body_bytes: int
    body_timeout_s: float

    @cached_property
    def prefixes(self) -> Mapping[str, str]:
        """Paths of the further models' names."""
        return {entry.name: prefix_of(entry.key) for entry in self.entries if entry.key}

    @cached_property
    def keys(self) -> list[str]:
        """Of the further models."""
        return list(dict.fromkeys(entry.key for entry in self.entries if entry.key))


Know = Callable[[], Awaitable[Catalogue | None]]
"""What says which models there are now; null where nobody has said so yet."""


def publish(catalogue: Catalogue | None) -> None:
    """Tells all processes of the cluster; null takes it back."""
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

    if catalogue is None:
        _internal_kv_del(_KEY, namespace=_NAMESPACE)
    else:
        _internal_kv_put(_KEY, msgspec.json.encode(catalogue), overwrite=True, namespace=_NAMESPACE)


def read() -> Catalogue | None:
    """Returns what was told last.

    Raises:
        RayError: when Ray's store does not answer.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    data = _internal_kv_get(_KEY, namespace=_NAMESPACE)
    return msgspec.json.decode(data, type=Catalogue) if data else None


async def read_now() -> Catalogue | None:
    """Returns what was told last, without holding up the event loop; null where Ray's store does not answer."""
    try:
        return await asyncio.wait_for(asyncio.to_thread(read), FETCH_S)
    except Exception as error:
        _log.warning("which models there are cannot be read now: %s", type(error).__name__)
        return None


class Follower:
    """Knows the catalogue, and reads it again every second once it was asked for it. For one event loop."""

    def __init__(self, read: Know = read_now, period_s: float = HEAR_S) -> None:
        """Args: what reads it, and how often, in seconds."""
        self._read, self._period_s = read, period_s
        self._known: Catalogue | None = None
        self._task: asyncio.Task[None] | None = None
        self._has_read = asyncio.Event()

    async def __call__(self) -> Catalogue | None:
        """Returns the catalogue; only the first call waits."""
        if self._task is None:
            self._task = asyncio.create_task(self._follow())
        if not self._has_read.is_set():
            await self._has_read.wait()
        return self._known

    async def _follow(self) -> None:
        while True:
            found = await self._read()
            # what cannot be read now has not changed as far as is known
            if found is not None and found != self._known:
                self._known = found
            self._has_read.set()
            await asyncio.sleep(self._period_s)
