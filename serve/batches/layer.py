"""Where a request for a file or a batch leaves the way to the engine."""

from __future__ import annotations

from pathlib import Path

from conf.schema.batches import BatchesSpec
from serve.batches.api import BatchApi
from serve.batches.shelf import Shelf
from serve.middleware.answer import ASGIApp, Receive, Scope, Send
from serve.middleware.routes import kept_route


class Batches:
    """Pure ASGI. Belongs inside of what knows the API keys."""

    def __init__(self, app: ASGIApp, spec: BatchesSpec) -> None:
        """Wraps ``app``.

        Args:
            app: what answers everything else.
            spec: where files and batches are; its path is absolute.

        Raises:
            UserError: when the folder cannot be used.
        """
        assert spec.path is not None
        self._app, self._api = app, BatchApi(Shelf(Path(spec.path)), spec).app()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        is_ours = scope["type"] == "http" and kept_route(scope["path"]) is not None
        await (self._api if is_ours else self._app)(scope, receive, send)
