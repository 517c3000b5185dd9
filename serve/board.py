"""Where the replicas of a service write what the others read (`serve/middleware/others.py`): Ray's key-value store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TIMEOUT_S = 2.0
_NAMESPACE = b"manta"


class StoreBoard:
    """A board of one service. To be used where Ray is connected."""

    def __init__(self, service: str) -> None:
        """Takes the service's name."""
        self._prefix = f"use:{service}:"

    def swap(self, name: str, post: bytes) -> Mapping[str, bytes]:
        """Writes a replica's post and returns all, in three calls however many there are.

        Raises:
            RayError, RuntimeError: when Ray's store does not answer in time.
        """
        store = _store()
        store.internal_kv_put(self._key(name), post, True, _NAMESPACE, timeout=TIMEOUT_S)
        keys = store.internal_kv_keys(self._prefix.encode(), _NAMESPACE, timeout=TIMEOUT_S)
        found = store.internal_kv_multi_get(keys, _NAMESPACE, timeout=TIMEOUT_S)
        return {key.decode().removeprefix(self._prefix): value for key, value in found.items()}

    def drop(self, name: str) -> None:
        """Takes away the post of a replica that is gone.

        Raises:
            RayError, RuntimeError: as `swap` does.
        """
        _store().internal_kv_del(self._key(name), False, _NAMESPACE, timeout=TIMEOUT_S)

    def _key(self, name: str) -> bytes:
        return f"{self._prefix}{name}".encode()


def _store() -> Any:
    from ray.experimental.internal_kv import internal_kv_get_gcs_client

    return internal_kv_get_gcs_client()
