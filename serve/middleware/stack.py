"""Which middleware a service has, and in what order."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from conf.schema.serve import ServeJob
from serve.middleware.answer import ASGIApp

Layer = tuple[str, dict[str, Any]]
"""A class as ``module:name``, and its keyword arguments; they travel to the replica."""


def middleware_of(job: ServeJob) -> list[Layer]:
    """Returns the layers of a job, from the outside to the inside.

    The order is: request id and metrics, access, negotiation, deadline, response cache. `Routes` is around all of them.
    """
    return []


def wrapped(app: ASGIApp, layers: Sequence[Layer]) -> ASGIApp:
    """Returns an app within its layers, the first one outermost.

    Raises:
        ImportError, AttributeError: for a class that is not there.
    """
    for path, options in reversed(layers):
        module, name = path.split(":")
        app = getattr(import_module(module), name)(app, **options)
    return app
