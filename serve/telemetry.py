"""Where Ray Serve and the engine keep what is to be seen of a replica. To be called in one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from serve.catalogue import app_of
from serve.middleware.scrape import Families
from serve.router.past import Running, call

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


async def gather(running: Running, method: str, own: Named, keys: Iterable[str] = ()) -> list[Named]:
    """Asks every replica of this service what it has counted, also those that are full; one that does not say so in
    time is left out.

    Args:
        running: which replicas there are.
        method: the deployment's, a coroutine that returns `Named`.
        own: this replica's, which is not asked.
        keys: of the further models, where this is a replica of the first one.
    """
    apps = [app_name(), *(app_of(app_name(), key) for key in keys)]
    found = await asyncio.gather(*map(running.actors, apps), return_exceptions=True)  # Ray Serve may not be there
    actors = {name: actor for each in found if isinstance(each, dict) for name, actor in each.items()}
    asked = (asyncio.wait_for(call(actor, method), GATHER_S) for name, actor in actors.items() if name != own[0])
    answers = await asyncio.gather(*asked, return_exceptions=True)
    if num_silent := sum(not isinstance(answer, tuple) for answer in answers):
        _log.warning("%d other replicas did not say what they have counted", num_silent)
    return [own, *(answer for answer in answers if isinstance(answer, tuple))]


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
