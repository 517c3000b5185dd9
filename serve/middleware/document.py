"""The OpenAPI document's part that is not vLLM's: whether the service lives, files and batches.

Source of files and batches: OpenAI's reference of its API, as far as `serve.batches.api` answers it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette

from serve.middleware.body import FORM, JSON
from serve.middleware.routes import BATCHES, FILES

_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[a-z0-9_-]{1,64}$"}}
_TEXT = {"type": "string"}


def complete_document(app: Starlette, has_batches: bool) -> None:
    """Adds the service's own paths to what an app shows at /openapi.json; harmless where it shows none.

    Args:
        app: a FastAPI, vLLM's.
        has_batches: whether the service has files and batches.
    """
    shown = getattr(app, "openapi", None)
    if shown is None:
        return
    added = _VITAL | (_KEPT if has_batches else {})

    def complete() -> dict[str, Any]:
        document = shown()
        return {**document, "paths": document["paths"] | added}

    app.openapi = complete  # type: ignore[attr-defined]


def _operation(
    name: str, summary: str, *statuses: int, answer: str | None = JSON, has_key: bool = True, **more: Any
) -> dict[str, Any]:
    """Args: the operation's id; a sentence; what it answers with; the type of a 200; whether it wants an API key."""
    given: dict[str, Any] = {} if answer is None else {"content": {answer: {"schema": {} if answer == JSON else _TEXT}}}
    refused = {"content": {JSON: {"schema": {"type": "object", "required": ["error"]}}}}
    responses = {
        str(status): {"description": HTTPStatus(status).phrase, **(given if status == 200 else refused)}
        for status in (*statuses, *((401, 429) if has_key else ()))
    }
    return {"operationId": name, "summary": summary, "responses": responses, **more}


def _asked(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _page(most: int) -> list[dict[str, Any]]:
    limit = {"type": "integer", "minimum": 1, "maximum": most, "default": 20}
    return [_asked("limit", limit), _asked("order", {"enum": ["asc", "desc"]}), _asked("after", _TEXT)]


def _body(kind: str, required: list[str], **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "required": required, "properties": properties}
    return {"required": True, "content": {kind: {"schema": schema}}}


_VITAL = {
    "/health": {"get": _operation("health", "Whether the process lives", 200, answer=None, has_key=False)},
    "/ready": {"get": _operation("ready", "Whether the engines answer", 200, 503, answer=None, has_key=False)},
    "/metrics": {"get": _operation("metrics", "Counters for Prometheus", 200, answer="text/plain")},
}
_KEPT = {
    FILES: {
        "get": _operation("list_files", "Your files", 200, 400, parameters=[*_page(10_000), _asked("purpose", _TEXT)]),
        "post": _operation(
            "create_file",
            "Keeps a file of requests, a JSON object a line",
            *(200, 400, 408, 413, 415),
            requestBody=_body(
                FORM, ["file", "purpose"], file={"type": "string", "format": "binary"}, purpose={"enum": ["batch"]}
            ),
        ),
    },
    f"{FILES}/{{id}}": {
        "get": _operation("retrieve_file", "A file's record", 200, 404, parameters=[_ID]),
        "delete": _operation("delete_file", "Deletes a file", 200, 404, parameters=[_ID]),
    },
    f"{FILES}/{{id}}/content": {
        "get": _operation(
            "download_file", "What is in a file", 200, 404, answer="application/octet-stream", parameters=[_ID]
        )
    },
    BATCHES: {
        "get": _operation("list_batches", "Your batches", 200, 400, parameters=_page(100)),
        "post": _operation(
            "create_batch",
            "Answers a file's requests when there is room",
            *(200, 400, 413),
            requestBody=_body(
                JSON,
                ["input_file_id", "endpoint", "completion_window"],
                input_file_id=_TEXT,
                endpoint={"enum": ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]},
                completion_window={"type": "string", "examples": ["24h"]},
                metadata={"type": ["object", "null"], "additionalProperties": _TEXT},
            ),
        ),
    },
    f"{BATCHES}/{{id}}": {
        "get": _operation("retrieve_batch", "A batch, and how far it is", 200, 404, parameters=[_ID])
    },
    f"{BATCHES}/{{id}}/cancel": {"post": _operation("cancel_batch", "Ends a batch early", 200, 404, parameters=[_ID])},
}
