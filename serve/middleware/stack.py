"""Which middleware a service has, and in what order."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from conf.schema.access import AccessSpec
from conf.schema.batches import BatchesSpec
from conf.schema.serve import ServeJob
from serve.board import StoreBoard
from serve.cache.key import answer_fingerprint
from serve.keyring import KeyRing, environment_keys, own_keys
from serve.keys import Key, keys_path
from serve.middleware.access import Access
from serve.middleware.answer import ASGIApp
from serve.middleware.body import FORM_BYTES
from serve.middleware.measure import Measure
from serve.middleware.negotiation import Negotiation
from serve.middleware.others import Others
from serve.middleware.routes import FILES
from serve.wire.formats import MEDIA_TYPES

Layer = tuple[str, dict[str, Any]]
"""What makes it, as ``module:name``, and its keyword arguments; they travel to the replica."""


def middleware_of(job: ServeJob, engine_version: str) -> list[Layer]:
    """Returns the layers of a job, from the outside to the inside: access, batches, formats, deadline, response cache.
    Around them are `Observe` and `Routes`.

    Args:
        job: the service; its paths are absolute.
        engine_version: of the engine's library.

    Raises:
        UserError: when nobody could come in, or everybody from other machines.
        OSError: when a file of the model cannot be read.
    """
    job.access.check(job.deployment.host)
    keys = environment_keys(os.environ, datetime.now(UTC))
    if not job.access.open:
        KeyRing(keys_path(job.access.keys_file, os.environ), keys).check()
    keys += own_keys(os.environ, datetime.now(UTC))
    fingerprint = answer_fingerprint(job.model, job.engine, engine_version, job.deployment.vllm)
    outer = {"spec": job.access, "keys": keys, "batches": job.batches, "service": job.deployment.name}
    kept: list[Layer] = []
    if job.batches.path is not None:
        kept = [("serve.batches.layer:Batches", {"spec": job.batches})]
    return [
        ("serve.middleware.stack:make_access", outer),
        *kept,
        ("serve.middleware.stack:make_formats", {"spec": job.access}),
        ("serve.middleware.deadline:Deadline", {"timeout_s": job.deployment.request_timeout_s}),
        ("serve.middleware.cache:Cache", {"spec": job.cache, "fingerprint": fingerprint}),
    ]


def make_access(app: ASGIApp, spec: AccessSpec, keys: Sequence[Key], batches: BatchesSpec, service: str) -> Access:
    """Puts the outer half of the policy around an app. The key file is read here, where it is looked at again.

    Args:
        app: what stands inside.
        spec: limits, and where the key file is.
        keys: those of the driver's environment.
        batches: whether files are sent, and how long they may be.
        service: its name, for what its replicas tell each other.

    Raises:
        UserError: when the key file cannot be read.
    """
    import ray

    uploads = {} if batches.path is None else {FILES: batches.max_file_bytes + FORM_BYTES}
    ring = KeyRing(keys_path(spec.keys_file, os.environ), keys)
    others = Others(uuid.uuid4().hex[:12], StoreBoard(service)) if ray.is_initialized() else None
    return Access(app, spec, ring, MEDIA_TYPES, uploads=uploads, others=others)


def make_formats(app: ASGIApp, spec: AccessSpec) -> Negotiation:
    """Puts the formats around an app, and the inner half of the policy within them, where all bodies are JSON."""
    return Negotiation(Measure(app, spec), spec)


def wrapped(app: ASGIApp, layers: Sequence[Layer]) -> ASGIApp:
    """Returns an app within its layers, the first one outermost.

    A stream's events pass through the ``send`` of each. Those that only look are plain functions that return what the
    next one's returns: with a coroutine for each layer, passing an event was a sixth of what a stream costs.

    Raises:
        ImportError, AttributeError: for a class that is not there.
    """
    for path, options in reversed(layers):
        module, name = path.split(":")
        app = getattr(import_module(module), name)(app, **options)
    return app
