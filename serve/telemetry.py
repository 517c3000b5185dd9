"""Where Ray Serve and the engine keep what is to be seen of a replica. To be called in one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from serve.catalogue import app_of
from serve.middleware.scrape import Families

GATHER_S = 3.0
"""Seconds that other replicas may take to say what they have counted."""
Named = tuple[str, Families]

_log = logging.getLogger(__name__)


def replica_name() -> str:
    """What Ray Serve calls this replica, among those of its deployment."""
    import ray.serve as rayserve

    return rayserve.get_replica_context().replica_id.unique_id


def app_name() -> str:
    """What Ray Serve calls the application of this replica's model."""
    import ray.serve as rayserve

    return rayserve.get_replica_context().app_name


async def gather_others(actors: Collection[str], method: str, *arguments: Any) -> list[Named]:
    """Asks other replicas what they have counted, also those that are full; one that does not say so in time is left
    out. They must have one loop (`has_one_loop`): the method runs in the one that is Ray's.

    Args:
        actors: their names.
        method: the deployment's, which returns `Named`; no coroutine.
        arguments: its own.
    """
    asked = (asyncio.wait_for(_ask(actor, method, arguments), GATHER_S) for actor in actors)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return [answer for answer in answers if isinstance(answer, tuple)]


async def _ask(actor: str, method: str, arguments: Sequence[Any]) -> Named:
    import ray
    from ray.serve._private.constants import SERVE_NAMESPACE

    replica: Any = await asyncio.to_thread(ray.get_actor, actor, SERVE_NAMESPACE)
    # a call through Ray Serve's handle would wait for a place among the requests
    return await replica.__ray_call__.remote(_tell, method, *arguments)


def _tell(_: object, method: str, *arguments: Any) -> Named:
    """Runs in the other replica; Ray gives it the actor, which is Ray Serve's."""
    import ray.serve as rayserve

    return getattr(rayserve.get_replica_context().servable_object, method)(*arguments)


async def gather(method: str, own: Named, keys: Iterable[str] = ()) -> list[Named]:
    """Asks every replica of this service what it has counted; one that does not say so in time is left out.

    A full replica answers as soon as one of its requests ends; see `gather_others`.

    Args:
        method: the deployment's, which returns `Named`.
        own: this replica's, which is not asked over the wire.
        keys: of the further models, where this is a replica of the first one.
    """
    apps = [app_name(), *(app_of(app_name(), key) for key in keys)]
    answers = [answer for found in await asyncio.gather(*(_gather(method, app) for app in apps)) for answer in found]
    return [own, *(answer for answer in answers if answer[0] != own[0])]


async def _gather(method: str, app: str) -> list[Named]:
    import ray.serve as rayserve

    handle = rayserve.get_deployment_handle(rayserve.get_replica_context().deployment, app)
    try:
        # `results_async` would give up all for one that hangs
        results = await asyncio.wait_for(handle.broadcast(method)._fetch_replica_results_async(), GATHER_S)
    except Exception as error:
        _log.warning("other replicas cannot be asked for their metrics: %s", type(error).__name__)
        return []
    asked = (asyncio.wait_for(result.get_async(), GATHER_S) for result in results)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return [answer for answer in answers if isinstance(answer, tuple)]


def request_log_path() -> Path:
    """The file of this replica's requests, among those that `cluster.connect.keep_logs` copies."""
    import ray.serve as rayserve
    from ray.serve._private.logging_utils import get_serve_logs_dir

    name = rayserve.get_replica_context().app_name
    return Path(get_serve_logs_dir()) / f"replica_requests_{name}_{replica_name()}.jsonl"


def engine_families() -> Families:
    """What vLLM has counted in this process."""
    from prometheus_client import REGISTRY

    return [family for family in REGISTRY.collect() if family.name.startswith("vllm:")]
