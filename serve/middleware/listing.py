"""``/v1/models``: every model and adapter of the service, also those that other replicas answer for."""

from __future__ import annotations

from typing import Any

import msgspec

from serve.catalogue import Catalogue, Entry, Know
from serve.middleware.answer import ASGIApp, Receive, Scope, Send, answer, refuse
from serve.middleware.routes import MODELS


class Listing:
    """Pure ASGI. It stands inside of access: what there is, is for those who may come in."""

    def __init__(self, app: ASGIApp, know: Know) -> None:
        """Args: vLLM's app, which knows its own model, and what says which models there are."""
        self._app, self._know = app, know

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].startswith(MODELS):
            await self._app(scope, receive, send)
            return
        name = scope["path"].removeprefix(MODELS).removeprefix("/")
        catalogue = await self._know()
        if catalogue is None and not name:
            await self._app(scope, receive, send)
            return
        cards = [_card(entry, catalogue) for entry in catalogue.entries] if catalogue else []
        found = {"object": "list", "data": cards} if not name else next((c for c in cards if c["id"] == name), None)
        if found is None:
            await refuse(send, 404, "There is no such model.", "not_found_error", "model_not_found")
        else:
            await answer(send, 200, msgspec.json.encode(found), [("content-type", "application/json")])


def _card(entry: Entry, catalogue: Catalogue) -> dict[str, Any]:
    """A model as vLLM shows it, but for folders: an adapter's is nobody's business."""
    return {
        "id": entry.name,
        "object": "model",
        "created": catalogue.created,
        "owned_by": "vllm",
        "root": entry.parent or entry.name,
        "parent": entry.parent,
        "max_model_len": entry.max_model_len,
    }
