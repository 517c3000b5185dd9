"""Why a replica's engine ended: kept in Ray's key-value store, where whoever started the service finds it.

Ray Serve's controller knows no more than that a replica is gone.
"""

from __future__ import annotations

import msgspec

NAMESPACE = "manta"


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """The last one of a service."""

    replica: str
    cause: str
    at_s: float
    """Since the epoch; tells one death from another like it."""


def write_death(name: str, death: Death) -> None:
    """Writes why a replica of a service ends. To be called where Ray is connected."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(_key(name), msgspec.json.encode(death), overwrite=True, namespace=NAMESPACE)


def read_death(name: str) -> Death | None:
    """Returns the last death of a service; null where there was none. To be called where Ray is connected."""
    from ray.experimental.internal_kv import _internal_kv_get

    data = _internal_kv_get(_key(name), namespace=NAMESPACE)
    return None if data is None else msgspec.json.decode(data, type=Death)


def _key(name: str) -> bytes:
    return f"death:{name}".encode()
