"""Files and batches in the OpenAPI document. Source: OpenAI's reference of its API, as far as `api` answers it."""

from __future__ import annotations

from typing import Any

from serve.batches.ask import ENDPOINTS, MAX_FILES, MAX_PAGE, PURPOSES
from serve.middleware.body import FORM, JSON
from serve.middleware.document import TEXT, Paths, operation
from serve.middleware.routes import BATCHES, FILES, ID

_ID = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "pattern": f"^{ID}$"}}


def _asked(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _page(most: int) -> list[dict[str, Any]]:
    limit = {"type": "integer", "minimum": 1, "maximum": most, "default": 20}
    return [_asked("limit", limit), _asked("order", {"enum": ["asc", "desc"]}), _asked("after", TEXT)]


def _body(kind: str, required: list[str], **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "required": required, "properties": properties}
    return {"required": True, "content": {kind: {"schema": schema}}}


PATHS: Paths = {
    FILES: {
        "get": operation("list_files", "Your files", 200, 400, parameters=[*_page(MAX_FILES), _asked("purpose", TEXT)]),
        "post": operation(
            "create_file",
            "Keeps a file of requests, a JSON object a line",
            *(200, 400, 408, 413, 415),
            requestBody=_body(
                FORM, ["file", "purpose"], file={"type": "string", "format": "binary"}, purpose={"enum": [*PURPOSES]}
            ),
        ),
    },
    f"{FILES}/{{id}}": {
        "get": operation("retrieve_file", "A file's record", 200, 404, parameters=[_ID]),
        "delete": operation("delete_file", "Deletes a file", 200, 404, parameters=[_ID]),
    },
    f"{FILES}/{{id}}/content": {
        "get": operation(
            "download_file", "What is in a file", 200, 404, answer="application/octet-stream", parameters=[_ID]
        )
    },
    BATCHES: {
        "get": operation("list_batches", "Your batches", 200, 400, parameters=_page(MAX_PAGE)),
        "post": operation(
            "create_batch",
            "Answers a file's requests when there is room",
            *(200, 400, 413),
            requestBody=_body(
                JSON,
                ["input_file_id", "endpoint", "completion_window"],
                input_file_id=TEXT,
                endpoint={"enum": [*ENDPOINTS]},
                completion_window={"type": "string", "examples": ["24h"]},
                metadata={"type": ["object", "null"], "additionalProperties": TEXT},
            ),
        ),
    },
    f"{BATCHES}/{{id}}": {"get": operation("retrieve_batch", "A batch, and how far it is", 200, 404, parameters=[_ID])},
    f"{BATCHES}/{{id}}/cancel": {"post": operation("cancel_batch", "Ends a batch early", 200, 404, parameters=[_ID])},
}
