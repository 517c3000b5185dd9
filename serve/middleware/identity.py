"""What a request is called: in its answer, in the log and in the engine."""

from __future__ import annotations

import re
import uuid

from serve.middleware.header import Headers

REQUEST_ID = b"x-request-id"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_TRACE = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.DOTALL)


def identify(headers: Headers) -> tuple[list[tuple[bytes, bytes]], str, str | None]:
    """Returns the headers with one ``x-request-id``, which vLLM goes by as well, this id, and the trace's id.

    The client's own id is kept where it is 64 characters at most of letters, digits and ``._:-``, and there once;
    another one is made where it is not. Null stands for no trace: W3C's ``traceparent`` is absent or malformed.
    """
    ids = [value for name, value in headers if name == REQUEST_ID]
    traces = [value for name, value in headers if name == b"traceparent"]
    trace = _TRACE.fullmatch(traces[0]) if len(traces) == 1 else None
    trace_id = trace[1].decode() if trace else None
    if len(ids) == 1 and _REQUEST_ID.fullmatch(ids[0]):
        return list(headers), ids[0].decode(), trace_id
    made = uuid.uuid4().hex
    kept = [pair for pair in headers if pair[0] != REQUEST_ID]
    return [*kept, (REQUEST_ID, made.encode())], made, trace_id
