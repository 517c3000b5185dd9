"""What is known in one process of a service and told in another: kept in Ray's key-value store, where whoever asks
finds it.

Ray Serve's controller, which runs the autoscaler and replaces replicas, has no word for a reason.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

NAMESPACE = "manta"


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """The last change of how many replicas the autoscaler wants."""

    was: int
    target: int
    """0: the service sleeps, and the next request wakes it."""
    reason: str
    at_s: float
    """Since the epoch; tells one change from another like it."""


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """The last replica whose engine was dead."""

    replica: str
    cause: str
    at_s: float
    """Since the epoch."""


Notice = TypeVar("Notice", Size, Death)


def write_notice(name: str, notice: Size | Death) -> None:
    """Writes the last one of its kind for a service. To be called where Ray is connected."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(_key(name, type(notice)), msgspec.json.encode(notice), overwrite=True, namespace=NAMESPACE)


def read_notice(name: str, kind: type[Notice]) -> Notice | None:
    """Returns the last one of a service; null where there is none. To be called where Ray is connected."""
    from ray.experimental.internal_kv import _internal_kv_get

    data = _internal_kv_get(_key(name, kind), namespace=NAMESPACE)
    return None if data is None else msgspec.json.decode(data, type=kind)


def forget_notices(name: str) -> None:
    """Forgets them: of what starts next there is nothing to tell."""
    from ray.experimental.internal_kv import _internal_kv_del

    for kind in (Size, Death):
        _internal_kv_del(_key(name, kind), namespace=NAMESPACE)


def _key(name: str, kind: type[Size] | type[Death]) -> bytes:
    return f"{kind.__name__.lower()}:{name}".encode()
