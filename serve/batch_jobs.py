"""The batches of a service that runs: their jobs ask the service itself, on its cluster."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cluster.child import manta_command, manta_environment
from conf.saved import text, words_of
from conf.schema.batches import BatchesSpec
from conf.schema.serve import ServeJob
from conf.schema.service import API_KEY
from serve.batches.runner import Runner
from serve.batches.shelf import Shelf
from serve.keyring import OWN_VARIABLE
from serve.plan import ServicePlan


def set_own_key(spec: BatchesSpec, environ: MutableMapping[str, str]) -> None:
    """Makes the key by which jobs come in, new for each service; it is kept in this process and its jobs alone."""
    if spec.path is not None:
        environ[OWN_VARIABLE] = secrets.token_urlsafe(32)


@contextmanager
def running_batches(plan: Callable[[], ServicePlan], address: str) -> Iterator[None]:
    """Runs batches as long as the service runs, where it has any.

    Args:
        plan: tells what the service is now.
        address: of its cluster.

    Raises:
        UserError: when the folder cannot be used.
    """
    spec = plan().job.batches
    if spec.path is None:
        yield
        return

    def command(source: Path, target: Path) -> list[str]:
        now = plan()
        return job_command(now.job, now.url, address, source, target)

    environment = {**manta_environment(), API_KEY: os.environ[OWN_VARIABLE]}
    runner = Runner(Shelf(Path(spec.path)), spec, lambda: plan().names, command, environment)
    runner.start()
    try:
        yield
    finally:
        runner.stop()


def job_command(job: ServeJob, url: str, address: str, source: Path, target: Path) -> list[str]:
    """Returns the command of a batch's job.

    Args:
        job: the service.
        url: of the service.
        address: of the cluster.
        source: the requests, as a client sent them.
        target: the output folder.
    """
    words = [
        *words_of("batch", {"model": msgspec.to_builtins(job.model)}, []),
        "data=openai_batch",
        *words_of("batch", {"data": {"input": str(source)}, "output": {"path": str(target)}}, []),
        *words_of("batch", {"cluster": {"address": address}, "engine": {"service": {"url": url}}}, []),
        "engine=service",
        f"engine.max_model_len={text(job.engine.max_model_len)}",
        "output.on_change=recompute",  # of a model that an update has brought
    ]
    return manta_command("batch", *words)
