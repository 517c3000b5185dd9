"""Errors that vLLM's own handlers do not think of: in OpenAI's shape, and without what went wrong inside.

Found by fuzzing with the service's own OpenAPI document: a path without a handler for the service's task was
``{"detail": "Not Found"}``, and an assistant's message without content a 500, "list index out of range".
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serve.middleware.answer import error_body

_log = logging.getLogger(__name__)
_BUGS = (LookupError, AttributeError)
"""What reading a request fails with that its schema allows. vLLM says itself that ValueError and TypeError are 400."""


def shape_errors(app: Starlette) -> None:
    """Adds the handlers; to be called before the first request.

    Args:
        app: vLLM's. A handler of its own for a more exact class goes on.
    """
    app.add_exception_handler(HTTPException, _refuse)
    for bug in _BUGS:
        app.add_exception_handler(bug, _stumble)
    app.add_exception_handler(Exception, _fail)
    if app.middleware_stack is not None:  # made already, of the handlers that there were
        app.middleware_stack = app.build_middleware_stack()


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    name = HTTPStatus(error.status_code).phrase
    kind, said = "invalid_request_error", f"{name}."
    if error.status_code == 404:  # a path that no service has does not come so far
        kind, said = "not_found_error", "The model does not answer at this path: it may be served for another task."
    body = error_body(said, kind, name.lower().replace(" ", "_"))
    return Response(body, error.status_code, error.headers, "application/json")


async def _stumble(request: Request, error: Exception) -> Response:
    _log.warning("a request to %s is refused: %s", request.url.path, type(error).__name__)
    body = error_body("The request cannot be read.", "invalid_request_error", "invalid_request")
    return Response(body, 400, media_type="application/json")


async def _fail(request: Request, error: Exception) -> Response:
    body = error_body("The request failed.", "server_error", "internal_error")
    return Response(body, 500, media_type="application/json")
