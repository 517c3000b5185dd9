"""The OpenAPI document's part that is not vLLM's: whether the service lives, and what else answers beside vLLM."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette

from serve.middleware.body import JSON

Paths = dict[str, dict[str, Any]]
"""Of a document: operations by path and method."""
TEXT = {"type": "string"}


def complete_document(app: Starlette, beside: Paths) -> None:
    """Adds the service's own paths to what an app shows at /openapi.json; harmless where it shows none.

    Args:
        app: a FastAPI, vLLM's.
        beside: what stands around vLLM's app and answers too, such as `serve.batches.document.PATHS`.
    """
    shown = getattr(app, "openapi", None)
    if shown is None:
        return
    added = _VITAL | beside

    def complete() -> dict[str, Any]:
        document = shown()
        return {**document, "paths": document["paths"] | added}

    app.openapi = complete  # type: ignore[attr-defined]


def operation(
    name: str, summary: str, *statuses: int, answer: str | None = JSON, has_key: bool = True, **more: Any
) -> dict[str, Any]:
    """Returns an operation.

    Args:
        name: its id.
        summary: a sentence.
        statuses: it answers with them, and with what every request can get.
        answer: the type of a 200; null where it has no body.
        has_key: whether it wants an API key.
        more: OpenAPI's own names.
    """
    given: dict[str, Any] = {} if answer is None else {"content": {answer: {"schema": {} if answer == JSON else TEXT}}}
    refused = {"content": {JSON: {"schema": {"type": "object", "required": ["error"]}}}}
    responses = {
        str(status): {"description": HTTPStatus(status).phrase, **(given if status == 200 else refused)}
        for status in (*statuses, *((401, 429) if has_key else ()))
    }
    return {"operationId": name, "summary": summary, "responses": responses, **more}


_VITAL: Paths = {
    "/health": {"get": operation("health", "Whether the process lives", 200, answer=None, has_key=False)},
    "/ready": {"get": operation("ready", "Whether the engines answer", 200, 503, answer=None, has_key=False)},
    "/metrics": {"get": operation("metrics", "Counters for Prometheus", 200, answer="text/plain")},
}
