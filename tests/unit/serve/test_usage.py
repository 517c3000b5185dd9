from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.middleware.usage import UsageReader

STREAM = (
    'data: {"choices":[{"delta":{"content":"\\"usage\\": {\\"total_tokens\\": 9}}"}}]}\n\n'
    'data: {"choices":[],"usage":null}\r\n\r\n'
    'event: x\ndata: {"choices":[{"delta":{"content":"ü"}}],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
    'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\ndata: [DONE]\n\n'
).encode()


def read(content_type: str, *chunks: bytes) -> int | None:
    reader = UsageReader(content_type)
    for chunk in chunks:
        reader.feed(chunk)
    usage = reader.close()
    return usage and usage.total


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12).map(sorted))
def test_the_last_usage_of_a_stream_is_found_however_it_is_cut(cuts: list[int]):
    chunks = [STREAM[a:b] for a, b in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)]
    assert read("text/event-stream", *chunks) == 7


@pytest.mark.parametrize(
    "body, total",
    [
        (b'{"choices": [{"message": {"content": "\\"usage\\""}}], "usage": {"total_tokens": 12}}', 12),
        (b'{"usage": {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": null}}', 11),
        (b'{"usage": {"input_tokens": 5, "output_tokens": 2, "more": {"cached": 1}}}', 7),
        (b'{"usage": null}', None),
        (b'{"usage": "many"}', None),
        (b'{"usage": 3', None),
        (b"[1]", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_the_usage_of_a_body(body: bytes, total: int | None):
    assert read("application/json", body) == total
    assert read("application/json", *[body[i : i + 1] for i in range(len(body))]) == total
    assert read("text/plain", body) is None


def test_the_usage_of_other_streams():
    responses = b'event: response.completed\ndata: {"response": {"usage": {"input_tokens": 2, "output_tokens": 3}}}\n\n'
    assert read("text/event-stream", responses) == 5
    assert read("text/event-stream", b'data: {"usage": {"total_tokens": 4}}') == 4
    assert read("text/event-stream", b"data: [DONE]\n\n") is None


def test_a_line_without_end_is_not_kept():
    reader = UsageReader("text/event-stream")
    for _ in range(40):
        reader.feed(b'data: {"usage"' + b"x" * (1 << 17))
    assert len(reader._kept) <= 1 << 20
    assert reader.close() is None
