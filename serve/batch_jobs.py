"""The batches of a service that runs: their jobs ask the service itself, on its cluster."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from conf.saved import text, words_of
from conf.schema.batches import BatchesSpec
from conf.schema.serve import ServeJob
from serve.batches.runner import Runner
from serve.batches.shelf import Shelf
from serve.keyring import OWN_VARIABLE
from serve.plan import ServicePlan

ROOT = Path(__file__).resolve().parent.parent


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

    def models() -> list[str]:
        model = plan().job.model
        return [model.name, *model.adapters]

    def command(source: Path, target: Path) -> list[str]:
        now = plan()
        return job_command(now.job, now.url, address, source, target)

    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "MANTA_API_KEY": os.environ[OWN_VARIABLE],
    }
    runner = Runner(Shelf(Path(spec.path)), spec, models, command, environment)
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
    return [sys.executable, "-m", "conf.cli", "batch", *words]
