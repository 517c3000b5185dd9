from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.middleware.identity import REQUEST_ID, identify

SANE = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:-]{0,63}\Z")


@given(SANE)
def test_a_sane_id_is_kept(given_id: str):
    headers, request_id, _ = identify([(b"host", b"h"), (REQUEST_ID, given_id.encode())])
    assert request_id == given_id
    assert headers.count((REQUEST_ID, given_id.encode())) == 1


@given(st.lists(st.one_of(st.binary(max_size=80), SANE.map(str.encode)), max_size=3))
def test_there_is_one_id_of_bounded_length_whatever_is_sent(ids: list[bytes]):
    headers, request_id, _ = identify([(REQUEST_ID, value) for value in ids])
    assert headers == [(REQUEST_ID, request_id.encode())]
    assert 1 <= len(request_id) <= 64
    assert request_id.isascii()
    assert request_id.isprintable()
    assert " " not in request_id


@pytest.mark.parametrize(
    "value, trace",
    [
        (f"00-{'ab' * 16}-{'cd' * 8}-01", "ab" * 16),
        (f"01-{'ab' * 16}-{'cd' * 8}-01-more", "ab" * 16),
        (f"ff-{'ab' * 16}-{'cd' * 8}-01", None),
        (f"00-{'0' * 32}-{'cd' * 8}-01", None),
        (f"00-{'ab' * 16}-{'0' * 16}-01", None),
        (f"00-{'AB' * 16}-{'cd' * 8}-01", None),
        ("", None),
    ],
)
def test_the_trace_is_w3c_s(value: str, trace: str | None):
    assert identify([(b"traceparent", value.encode())])[2] == trace
    assert identify([(b"traceparent", value.encode())] * 2)[2] is None
