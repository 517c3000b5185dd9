"""``/v1/models``: every model and adapter of the service, also those that other replicas answer for.

Who asks for another model is told which there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from serve.catalogue import Catalogue, Entry, Know
from serve.middleware.answer import ASGIApp, Message, Receive, Scope, Send, answer, refuse
from serve.middleware.routes import MODELS

SHOWN_NAMES, SHOWN_CHARS = 20, 100


class Listing:
    """Pure ASGI. It stands inside of access: what there is, is for those who may come in."""

    def __init__(self, app: ASGIApp, know: Know, own: Iterable[str] = ()) -> None:
        """Args: vLLM's app, what says which models there are, and the names that this app answers to."""
        self._app, self._know, self._own = app, know, frozenset(own)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        asked = scope.get("manta", {}).get("body", {}).get("model")
        if isinstance(asked, str):
            if asked not in self._own and (catalogue := await self._know()) is not None:
                send = _naming(send, asked, catalogue)
            await self._app(scope, receive, send)
            return
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
            await refuse(send, 404, _lacks(name, catalogue), "not_found_error", "model_not_found", param="model")
        else:
            await answer(send, 200, msgspec.json.encode(found), [("content-type", "application/json")])


def _naming(send: Send, asked: str, catalogue: Catalogue) -> Send:
    """Returns a ``send`` that says of a 404 which models there are; who else answers may be newer than the list."""
    is_refused = False

    async def pass_on(message: Message) -> None:
        nonlocal is_refused
        if message["type"] == "http.response.start" and message["status"] == 404:
            is_refused = True
            await refuse(send, 404, _lacks(asked, catalogue), "not_found_error", "model_not_found", param="model")
        elif not is_refused:
            await send(message)

    return pass_on


def _lacks(asked: str, catalogue: Catalogue | None) -> str:
    names = [entry.name for entry in catalogue.entries] if catalogue else []
    shown = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
    return f"There is no model '{asked[:SHOWN_CHARS]}'{f'; there are {shown}' if names else ''}."


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
