"""How many replicas a service's autoscaler wants, and why: kept in Ray's key-value store, where whoever asks finds it.

Ray Serve's controller, which runs the autoscaler, has no word for a reason.
"""

from __future__ import annotations

import msgspec

NAMESPACE = "manta"


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """The last change."""

    was: int
    target: int
    """0: the service sleeps, and the next request wakes it."""
    reason: str
    at_s: float
    """Since the epoch; tells one change from another like it."""


def write_size(name: str, size: Size) -> None:
    """Writes what a service's autoscaler decided. To be called where Ray is connected."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(_key(name), msgspec.json.encode(size), overwrite=True, namespace=NAMESPACE)


def read_size(name: str) -> Size | None:
    """Returns the last change of a service; null where there is none. To be called where Ray is connected."""
    from ray.experimental.internal_kv import _internal_kv_get

    data = _internal_kv_get(_key(name), namespace=NAMESPACE)
    return None if data is None else msgspec.json.decode(data, type=Size)


def forget_size(name: str) -> None:
    """Forgets it: what starts next has not decided anything."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(_key(name), namespace=NAMESPACE)


def _key(name: str) -> bytes:
    return f"size:{name}".encode()
